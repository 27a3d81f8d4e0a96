"""
What the gate reads in a request is what servers read, or the gate refuses.

Two independent parsers, h11 and httptools, read the same bytes: those the client sent, and those the gate
sends on.  Where one of them accepts what the gate accepts, they must agree on every part.
"""

from __future__ import annotations

import h11
import httptools
import pytest
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from km_net_proxy.http.chunked import LAST_CHUNK, ChunkedDecoder, chunk
from km_net_proxy.http.exchange import request_head
from km_net_proxy.http.head import CHUNKED, HeadError, RequestHead, parse_request


@frozen
class Read:
    """One request as a parser reads it; *rest* is what it takes for the next one."""

    method: bytes
    target: bytes
    host: bytes
    body: bytes
    rest: bytes


class ReadByHttptools:
    """Callbacks of httptools."""

    def __init__(self):
        self.target = self.host = self.body = b""
        self.begun = self.done = 0
        self.method = b""

    def on_message_begin(self):
        self.begun += 1

    def on_url(self, url):
        if self.begun == 1:
            self.target += url

    def on_header(self, name, value):
        if self.begun == 1 and name.lower() == b"host":
            self.host = value.strip()

    def on_headers_complete(self):
        if self.begun == 1:
            self.method = self.parser.get_method()

    def on_body(self, data):
        if self.begun == 1:
            self.body += data

    def on_message_complete(self):
        self.done += 1


def by_gate(raw):
    """Read as the gate does; returns the request with its head, or None."""
    end = raw.find(b"\r\n\r\n") + 4
    if end < 4:
        return None
    try:
        head = parse_request(raw[:end])
        body = raw[end:]
        if head.length == CHUNKED:
            decoder = ChunkedDecoder()
            body = decoder.feed(body)
            if not decoder.done:
                return None
            rest = decoder.rest
        else:
            if len(body) < head.length:
                return None
            body, rest = body[: head.length], body[head.length :]
    except HeadError:
        return None
    host = head.index.get(b"host", b"")
    return head, Read(head.method.encode(), head.target.encode(), host, body, rest)


def by_h11(raw):
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(raw)
    request, body = None, b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return None
    except h11.RemoteProtocolError:
        return None
    host = dict(request.headers).get(b"host", b"")
    return Read(request.method, request.target, host, bytes(body), bytes(connection.trailing_data[0]))


def by_httptools(raw):
    seen = ReadByHttptools()
    parser = seen.parser = httptools.HttpRequestParser(seen)
    try:
        parser.feed_data(raw)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    if not seen.done:
        return None
    rest = None if seen.begun > 1 else b""
    return Read(seen.method, seen.target, seen.host, seen.body, rest)


def disagreements(raw, read):
    other = by_h11(raw)
    if other is not None and other != read:
        yield "h11", other
    other = by_httptools(raw)
    if other is not None:
        # It goes on with the next request by itself: that there is one is all it says.
        same = Read(other.method, other.target, other.host, other.body, read.rest) == read
        if not same or (other.rest == b"") is not (read.rest.strip(b"\r\n") == b""):
            yield "httptools", other


def sent_on(head: RequestHead, read: Read) -> bytes:
    """Return what the gate sends for a request in origin form."""
    path = read.target.decode()
    out = request_head(head, path, "web.test", head.fields)
    if head.length == CHUNKED:
        return out + (chunk(read.body) if read.body else b"") + LAST_CHUNK
    return out + read.body


