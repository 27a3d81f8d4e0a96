"""Requests that two servers could read in two ways: GitHub gets the one reading that was judged, or nothing."""

from __future__ import annotations

import gzip
import json

import pytest
from gate_rig import ok, run
from git_world import World
from test_git_rules import RECEIVE, A, ask, push

LFS = "/o/r.git/info/lfs/objects/batch"
OBJECT = {"oid": "c" * 64, "size": 3}


@pytest.mark.parametrize("coding", ["", "gzip"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_nothing_follows_the_probe_of_a_long_push(coding, framing):
    async def main():
        async with World(refs=("main",)) as world:
            await world.up(web=ok(b"0000"))
            for tail, allowed in ((b"", True), (push("refs/heads/dev"), False), (b"x", False)):
                body = b"0000" + tail
                body = gzip.compress(body) if coding else body
                fields = ["Content-Encoding: gzip"] if coding else []
                raw = None
                if framing == "chunked":
                    fields.append("Transfer-Encoding: chunked")
                    parts = (body[:4], body[4:]) if body[4:] else (body,)
                    raw = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
                before = world.server.connections
                status, _, text = await ask(world, "POST", RECEIVE, body, *fields, raw=raw)
                assert (status == 200) == allowed, (tail, text)
                assert (world.server.connections > before) == allowed

    run(main)


@pytest.mark.parametrize(
    "body",
    [
        {"operation": "download", "Operation": "upload"},
        {"Operation": "upload", "operation": "download", "objects": [OBJECT]},
        {"operation": "download", "operat\u0131on": "upload"},
        {"operation": "upload", "ref": {"name": "refs/heads/main", "Name": "refs/heads/dev"}},
        {"operation": "upload", "ref": {"name": "refs/heads/main"}, "REF": {"name": "refs/heads/dev"}},
    ],
)
def test_an_lfs_server_that_takes_names_in_any_case_reads_what_was_judged(body):
    """GitHub's is written in Go, whose decoder matches members without regard to case (encoding/json)."""

    async def main():
        async with World(refs=("main",)) as world:
            await world.up(web=ok(b"{}"))
            await ask(world, "POST", LFS, json.dumps(body).encode())
            for _, arrived in world.server.requests:
                sent = json.loads(arrived)
                assert set(sent) <= {"operation", "transfers", "ref", "objects", "hash_algo"}
                assert set(sent.get("ref", {})) <= {"name"}
                assert sent["operation"] == body["operation"]

    run(main)


def test_an_lfs_request_arrives_with_the_objects_that_it_names():
    async def main():
        async with World(refs=("main",)) as world:
            await world.up(web=ok(b"{}"))
            body = {
                "operation": "upload",
                "transfers": ["tus", "basic"],
                "ref": {"name": "refs/heads/main"},
                "objects": [OBJECT],
                "hash_algo": "sha256",
            }
            status, _, text = await ask(world, "POST", LFS, json.dumps(body).encode())
            assert status == 200, text
            assert json.loads(world.server.requests[0][1]) == {**body, "transfers": ["basic"]}
            for bad in (
                {"objects": [{"oid": "../../../etc", "size": 1}]},
                {"objects": [{"oid": "c" * 64, "size": "1"}]},
                {"objects": ["x"]},
                {"objects": {}},
                {"hash_algo": ["sha256"]},
            ):
                status, _, _ = await ask(world, "POST", LFS, json.dumps(body | bad).encode())
                assert status == 403
            assert len(world.server.requests) == 1

    run(main)


@pytest.mark.parametrize(
    "kind",
    [
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=utf-7",
        "text/plain",
        "",
    ],
)
@pytest.mark.parametrize("refs", [("main",), None])
def test_a_body_of_the_api_is_json_to_everybody(kind, refs):
    """As a form the text would name another branch: everything up to the ampersand is one odd member."""

    async def main():
        async with World(refs=refs) as world:
            await world.up(api_github_com=ok(b"{}"))
            body = b'{"branch": "main", "message": "&branch=dev&_method=DELETE&x="}'
            fields = [f"Content-Type: {kind}", f"Content_Type: {kind}"] if kind else []
            status, _, _ = await ask(
                world, "PUT", "/repos/o/r/contents/a", body, *fields, host="api.github.com"
            )
            assert status == 200
            head = world.rig.servers[0].requests[0][0].lower()
            assert head.count(b"content-type:") + head.count(b"content_type:") == 1
            assert b"\r\ncontent-type: application/json; charset=utf-8\r\n" in head

    run(main)


@pytest.mark.parametrize("branch", ["heads/dev", "tags/v1", "remotes/x", "refs/heads/dev", "HEAD", "@", ""])
def test_a_branch_that_git_would_look_up_elsewhere_is_no_branch(branch):
    """``*/*`` takes the branch ``heads/dev``, which a server that expands names reads as ``dev``."""

    async def main():
        async with World(refs=("*/*", "[H@]*")) as world:
            await world.up(api_github_com=ok(b"{}"))
            for target, body in (
                ("/repos/o/r/contents/a", {"branch": branch}),
                ("/repos/o/r/merges", {"base": branch, "head": "x/y"}),
            ):
                method = "PUT" if "contents" in target else "POST"
                status, _, _ = await ask(
                    world, method, target, json.dumps(body).encode(), host="api.github.com"
                )
                assert status == 403
            assert not world.rig.servers[0].requests

    run(main)


def test_a_member_in_another_case_beside_the_judged_one_is_refused():
    async def main():
        async with World(refs=("main",)) as world:
            await world.up(api_github_com=ok(b"{}"))
            body = json.dumps({"ref": "refs/heads/main", "Ref": "refs/heads/dev", "sha": A}).encode()
            status, _, _ = await ask(world, "POST", "/repos/o/r/git/refs", body, host="api.github.com")
            assert status == 403
            assert not world.rig.servers[0].requests

    run(main)


@pytest.mark.parametrize("refs", [("main",), None])
def test_a_pull_request_takes_commits_of_listed_repositories_only(refs):
    async def main():
        async with World(repos=("o/r", "o/also", "fork/*"), refs=refs) as world:
            await world.up(api_github_com=ok(b"{}"))
            for more, allowed in (
                ({"head": "topic"}, True),
                ({"head": "o:topic"}, True),
                ({"head": "o:topic", "head_repo": "also"}, True),
                ({"head": "o:topic", "head_repo": "o/also"}, True),
                ({"head": "fork:topic"}, True),
                ({"issue": 7, "head": "topic"}, True),
                ({"head": "o:topic", "head_repo": "secret"}, False),
                ({"head": "o:topic", "head_repo": "eve/r"}, False),
                ({"head": "topic", "head_repo": "eve/r"}, False),
                ({"head": "eve:topic"}, False),
                ({"head": "eve/r:topic"}, False),
                ({"head": "o:x:topic"}, False),
                ({"head": ["eve:topic"]}, False),
                ({"head": "topic", "Head": "eve:topic"}, False),
                ({}, False),
            ):
                before = len(world.rig.servers[0].requests)
                body = json.dumps({"title": "t", "base": "main", **more}).encode()
                status, _, text = await ask(world, "POST", "/repos/o/r/pulls", body, host="api.github.com")
                assert (status == 200) == allowed, (more, text)
                assert len(world.rig.servers[0].requests) == before + allowed

    run(main)


def test_locks_are_taken_by_those_who_may_push():
    async def main():
        async with World(refs=()) as world:
            await world.up(web=ok(b"{}"))
            for target, allowed in (
                ("/o/r/info/lfs/locks", False),
                ("/o/r/info/lfs/locks/7/unlock", False),
                ("/o/r/info/lfs/locks/verify", False),
            ):
                status, _, _ = await ask(world, "POST", target, b"{}")
                assert (status == 200) == allowed
            status, _, _ = await ask(world, "GET", "/o/r/info/lfs/locks")
            assert status == 200

    run(main)
