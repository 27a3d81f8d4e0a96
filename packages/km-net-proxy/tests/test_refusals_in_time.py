"""What a refused client sees, and how soon: curl and Python, on every layer that can speak."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import sys
import time

import pytest
from gate_rig import AI, SANDBOX, WEB, AddressRule, HostRule, Rig, answer, ok, run

from km_net_proxy.http.refusal import ACCESS_DENIED

SOON_S = 0.05
GET = b"GET /x HTTP/1.1\r\nHost: %b\r\n\r\n"


async def first_answer(port, data, context=None, name=None):
    """Return what comes back and after how many seconds, from the last byte sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
    began = time.perf_counter()
    writer.write(data)
    received = b""
    with contextlib.suppress(ConnectionResetError):
        received = await asyncio.wait_for(reader.read(65536), 10)
    took = time.perf_counter() - began
    writer.close()
    return received, took


CASES = {
    "denied name, transparent": ("denied.test", 80, GET % b"denied.test", b"HTTP/1.1 403 "),
    "denied name, CONNECT": ("proxy", 0, b"CONNECT denied.test:443 HTTP/1.0\r\n\r\n", b"HTTP/1.1 403 "),
    "denied port, CONNECT": ("proxy", 0, b"CONNECT web.test:22 HTTP/1.0\r\n\r\n", b"HTTP/1.1 403 "),
    "denied address, CONNECT": ("proxy", 0, b"CONNECT 10.0.0.1:443 HTTP/1.0\r\n\r\n", b"HTTP/1.1 403 "),
    "denied URL": ("proxy", 0, b"GET http://denied.test/ HTTP/1.1\r\nHost: denied.test\r\n\r\n", b"HTTP/1.1 403 "),
    "another host": (WEB, 80, GET % b"other.test", b"HTTP/1.1 421 "),
    "a malformed request": (WEB, 80, b"GET / HTTP/1.1\nHost: web.test\n\n", b"HTTP/1.1 400 "),
    "an upgrade": (WEB, 80, b"GET / HTTP/1.1\r\nHost: web.test\r\nUpgrade: spdy/3\r\n\r\n", b"HTTP/1.1 403 "),
    "a false upgrade": (WEB, 80, b"GET / HTTP/1.1\r\nHost: web.test\r\nUpgrade: websocket\r\n\r\n", b"HTTP/1.1 400 "),
    "DNS over HTTPS": (WEB, 80, b"GET / HTTP/1.1\r\nHost: web.test\r\nAccept: application/dns-message\r\n\r\n", b"HTTP/1.1 403 "),
    "CONNECT with a body": ("proxy", 0, b"CONNECT web.test:443 HTTP/1.1\r\nHost: web.test:443\r\nContent-Length: 3\r\n\r\nabc", b"HTTP/1.1 400 "),
    "CONNECT after a request": (WEB, 80, b"CONNECT web.test:443 HTTP/1.1\r\nHost: web.test:443\r\n\r\n", b"HTTP/1.1 405 "),
    "a proxy request without a URL": ("proxy", 0, GET % b"web.test", b"HTTP/1.1 400 "),
    "https only by plain HTTP": (AI, 80, GET % AI.encode(), b"HTTP/1.1 403 "),
    "TLS to a denied name": ("denied.test", 443, b"\x16\x03\x01\0\x05hello", ACCESS_DENIED),
    "HTTP to a denied port": (WEB, 8080, GET % b"web.test:8080", b"HTTP/1.1 403 "),
    "HTTP to 443 of a denied name": ("denied.test", 443, GET % b"denied.test", b"HTTP/1.1 403 "),
    "TLS to a denied port": (WEB, 8443, b"\x16\x03\x01\0\x05hello", ACCESS_DENIED),
    "a client that waits on a denied port": (WEB, 25, b"", b""),
    "no TLS on 443": (WEB, 443, b"SSH-2.0-x\r\n", b""),
    "HTTP/2 without TLS": (WEB, 80, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"HTTP/1.1 400 "),
}  # fmt: skip


@pytest.fixture(scope="module")
def timed():
    results = {}

    async def main():
        async with Rig() as rig:
            await rig.serve(WEB, ok(), tls=False)
            await rig.up()
            for label, (name, port, data, _) in CASES.items():
                front = rig.proxy() if name == "proxy" else rig.front(name, port)
                # A loaded machine is slow now and then; a gate that waits for something is slow always.
                results[label] = [await first_answer(front, data) for _ in range(5)]

    run(main)
    return results


