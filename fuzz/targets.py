"""
Fuzz targets: what reads bytes of a sandbox, and what must hold whatever they are.

A target takes bytes and returns nothing; anything it raises is a finding.  The suite calls each with
hypothesis, `scripts/fuzz` with atheris, for as long as somebody wants.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from km_core.audit.verify import verify_dir
from km_core.policy import parse_authority
from km_net_proxy.dns.answer import MalformedError, read_query
from km_net_proxy.dns.reply import read_reply
from km_net_proxy.git.commands import CommandError, CommandList
from km_net_proxy.http.chunked import ChunkedDecoder
from km_net_proxy.http.coding import CodingError, decode_whole
from km_net_proxy.http.doh import asks_resolver
from km_net_proxy.http.exchange import request_head
from km_net_proxy.http.head import (
    HeadError,
    check_partial,
    check_partial_response,
    parse_request,
    parse_response,
)
from km_net_proxy.http.hello import ClientHello, HelloError, read_client_hello
from km_net_proxy.http.relay import PASS, WATCH
from km_net_proxy.http.second_hello import SecondHello
from km_net_proxy.http.websocket import accept_for

if TYPE_CHECKING:
    from collections.abc import Callable

_LIMIT = 1 << 20


def client_hello(data: bytes) -> None:
    """A hello is read, refused or asked on for; more bytes never change what was read."""
    try:
        found = read_client_hello(data)
    except HelloError:
        return
    if isinstance(found, int):
        assert found > len(data)
        return
    assert found.size <= len(data)
    assert read_client_hello(data + b"\x17\x03\x03\0\x01x") == found
    assert isinstance(read_client_hello(data[: found.size - 1]), int)


def second_hello(data: bytes) -> None:
    """Whatever follows a hello moves, waits or is refused; another name never moves."""

    def judge(found: ClientHello) -> None:
        if found.sni != "a.example":
            raise HelloError("another name")

    watch = SecondHello(judge)
    watch.begin(ClientHello("a.example", (), ech=False, size=0, early_data=True))
    half = data[0] if data else 0
    with contextlib.suppress(HelloError):
        watch.down(data[1 : 1 + half])
        verdict = watch.up(data[1 + half :])
        assert verdict in (PASS, WATCH) or verdict > len(data) - 1 - half


def http_request(data: bytes) -> None:
    """A head is refused, or says the same when it is written out again for the server."""
    head = data + b"\r\n\r\n"
    try:
        request = parse_request(head)
    except HeadError:
        return
    check_partial(data)
    again = parse_request(request_head(request, "/", "h", request.fields))
    assert (again.method, again.length) == (request.method, request.length)
    assert set(again.index) <= {*request.index, b"host", b"content-length", b"transfer-encoding"}


def http_response(data: bytes) -> None:
    """A head is refused or read, and what is read whole is not refused while it comes."""
    with contextlib.suppress(HeadError):
        parse_response(data + b"\r\n\r\n")
        check_partial_response(data)


def http_judging(data: bytes) -> None:
    """Whatever a head holds, it is DNS over HTTPS or not, and a WebSocket handshake or refused."""
    with contextlib.suppress(HeadError):
        request = parse_request(data + b"\r\n\r\n")
        asks_resolver(request, request.target)
        assert len(accept_for(request)) == 28


def http_chunks(data: bytes) -> None:
    """However the coded bytes are split, they decode to the same or are refused."""

    def decode(step: int) -> tuple[bytes, bytes] | None:
        decoder, out, at = ChunkedDecoder(), b"", 0
        try:
            while at < len(data) and not decoder.done:
                out += decoder.feed(data[at : at + step])
                at += step
        except HeadError:
            return None
        return (out, decoder.rest + data[at:]) if decoder.done else (out, b"")

    assert decode(1) == decode(max(len(data), 1))


def authority(data: bytes) -> None:
    """What is accepted is accepted again as it is written, and stays the same."""
    try:
        found = parse_authority(data.decode("latin-1"), 80)
    except ValueError:
        return
    assert parse_authority(str(found), None) == found


def content_coding(data: bytes) -> None:
    """A coded body decodes within the limit or is refused."""
    names = ("gzip", "deflate", "br", "zstd")
    with contextlib.suppress(CodingError):
        assert len(decode_whole(names[data[0] % 4] if data else "", data[1:], _LIMIT)) <= _LIMIT


def dns_query(data: bytes) -> None:
    """A query is read or refused."""
    with contextlib.suppress(MalformedError):
        read_query(data)


def dns_reply(data: bytes) -> None:
    """A reply to a question that was asked is read or refused."""
    question = b"\x01a\x03com\0\0\x01\0\x01"
    packet = data[:12].ljust(12, b"\0") + question + data[12:]
    with contextlib.suppress(MalformedError):
        read_reply(packet, 12 + len(question), 1)


def git_push(data: bytes) -> None:
    """However a push's head is split, it names the same refs or is refused."""

    def read(step: int) -> object:
        commands = CommandList()
        try:
            for at in range(0, len(data), step):
                commands.feed(data[at : at + step])
        except CommandError:
            return None
        return commands.done, commands.commands, commands.capabilities

    assert read(1) == read(max(len(data), 1))


