"""Bodies, LFS, the API and handed-out URLs at the wire: judged before a byte leaves, whatever their coding."""

from __future__ import annotations

import asyncio
import gzip
import json

import pytest
from gate_rig import answer, ok, run
from git_world import TOKEN, World
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from km_net_proxy.git.pktline import pkt

A, B = "a" * 40, "b" * 40
CAPS = b"\0report-status side-band-64k"
SIGNED = "objects.githubusercontent.com"


def push(*refs):
    lines = [f"{A} {B} {ref}".encode() + (b"" if n else CAPS) for n, ref in enumerate(refs)]
    return b"".join(map(pkt, lines)) + b"0000PACK" + bytes(range(256)) * 20


def chunked(body, size):
    parts = (body[start : start + size] for start in range(0, len(body), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


async def ask(world, method, target, body=b"", *fields, host="github.com", raw=None):
    """Send one request and return status, fields and body."""
    reader, writer = await world.rig.tls(host)
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *fields]
    if raw is None and (body or method != "GET"):
        lines.append(f"Content-Length: {len(body)}")
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + (body if raw is None else raw))
    try:
        return await asyncio.wait_for(answer(reader), 20)
    finally:
        writer.close()


RECEIVE = "/o/r.git/git-receive-pack"


@pytest.mark.parametrize("coding", ["", "gzip", "members"])
@pytest.mark.parametrize("pieces", [0, 1, 7, 70000])
def test_a_push_is_judged_in_any_coding_and_framing(coding, pieces):
    async def main():
        async with World(refs=("main",)) as world:
            await world.up(web=ok(b"0000"))
            for ref, allowed in (("refs/heads/dev", False), ("refs/heads/main", True)):
                plain = body = push(ref)
                fields = ["Content-Type: application/x-git-receive-pack-request"]
                if coding:
                    body = (
                        gzip.compress(plain[:9]) + gzip.compress(plain[9:])
                        if coding == "members"
                        else gzip.compress(plain)
                    )
                    fields.append("Content-Encoding: gzip")
                if pieces:
                    fields.append("Transfer-Encoding: chunked")
                before = len(world.server.requests)
                status, got, text = await ask(
                    world, "POST", RECEIVE, body, *fields, raw=chunked(body, pieces) if pieces else None
                )
                if allowed:
                    assert len(world.server.requests) == before + 1
                    head, arrived = world.server.requests[-1]
                    assert arrived == plain
                    assert b"Content-Encoding" not in head
                else:
                    assert (200, "application/x-git-receive-pack-result") == (status, got["content-type"])
                    assert b"ng refs/heads/dev km: " in text
                    assert len(world.server.requests) == before

    run(main)


def test_a_client_that_waits_to_be_asked_is_asked_and_judged():
    async def main():
        async with World(refs=("main",)) as world:
            await world.up(web=ok(b"0000"))
            for ref in ("refs/heads/dev", "refs/heads/main"):
                reader, writer = await world.rig.tls("github.com")
                body = push(ref)
                head = f"POST {RECEIVE} HTTP/1.1\r\nHost: github.com\r\nExpect: 100-continue\r\n"
                writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
                status, _, _ = await asyncio.wait_for(answer(reader), 10)
                assert status == 100
                assert not world.server.requests
                writer.write(body)
                status, _, text = await asyncio.wait_for(answer(reader), 20)
                assert status == 200
                assert (b"not in allowedRefs" in text) == (ref == "refs/heads/dev")
                writer.close()
            assert len(world.server.requests) == 1
            assert b"Expect" not in world.server.requests[0][0]

    run(main)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from(["refs/heads/main", "refs/heads/dev", "refs/tags/x", "main"]), min_size=1, max_size=4
    ),
    st.lists(st.integers(1, 5000), min_size=1, max_size=5),
)
def test_nothing_leaves_before_the_verdict_however_a_push_trickles_in(refs, sizes):
    async def main():
        async with World(refs=("main",)) as world:
            await world.up("o/r")
            body, at = push(*refs), 0
            reader, writer = await world.rig.tls("github.com")
            writer.write(
                f"POST {RECEIVE} HTTP/1.1\r\nHost: github.com\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            )
            listed = body.index(b"0000PACK") + 4
            for size in [*sizes, len(body)]:
                writer.write(body[at : at + size])
                await writer.drain()
                await asyncio.sleep(0.01)
                at += size
                if at < listed:
                    assert world.server.connections == 0
            status, _, _ = await asyncio.wait_for(answer(reader), 20)
            assert (world.server.connections == 0) == (set(refs) != {"refs/heads/main"})
            assert (status == 403) == ("main" in refs)
            writer.close()

    run(main)


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ((), b"0000"[:3]),
        ((), b"garbage"),
        (("Content-Encoding: br",), push("refs/heads/main")),
        (("Content-Encoding: gzip",), b"no gzip"),
        (("Content-Encoding: gzip, gzip",), gzip.compress(gzip.compress(push("refs/heads/main")))),
        ((), pkt(b"x" * 100) * 10),
        ((), b""),
    ],
)
def test_a_push_that_cannot_be_read_is_refused_and_reaches_nobody(fields, body):
    async def main():
        async with World(refs=("main",)) as world:
            await world.up("o/r")
            status, _, text = await ask(world, "POST", RECEIVE, body, *fields)
            assert status == 403
            assert b"builtin:git-malformed" in text
            assert world.server.connections == 0

    run(main)