@pytest.mark.parametrize("label", CASES)
def test_a_denial_comes_at_once_and_says_what_the_protocol_can(timed, label):
    received, _ = timed[label][0]
    expected = CASES[label][3]
    assert received.startswith(expected)
    assert expected or received == b""
    assert min(took for _, took in timed[label]) < SOON_S
    if expected.startswith(b"HTTP/1.1 "):
        head, _, body = received.decode().partition("\r\n\r\n")
        if not body.startswith("{"):
            for part in ("sandbox:", "host:", "layer:", "rule:", "next:", SANDBOX):
                assert part in body
        else:
            members = json.loads(body)
            assert members["sandbox"] == SANDBOX
            assert {"error", "message", "host", "layer", "rule", "next"} <= set(members)
        [denied] = [line for line in head.split("\r\n") if line.startswith("X-Km-Denied: ")]
        for part in ("rule=builtin:", "layer=", "host=", f"sandbox={SANDBOX}"):
            assert part in denied
        assert "\r\nX-Km-Next: " in head


def test_curl_shows_why_a_tunnel_was_refused():
    async def main():
        async with Rig() as rig:
            await rig.up()
            process = await asyncio.create_subprocess_exec(
                "curl", "-sv", "-m", "10", "-x", f"http://127.0.0.1:{rig.proxy()}", "https://denied.test/",
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            _, err = await process.communicate()
            assert process.returncode == 56
            assert b"rule=builtin:default-deny; layer=connect; host=denied.test:443" in err
            assert (
                f"X-Km-Next: the operator can open it for a time with `km allow {SANDBOX} denied.test ".encode()
                in err
            )

    run(main)


def test_python_gets_the_reason_of_a_refused_request():
    code = (
        "import sys, urllib.request, urllib.error\n"
        "opener = urllib.request.build_opener(urllib.request.ProxyHandler({'http': sys.argv[1]}))\n"
        "try:\n opener.open('http://denied.test:8080/', timeout=10)\n"
        "except urllib.error.HTTPError as error:\n"
        " print(error.code, error.headers['X-Km-Denied'], error.read().decode())\n"
    )

    async def main():
        async with Rig(hosts=[HostRule("denied.test", "exact")]) as rig:
            await rig.up()
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", code, f"http://127.0.0.1:{rig.proxy()}", stdout=asyncio.subprocess.PIPE
            )
            out, _ = await process.communicate()
            assert out.startswith(b"403 rule=builtin:port; layer=http; host=denied.test:8080")
            assert (
                f"`km allow {SANDBOX} denied.test:8080 --for 30m`, or add denied.test:8080 to".encode() in out
            )

    run(main)


def test_an_opened_host_refuses_in_the_same_words():
    async def main():
        async with Rig() as rig:
            await rig.serve(AI, ok())
            await rig.up()
            reader, writer = await rig.tls(AI)
            writer.write(GET % b"other.test")
            status, fields, body = await answer(reader)
            assert status == 421
            assert fields["x-km-denied"].startswith(
                "rule=builtin:host-mismatch; layer=http; host=other.test:443"
            )
            assert b"Blocked by km sandbox policy" in body
            writer.close()

    run(main)


def test_a_name_that_is_no_text_comes_back_as_text_only():
    async def main():
        async with Rig(addresses=[AddressRule("192.0.2.0/24", (443,))]) as rig:
            await rig.up()
            context = ssl.create_default_context()
            with pytest.raises(ssl.SSLError, match="ACCESS_DENIED"):
                await first_answer(rig.front("192.0.2.7", 443), b"", context, AI)
            port = rig.proxy()
            received, _ = await first_answer(port, b"CONNECT a\x1b]0;x\x07:443 HTTP/1.1\r\nHost: a\r\n\r\n")
            assert received.startswith(b"HTTP/1.1 400 ")
            assert b"\x1b" not in received

    run(main)


@pytest.mark.parametrize(
    ("target", "entry"),
    [
        ("denied.test:443", "denied.test"),
        ("denied.test:80", "denied.test"),
        ("denied.test:22", "denied.test:22"),
        ("web.test:22", "web.test:22"),
        ("203.0.113.7:443", "203.0.113.7"),
        ("203.0.113.7:22", "203.0.113.7:22"),
        ("[2001:4860:4860::8888]:443", "[2001:4860:4860::8888]:443"),
        ("10.0.0.1:443", "10.0.0.1"),
        ("dns.google:443", "dns.google"),
        # What no entry opens is not offered.
        ("127.0.0.1:443", ""),
        ("169.254.169.254:80", ""),
        ("198.18.0.1:80", ""),
        ("localhost:443", ""),
        ("km.internal:443", ""),
        ("a.km.internal:443", ""),
        ("api.mistral.ai:443", ""),
        (f"{AI}:443", ""),
        ("two..dots:443", ""),
    ],
)
def test_an_allow_is_offered_exactly_where_it_would_help(target, entry):
    async def main():
        async with Rig(hosts=[HostRule(WEB, "exact")], limit=5) as rig:
            await rig.up()
            ask = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode()
            received, _ = await first_answer(rig.proxy(), ask)
            offered = received.decode().partition("`km allow ")[2].partition("`")[0]
            assert offered == (f"{SANDBOX} {entry} --for 30m" if entry else "")

    run(main)
