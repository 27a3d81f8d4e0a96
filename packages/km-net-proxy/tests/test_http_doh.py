"""DNS over HTTPS is told where the gate reads HTTP, and nothing else is taken for it."""

from __future__ import annotations

import asyncio
import base64

import pytest
from gate_rig import WEB, HostRule, Rig, answer, ok, run
from hypothesis import given
from hypothesis import strategies as st

from km_core.secrets import CredentialRule
from km_net_proxy.http.doh import asks_resolver
from km_net_proxy.http.head import parse_request

QUERY = (
    base64.urlsafe_b64encode(b"\0\0\1\0\0\1\0\0\0\0\0\0\3www\7example\3com\0\0\1\0\1").decode().rstrip("=")
)


def asks(path="/", *fields, method="GET"):
    lines = "".join(f"{field}\r\n" for field in fields)
    request = parse_request(f"{method} {path} HTTP/1.1\r\nHost: a\r\n{lines}\r\n".encode("latin-1"))
    return asks_resolver(request, path)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/", ("Accept: application/dns-message",)),
        ("/", ("Accept: text/html, Application/DNS-Message;q=0.5",)),
        ("/", ("Accept: */*", "Accept: application/dns-json")),
        ("/x", ("Content-Type: application/dns-message",)),
        ("/x", ("content-type: application/dns-message; charset=x",)),
        ("/x", ("Content-Type: application/oblivious-dns-message",)),
        ("/dns-query?dns=", ()),
        ("/dns-query?ct&dns=AAAB", ()),
        ("/a/DNS%2Dquery/?%64ns=x", ()),
        (f"/hidden?a=b&dns={QUERY}", ()),
        (f"/hidden?a=b;dns={QUERY}==", ()),
        (f"/?DNS={QUERY.replace('A', '%41')}", ()),
    ],
)
def test_a_question_for_a_resolver_is_told(path, fields):
    assert asks(path, *fields)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/", ("Accept: application/json",)),
        ("/", ("Content-Type: application/dns",)),
        ("/dns-query", ()),
        ("/?q=dns", ()),
        ("/settings?dns=8.8.8.8", ()),
        ("/zones?dns=example.com", ()),
        ("/?dns=", ()),
        ("/docs?x=dns-query", ()),
    ],
)
def test_other_requests_are_not(path, fields):
    assert not asks(path, *fields)


@given(st.text(st.characters(min_codepoint=0x24, max_codepoint=0x7E), max_size=60))
def test_no_path_does_anything_but_be_answered(path):
    assert asks("/" + path) in (True, False)


@pytest.mark.parametrize("opened", [False, True])
def test_it_is_refused_on_plain_and_on_opened_hosts_with_the_next_step(opened):
    async def main():
        rules = [CredentialRule(WEB, "web-token")] if opened else []
        async with Rig(credentials=rules) as rig:
            rig.kmd.secrets["web-token"] = "x"
            server = await rig.serve(WEB, ok(), tls=opened)
            await rig.up()
            if opened:
                reader, writer = await rig.tls(WEB)
            else:
                reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(WEB, 80))
            writer.write(f"GET /q?dns={QUERY} HTTP/1.1\r\nHost: {WEB}\r\n\r\n".encode())
            status, fields, body = await answer(reader)
            assert status == 403
            assert "builtin:dns-over-https" in fields["x-km-denied"]
            assert b"own resolver" in body
            assert b"km allow" not in body
            # The connection is in step, and what is no question passes.
            writer.write(f"GET /q HTTP/1.1\r\nHost: {WEB}\r\n\r\n".encode())
            assert (await answer(reader))[0] == 200
            assert len(server.requests) == 1
            writer.close()

    run(main)


def test_a_public_resolver_that_the_profile_names_exactly_is_reached():
    async def main():
        async with Rig(hosts=[HostRule("dns.google", "exact")]) as rig:
            server = await rig.serve("dns.google", ok(), tls=False, cert=WEB)
            await rig.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front("dns.google", 80))
            writer.write(f"GET /dns-query?dns={QUERY} HTTP/1.1\r\nHost: dns.google\r\n\r\n".encode())
            assert (await answer(reader))[0] == 200
            assert len(server.requests) == 1
            writer.close()

    run(main)