def batch(operation, **more):
    return json.dumps({"operation": operation, "transfers": ["custom"], "objects": [], **more}).encode()


def test_lfs_is_judged_by_repository_direction_and_ref():
    async def main():
        async with World(refs=("main",)) as world:
            await world.up(web=ok(b"{}"))
            lfs = "/o/r.git/info/lfs/objects/batch"
            for body, target, status in (
                (batch("download"), lfs, 200),
                (batch("upload", ref={"name": "refs/heads/main"}), lfs, 200),
                (batch("upload", ref={"name": "refs/heads/dev"}), lfs, 403),
                (batch("upload"), lfs, 403),
                (batch("download"), "/o/other/info/lfs/objects/batch", 403),
                (b'{"operation": "download", "operation": "upload"}', lfs, 403),
                (b"[]", lfs, 403),
            ):
                got, fields, text = await ask(world, "POST", target, body)
                assert status == got, (body, text)
                if status == 403:
                    assert fields["content-type"] == "application/vnd.git-lfs+json"
                    assert "Blocked by km" in json.loads(text)["message"]

    run(main)


def test_the_api_is_judged_by_repository_and_by_the_refs_in_its_bodies():
    async def main():
        async with World(refs=("main", "refs/tags/v*")) as world:
            await world.up(api_github_com=ok(b"{}"))
            api = world.rig.servers[0]
            for method, target, body, status in (
                ("GET", "/repos/o/r/issues", None, 200),
                ("GET", "/repos/o/other", None, 403),
                ("POST", "/graphql", {"query": "{viewer{login}}"}, 403),
                ("GET", "/user/repos", None, 403),
                ("GET", "/rate_limit", None, 200),
                ("POST", "/gists", {"files": {}}, 403),
                ("POST", "/repos/o/r/issues/1/comments", {"body": "x"}, 200),
                ("POST", "/repos/o/r/forks", {}, 403),
                ("POST", "/repos/o/r/git/refs", {"ref": "refs/heads/main", "sha": A}, 200),
                ("POST", "/repos/o/r/git/refs", {"ref": "refs/heads/dev", "sha": A}, 403),
                ("POST", "/repos/o/r/git/refs", {"sha": A}, 403),
                ("POST", "/repos/o/r/git/refs?ref=refs/heads/dev", {"ref": "refs/heads/main"}, 403),
                ("PATCH", "/repos/o/r/git/refs/heads/main", {"sha": A}, 200),
                ("PATCH", "/repos/o/r/git/refs/heads/dev", {"sha": A}, 403),
                ("PUT", "/repos/o/r/contents/a", {"branch": "main", "content": "eA=="}, 200),
                ("PUT", "/repos/o/r/contents/a", {"content": "eA=="}, 403),
                ("PUT", "/repos/o/r/contents/a", {"branch": ["main"]}, 403),
                ("POST", "/repos/o/r/releases", {"tag_name": "v1"}, 200),
                ("POST", "/repos/o/r/releases", {"tag_name": "x1"}, 403),
            ):
                sent = b"" if body is None else json.dumps(body).encode()
                before = len(api.requests)
                got, _, text = await ask(world, method, target, sent, host="api.github.com")
                assert status == got, (method, target, body, text)
                assert len(api.requests) == before + (status == 200)
                if status == 403:
                    assert json.loads(text)["error"] in (
                        "repo_not_allowed",
                        "ref_not_allowed",
                        "git_not_allowed",
                    )
            head = api.requests[0][0]
            assert f"Authorization: Bearer {TOKEN}".encode() in head

    run(main)


def test_a_method_override_and_the_clients_own_credentials_do_not_leave():
    async def main():
        async with World() as world:
            await world.up(api_github_com=ok(b"{}"))
            await ask(
                world,
                "POST",
                "/repos/o/r/issues?access_token=stolen",
                b"{}",
                "Authorization: token stolen",
                "Cookie: user_session=stolen",
                host="api.github.com",
            )
            override = "X-HTTP-Method-Override: DELETE"
            status, _, _ = await ask(
                world, "POST", "/repos/o/r/issues", b"{}", override, host="api.github.com"
            )
            assert status == 403
            (head, _), *more = world.rig.servers[0].requests
            assert not more
            assert b"stolen" not in head
            assert b"Cookie" not in head

    run(main)


def test_an_api_body_with_a_member_twice_is_refused():
    async def main():
        async with World(refs=("main",)) as world:
            await world.up(api_github_com=ok(b"{}"))
            body = b'{"ref": "refs/heads/dev", "ref": "refs/heads/main", "sha": "x"}'
            status, _, _ = await ask(world, "POST", "/repos/o/r/git/refs", body, host="api.github.com")
            assert status == 403
            assert world.rig.servers[0].connections == 0

    run(main)