def audit_chain(data: bytes) -> None:
    """A file that was tampered with is reported, never an error."""
    with tempfile.TemporaryDirectory(prefix="kf") as name:
        directory = Path(name)
        (directory / "gate.jsonl").write_bytes(data)
        (directory / "checkpoints.jsonl").write_bytes(data[::2])
        report = verify_dir(directory, None)
        assert not report.ok or not data


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        client_hello,
        second_hello,
        http_request,
        http_response,
        http_judging,
        http_chunks,
        authority,
        content_coding,
        dns_query,
        dns_reply,
        git_push,
        audit_chain,
    )
}

_BODY = b"\x03\x03" + bytes(32) + b"\0\0\x02\x13\x01\x01\0\0\x0e" + b"\0\0\0\x0a\0\x08\0\0\x05a.com"
_HELLO = (
    b"\x16\x03\x01" + (len(_BODY) + 4).to_bytes(2, "big") + b"\x01" + len(_BODY).to_bytes(3, "big") + _BODY
)
_QUERY = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\x03com\0\0\x01\0\x01"
SEEDS: dict[str, list[bytes]] = {
    "client_hello": [_HELLO, _HELLO[:40]],
    "second_hello": [b"\0" + _HELLO, b"\x06\x14\x03\x03\0\x01\x01" + _HELLO],
    "http_request": [b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 3", b"POST / HTTP/1.1\r\nHost: h"],
    "http_response": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", b"HTTP/1.0 304 "],
    "http_judging": [
        b"GET /dns-query?dns=AAAB HTTP/1.1\r\nHost: h\r\nAccept: application/dns-message",
        (b"GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: c2l4dGVlbiBieXRlcyBvaw=="),
    ],
    "http_chunks": [b"5;a=b\r\nhello\r\n0\r\nX: 1\r\n\r\nrest", b"0\r\n\r\n"],
    "authority": [b"a.example:80", b"[2001:db8::1]:443", b"0x7f.1"],
    "content_coding": [b"\0\x1f\x8b\x08", b"\x02\x0b\x02\x80abc\x03", b"\x03\x28\xb5\x2f\xfd"],
    "dns_query": [_QUERY],
    "dns_reply": [b"\x12\x34\x81\x80\0\x01\0\x01\0\0\0\0\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\1\2\3\4"],
    "git_push": [b"0067" + b"0" * 40 + b" " + b"1" * 40 + b" refs/heads/main\0 a0000", b"0000"],
    "audit_chain": [b'{"seq": 1, "hash": "0", "prev": "0"}\n', b"\xff\n"],
}  # fmt: skip
"""Inputs to begin with."""
