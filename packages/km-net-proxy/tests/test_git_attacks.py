"""Requests that two servers could read in two ways: GitHub gets the one reading that was judged, or nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import resource
import ssl
import zlib

import pytest
from gate_rig import answer, ok, run
from git_world import World
from test_git_rules import RECEIVE, A, ask, chunked, push

from km_core.plan import HostRule

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


def test_a_body_goes_out_as_long_as_it_came_and_as_json():
    async def main():
        async with World(refs=("main",)) as world:
            await world.up(api_github_com=ok(b"{}"))
            text = "\u00e9\u2028\U0001f600" * 1000
            for more, allowed in (
                (json.dumps({"message": text}, ensure_ascii=False), True),
                ('{"size": 1e999}', False),
                (r'{"message": "\ud800"}', False),
            ):
                body = ('{"branch": "main", ' + more[1:]).encode()
                status, _, _ = await ask(world, "PUT", "/repos/o/r/contents/a", body, host="api.github.com")
                assert (status == 200) == allowed
            ((_, arrived),) = world.rig.servers[0].requests
            assert json.loads(arrived) == {"branch": "main", "message": text}
            assert len(arrived) < 10_000

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


SECRET = "/o/secret/info/refs?service=git-upload-pack"


@pytest.mark.parametrize(
    ("target", "host"),
    [
        (SECRET, "github.com"),
        (SECRET, "GitHub.COM"),
        (SECRET, "github.com."),
        (SECRET, "github.com:443"),
        (SECRET, "github.com:0443"),
        (SECRET, "api.github.com"),
        (SECRET, "web.test"),
        (SECRET, "eve@github.com"),
        (SECRET, "www.github.com"),
        ("https://github.com" + SECRET, "github.com"),
        ("https://GITHUB.com:443" + SECRET, "GITHUB.com:443"),
        ("https://o@github.com" + SECRET, "github.com"),
        ("HTTPS://github.com/o/r/../secret/info/refs?service=git-upload-pack", "github.com"),
        ("https://github.com\\@web.test" + SECRET, "github.com"),
        ("//github.com" + SECRET, "github.com"),
        ("/o/r/../secret/info/refs?service=git-upload-pack", "github.com"),
        ("/o/r/%2E%2E/secret/info/refs?service=git-upload-pack", "github.com"),
        ("/o/r%2f%2e%2e%2fsecret/info/refs?service=git-upload-pack", "github.com"),
        ("/o/r/..;/secret/info/refs?service=git-upload-pack", "github.com"),
        ("/o/r;/../secret/info/refs?service=git-upload-pack", "github.com"),
        ("/o/r/./../secret/info/refs?service=git-upload-pack", "github.com"),
        ("/o/r/.git/../../secret/info/refs?service=git-upload-pack", "github.com"),
        ("/o/%73ecret/info/refs?service=git-upload-pack", "github.com"),
        ("/o/SECRET.git/info/refs?service=git-upload-pack", "github.com"),
        ("/o/secret.git%20/info/refs?service=git-upload-pack", "github.com"),
        ("/o/r%00/../secret/info/refs?service=git-upload-pack", "github.com"),
        ("/o/r/%c0%ae%c0%ae/secret/info/refs?service=git-upload-pack", "github.com"),
        ("/o/r/%u002e%u002e/secret/info/refs?service=git-upload-pack", "github.com"),
        ("/o/r\uff0fsecret/info/refs?service=git-upload-pack", "github.com"),
        ("/o/r?/../secret/info/refs&service=git-upload-pack", "github.com.evil.test"),
        ("*", "github.com"),
        ("o/secret/info/refs", "github.com"),
    ],
)
def test_no_form_of_a_url_leads_to_a_repository_that_is_not_listed(target, host):
    async def main():
        async with World() as world:
            await world.up(web=ok(b"refs"), api_github_com=ok(b"{}"), web_test=ok(b"web"))
            reader, writer = await world.rig.tls("github.com")
            writer.write(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            status, _, text = await asyncio.wait_for(answer(reader), 20)
            writer.close()
            assert status in (400, 403, 421), text
            assert not any(server.connections for server in world.rig.servers)

    run(main)


@pytest.mark.parametrize(
    ("connect", "name"),
    [
        ("github.com:443", "github.com"),
        ("GitHub.Com:443", "GITHUB.COM"),
        ("github.com.:443", "github.com"),
        ("github.com:22", "github.com"),
        ("github.com:80", "github.com"),
        ("github.com:8443", "github.com"),
        ("ssh.github.com:443", "ssh.github.com"),
        ("gist.github.com:443", "gist.github.com"),
        ("www.github.com:443", "www.github.com"),
        ("web.test:443", "github.com"),
        ("github.com:443", "web.test"),
        ("github.com:443", ""),
    ],
)
def test_no_tunnel_carries_a_request_past_the_filter(connect, name):
    async def main():
        wide = [HostRule("github.com", "suffix"), HostRule("web.test", "exact")]
        async with World(hosts=wide) as world:
            await world.up(web=ok(b"refs"), web_test=ok(b"web"))
            port = world.rig.proxy()
            request = f"GET {SECRET} HTTP/1.1\r\nHost: github.com\r\n\r\n".encode()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"CONNECT {connect} HTTP/1.1\r\nHost: {connect}\r\n\r\n".encode())
            text = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
            status = int(text.split()[1])
            if status == 200 and not name:
                writer.write(request)  # no TLS at all
                with contextlib.suppress(ConnectionResetError):
                    text = await asyncio.wait_for(reader.read(1 << 16), 20)
            elif status == 200:
                context = world.rig.client_context()
                context.check_hostname = False
                try:
                    await asyncio.wait_for(writer.start_tls(context, server_hostname=name), 20)
                    writer.write(request)
                    text = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
                    status = int(text.split()[1])
                except (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
                    status = 0
                assert status in (0, 403, 421), text
            writer.close()
            assert b"refs" not in text or b"Blocked" in text
            assert not any(server.requests for server in world.rig.servers)

    run(main)


def test_each_of_several_requests_in_one_write_is_judged():
    async def main():
        async with World(refs=("main",)) as world:
            await world.up(web=ok(b"0000"))
            refused, allowed = push("refs/heads/dev"), push("refs/heads/main")
            reads = [f"GET {SECRET} HTTP/1.1\r\nHost: github.com\r\n\r\n".encode()]
            reads.append(reads[0].replace(b"secret", b"r"))

            def sent(body, *, chunks=False):
                head = f"POST {RECEIVE} HTTP/1.1\r\nHost: github.com\r\n".encode()
                if chunks:
                    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(body, 100)
                return head + b"Content-Length: %d\r\n\r\n" % len(body) + body

            reader, writer = await world.rig.tls("github.com")
            writer.write(
                b"".join(
                    [
                        *reads,
                        sent(refused),
                        sent(allowed),
                        sent(refused, chunks=True),
                        sent(b"0000"),
                        sent(allowed, chunks=True),
                        reads[1],
                        sent(b"", chunks=True),
                        reads[0],
                        reads[1],
                    ]
                )
            )
            got = []
            for _ in range(9):
                status, _, text = await asyncio.wait_for(answer(reader), 20)
                got.append((status, b"Blocked" in text))
            told = (200, True)
            done = (200, False)
            assert got == [(403, True), done, told, done, told, done, done, done, (403, True)]
            # An empty push is no list at all: that connection ends there.
            assert await reader.read() == b""
            bodies = [body for head, body in world.server.requests if head.startswith(b"POST")]
            assert bodies == [allowed, b"0000", allowed]
            writer.close()

    run(main)


def test_a_refused_push_that_grows_without_end_is_cut_off_and_costs_little():
    async def main():
        async with World(refs=("main",)) as world:
            await world.up(web=ok(b"0000"))
            bomb = zlib.compressobj(9, zlib.DEFLATED, 31)
            body = bomb.compress(push("refs/heads/dev"))
            for _ in range(400):
                body += bomb.compress(bytes(1 << 20))
            body += bomb.flush()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            status, _, text = await ask(world, "POST", RECEIVE, body, "Content-Encoding: gzip")
            assert (status, b"Blocked" in text) == (200, True)
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
            assert not world.server.connections

    run(main)


def test_a_large_refused_push_is_told_in_full_and_its_connection_goes_on():
    """Git's client sends the rest of a push anew when it is cut off, and then shows that refusal instead."""

    async def main():
        async with World(refs=("main",)) as world:
            await world.up(web=ok(b"0000"))
            reader, writer = await world.rig.tls("github.com")
            head = f"POST {RECEIVE} HTTP/1.1\r\nHost: github.com\r\nTransfer-Encoding: chunked\r\n\r\n"
            writer.write(head.encode() + chunked(push("refs/heads/dev"), 1 << 16)[:-5])
            piece = b"%x\r\n%b\r\n" % (1 << 20, bytes(1 << 20))
            for _ in range(300):
                writer.write(piece)
                await writer.drain()
            writer.write(b"0\r\n\r\n")
            status, _, text = await asyncio.wait_for(answer(reader), 20)
            assert (status, b"ng refs/heads/dev km: " in text) == (200, True)
            writer.write(f"GET {SECRET} HTTP/1.1\r\nHost: github.com\r\n\r\n".encode())
            status, _, _ = await asyncio.wait_for(answer(reader), 20)
            assert status == 403
            writer.close()
            assert not world.server.connections

    run(main)