def test_a_download_elsewhere_is_followed_only_where_an_allowed_answer_led():
    async def main():
        async with World() as world:

            async def redirect(head, _body, writer):
                writer.write(
                    f"HTTP/1.1 302 Found\r\nLocation: https://{SIGNED}/x?sig=1\r\nContent-Length: 0\r\n\r\n".encode()
                )

            await world.up(web=redirect, objects_githubusercontent_com=ok(b"object"))
            status, _, text = await ask(world, "GET", "/x?sig=1", host=SIGNED)
            assert status == 403
            assert b"handed out" in text
            status, fields, _ = await ask(world, "GET", "/o/r/releases/download/v1/a")
            # The gate does not follow by itself: nothing has arrived there.
            assert (302, f"https://{SIGNED}/x?sig=1") == (status, fields["location"])
            assert world.rig.servers[0].connections == 0
            status, _, text = await ask(
                world, "GET", "/x?sig=1", b"", "Authorization: Bearer stolen", host=SIGNED
            )
            assert (200, b"object") == (status, text)
            assert b"uthorization" not in world.rig.servers[0].requests[0][0]
            for method, target in (("GET", "/x?sig=2"), ("GET", "/x"), ("PUT", "/x?sig=1")):
                status, _, _ = await ask(world, method, target, host=SIGNED)
                assert status == 403
            status, _, _ = await ask(world, "GET", "/o/other/releases/download/v1/a")
            assert status == 403

    run(main)


def test_lfs_objects_move_by_the_urls_that_the_batch_gave_with_its_own_credential():
    cloud = "github-cloud.s3.amazonaws.com"
    header = {"Authorization": "AWS4-HMAC-SHA256 given"}
    given_out = {
        "objects": [
            {
                "oid": "1",
                "size": 1,
                "actions": {"upload": {"href": f"https://{cloud}/up?s=1", "header": header}},
            }
        ]
    }

    async def main():
        async with World() as world:
            await world.up(web=ok(json.dumps(given_out).encode()), github__cloud_s3_amazonaws_com=ok(b""))
            status, _, _ = await ask(world, "POST", "/o/r.git/info/lfs/objects/batch", batch("upload"))
            assert status == 200
            for authorization, sent in ((header["Authorization"], True), ("AWS4-HMAC-SHA256 stolen", False)):
                status, _, _ = await ask(
                    world, "PUT", "/up?s=1", b"x", f"Authorization: {authorization}", host=cloud
                )
                assert status == 200
                assert (b"uthorization" in world.rig.servers[0].requests[-1][0]) == sent

    run(main)


def test_further_pages_are_asked_for_by_the_number_that_the_first_page_named():
    link = b'Link: <https://api.github.com/repositories/77/issues?page=2>; rel="next"'

    async def main():
        async with World() as world:
            await world.up(api_github_com=ok(b"[]", link))
            page = "/repositories/77/issues?page=2"
            for target, status in ((page, 403), ("/repos/o/r/issues", 200), (page, 200)):
                got, _, text = await ask(world, "GET", target, host="api.github.com")
                assert status == got, text

    run(main)


def test_plain_http_and_protocol_changes_do_not_reach_github():
    async def main():
        async with World() as world:
            await world.up("o/r")
            status, _, _ = await ask(world, "GET", "/o/r", b"", "Connection: upgrade", "Upgrade: websocket")
            assert status == 403
            reader, writer = await asyncio.open_connection("127.0.0.1", world.rig.front("github.com", 80))
            writer.write(b"GET /o/r HTTP/1.1\r\nHost: github.com\r\n\r\n")
            status, _, _ = await asyncio.wait_for(answer(reader), 10)
            assert status == 403
            writer.close()

    run(main)


def test_bodies_that_wait_for_their_verdict_share_one_bound_and_give_it_back():
    async def main():
        async with World(refs=("main",)) as world:
            await world.up(web=ok(b"0000"), api_github_com=ok(b"{}"))
            room = world.rig.gate.context.room
            body = json.dumps({"branch": "main", "content": "x" * 5000}).encode()
            for left, status in ((4000, 403), (1 << 20, 200)):
                room._left = left
                got, _, _ = await ask(world, "PUT", "/repos/o/r/contents/a", body, host="api.github.com")
                assert (got, room._left) == (status, left)
                got, _, _ = await ask(world, "POST", RECEIVE, push("refs/heads/main"))
                assert (got, room._left) == (status, left)

    run(main)


def test_a_body_of_very_many_parts_is_not_read():
    async def main():
        async with World(refs=("main",)) as world:
            await world.up(api_github_com=ok(b"{}"))
            for body in (b'{"ref": ' + b"[" * 30000, b'{"ref": [' + b"1," * 300000):
                status, _, text = await ask(world, "POST", "/repos/o/r/git/refs", body, host="api.github.com")
                assert status == 403
                assert b"too many parts" in text

    run(main)