EOL = st.sampled_from([b"\n", b"\r", b"\r\r\n", b"\r\n ", b"\r\n\t", b"\x0b\r\n", b"\0\r\n"])
LINES = st.sampled_from(
    [
        b"Host: web.test", b"host:web.test", b"Host: web.test:80", b"Host : web.test", b"Host:\tweb.test \t",
        b"Host: other.test", b"Host: web.test, other.test", b"Host:", b"Ho\x00st: a", b"X-Host: other.test",
        b"Content-Length: 5", b"Content-Length: 05", b"Content-Length: 5, 5", b"Content-Length: +5",
        b"Content-Length: -5", b"Content-Length: 5 5", b"Content-Length: 0x5", b"Content-Length: 5_0",
        b"Content-Length:5\x0b", b"Content-Length: 3", b"Content-Length: ", b"Content_Length: 7",
        b"Content-Length\t: 5", b"content-length: 5", b"Content-Length: 99999999999999999999",
        b"Transfer-Encoding: chunked", b"Transfer-Encoding: Chunked", b"Transfer-Encoding:\tchunked",
        b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding: identity, chunked",
        b"Transfer-Encoding: xchunked", b"Transfer-Encoding: chunked;q=1", b'Transfer-Encoding: "chunked"',
        b"Transfer-Encoding: \x0bchunked", b"Transfer-Encoding: chunked\x0c", b"Transfer-Encoding : chunked",
        b"Transfer-Encoding:", b"Transfer_Encoding: chunked", b"TE: trailers", b"Trailer: Host",
        b" Transfer-Encoding: chunked", b"X: a\r\n b", b"X: \x80\xff", b"X:", b": x", b"X", b"X\xe9: 1",
        b"Connection: close", b"Connection: keep-alive, Host", b"Connection: Content-Length",
        b"Expect: 100-continue", b"Upgrade: h2c", b"Connection: Upgrade", b"HTTP2-Settings: AA", b"GET / HTTP/1.1",
    ]
)  # fmt: skip
FIRST = st.sampled_from(
    [b"POST / HTTP/1.1"] * 20
    + [
        b"GET /a?b=c HTTP/1.1", b"GET / HTTP/1.0", b"HEAD / HTTP/1.1", b"get / HTTP/1.1", b"GET  / HTTP/1.1",
        b"GET / HTTP/1.1 ", b" GET / HTTP/1.1", b"GET /\tx HTTP/1.1", b"GET / HTTP/2.0", b"GET / http/1.1",
        b"GET /", b"GET /#f HTTP/1.1", b"GET /\x7f HTTP/1.1", b"GET /\x80 HTTP/1.1", b"G\xc3T / HTTP/1.1",
        b"GET http://web.test/ HTTP/1.1", b"OPTIONS * HTTP/1.1", b"PRI * HTTP/2.0", b"GET / HTTP/1.10",
        b"GET /\\..\\x HTTP/1.1", b"GET / HTTP/01.1", b"POST /%2f%00 HTTP/1.1", b"GET / HTTP/1.1\x0b",
        b"PURGE / HTTP/1.1", b"X!#$ / HTTP/1.1", b"GET /\r HTTP/1.1",
    ]
)  # fmt: skip
BODY = st.sampled_from(
    [
        b"", b"hello", b"helloGET /2 HTTP/1.1\r\nHost: b\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"0\r\n\r\n",
        b'5;x="a\r\nhello\r\n0\r\n\r\n', b"5;x\nhello\r\n0\r\n\r\n", b"5 \r\nhello\r\n0\r\n\r\n", b"5\nhello\n0\n\n",
        b"05\r\nhello\r\n00\r\n\r\n", b"5\r\nhello\r\n0\r\nHost: evil\r\n\r\n", b"5\r\nhelloX\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n", b"5\r\nhello0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\nGET /2 HTTP/1.1\r\nHost: b\r\n\r\n",
        b"5\r\nhello\r\n0\r\nX: 1\r\n\r\n", b"10000000000000005\r\nhello\r\n0\r\n\r\n", b"5\r\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n0\r\n\n", b"5\r\nhello\r\n0\r\n \r\n\r\n", b"5;\r\nhello\r\n0;a\r\n\r\n", b"\r\n\r\n",
    ]
)  # fmt: skip


NAME = st.text("abcXYZ019-_!#", min_size=1, max_size=5).map(str.encode)
METHOD = st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH"])
PATH = st.text("abc/?&=%2eF~:@!$'()*+,;.-_[]{}|^`<>\\\"", max_size=12).map(str.encode)
WELL_FRAMED = st.sampled_from(
    [
        ((), b""),
        ((b"Content-Length: 5",), b"hello"),
        ((b"Content-Length: 0",), b""),
        ((b"Transfer-Encoding: chunked",), b"5\r\nhello\r\n0\r\n\r\n"),
        ((b"Transfer-Encoding: chunked",), b"3;x=y\r\nabc\r\n00002\r\nde\r\n0\r\nX-Trailer: 1\r\n\r\n"),
    ]
)
NEXT = st.sampled_from([b"", b"", b"", b"GET /2 HTTP/1.1\r\nHost: b\r\n\r\n", b"\r\n", b"x"])


@st.composite
def requests(draw):
    """A request that is in order but for at most three parts of it."""
    odd = draw(st.integers(0, 3))
    first = draw(FIRST) if odd == 3 else draw(METHOD) + b" /" + draw(PATH) + b" HTTP/1.1"
    framing, body = draw(WELL_FRAMED)
    plain = [b"X-%b: %b" % field for field in draw(st.lists(st.tuples(NAME, PATH), max_size=3))]
    lines = [b"Host: web.test", *plain, *framing]
    for _ in range(odd):
        lines.insert(draw(st.integers(0, len(lines))), draw(LINES))
    if odd and draw(st.booleans()):
        body = draw(BODY)
    ends = [b"\r\n"] * (len(lines) + 2)
    if odd > 1:
        ends[draw(st.integers(0, len(ends) - 1))] = draw(EOL)
    raw = b"".join(line + end for line, end in zip([first, *lines, b""], ends, strict=True))
    return raw + body + draw(NEXT)


@settings(max_examples=1500)
@given(requests())
def test_whatever_passes_is_read_alike_before_and_after_the_gate(raw):
    found = by_gate(raw)
    if found is None:
        return
    head, read = found
    assert list(disagreements(raw, read)) == []
    if not read.target.startswith(b"/"):
        return
    again = sent_on(head, read)
    expected = Read(read.method, read.target, b"web.test", read.body, b"")
    assert list(disagreements(again, expected)) == []
    assert by_gate(again)[1] == expected


PREFIX = b"POST / HTTP/1.1\r\nHost: web.test\r\n"
ORDINARY = {
    "no body": b"GET /a?b HTTP/1.1\r\nHost: web.test\r\nUser-Agent: x/1 (y; z)\r\nAccept: */*\r\n\r\n",
    "a length": PREFIX + b"Content-Length: 5\r\n\r\nhello",
    "chunks": PREFIX + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "an extension": PREFIX + b"Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n",
    "letters beyond ASCII": PREFIX + b"X-Name: caf\xc3\xa9\r\nContent-Length: 0\r\n\r\n",
    "an empty field": PREFIX + b"X-Empty:\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("raw", ORDINARY.values(), ids=ORDINARY)
def test_ordinary_requests_are_understood_by_all_three(raw):
    head, read = by_gate(raw)
    assert by_h11(raw) == read
    assert by_httptools(raw) == read
    for parser in (by_h11, by_httptools):
        assert parser(sent_on(head, read)) == read
