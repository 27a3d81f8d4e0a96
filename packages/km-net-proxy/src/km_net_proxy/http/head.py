"""
A strict sans-IO parser of HTTP/1.1 message heads (RFC 9112, spec/network.md section 4.4).

Whatever two implementations could read in two ways is refused, since the gate judges a request that
another server then reads: conflicting lengths, folded or malformed field lines, bare CR or LF, NUL,
repeated ``Host``.  A head is matched as a whole by one expression, which is what makes it both strict
and fast.
"""

from __future__ import annotations

import re

from attrs import define

MAX_HEAD = 65536
"""Longest head, in bytes, including the empty line."""
MAX_FIELDS = 100
_BEGUN = 512

CHUNKED = -1
"""Framing: the body comes in chunks."""
UNTIL_CLOSE = -2
"""Framing of a response: the body ends with the connection."""

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_TEXT = rb"[\t\x20-\x7e\x80-\xff]"
# No "#": a request target has no fragment, and servers differ in where its path would end.
_TARGET = rb"[\x21\x22\x24-\x7e]"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb"{1,32}) (" + _TARGET + rb"+) HTTP/1\.([01])\r\n")
_REQUEST_LINE_BEGUN = re.compile(
    rb"(?:"
    + _TOKEN
    + rb"{0,32}|"
    + _TOKEN
    + rb"{1,32} (?:"
    + _TARGET
    + rb"*|"
    + _TARGET
    + rb"+ [HTP/1.0]{0,8}\r?))\Z"
)
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: (" + _TEXT + rb"*))?\r\n")
_FIELD_LINES = re.compile(rb"(?:" + _TOKEN + rb"+:" + _TEXT + rb"*\r\n)*\r\n\Z")
_FIELD = re.compile(
    rb"(" + _TOKEN + rb"+):[ \t]*([\x21-\x7e\x80-\xff](?:" + _TEXT + rb"*[\x21-\x7e\x80-\xff])?)?[ \t]*\r\n"
)
_LENGTH = re.compile(rb"[0-9]{1,18}\Z")

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-authentication-info",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
"""Fields that concern one connection only (RFC 9110 section 7.6.1) and never pass the gate."""

_END_TO_END = frozenset({b"host", b"content-length", b"content-type", b"content-encoding"})
"""Fields by which a message is read; a client that has them dropped shows the server another message."""

_OVERRIDES = frozenset(
    {
        b"x-http-method-override",
        b"x-http-method",
        b"x-method-override",
        b"x-original-url",
        b"x-rewrite-url",
        b"x-original-uri",
    }
)


class HeadError(ValueError):
    """The bytes are not one unambiguous HTTP/1.1 head; the text is safe to log."""


@define(slots=True)
class RequestHead:
    """
    A request's head.

    Attributes:
        method: as sent; methods are case-sensitive.
        target: the raw request target.
        minor: 1 for HTTP/1.1, 0 for HTTP/1.0.
        fields: names and values as sent, values without surrounding white space.
        index: lower-case name to value, repeated fields joined with a comma.
        length: bytes of body, or `CHUNKED`.
        keep_alive: whether the client wants the connection kept.
    """

    method: str
    target: str
    minor: int
    fields: list[tuple[bytes, bytes]]
    index: dict[bytes, bytes]
    length: int
    keep_alive: bool

    def headers(self) -> dict[str, str]:
        """Return lower-case names and values as text, as meters want them."""
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in self.index.items()}


@define(slots=True)
class ResponseHead:
    """A response's head; *length* is for a request other than HEAD and CONNECT."""

    status: int
    reason: bytes
    minor: int
    fields: list[tuple[bytes, bytes]]
    index: dict[bytes, bytes]
    length: int
    keep_alive: bool

    def headers(self) -> dict[str, str]:
        """Return lower-case names and values as text."""
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in self.index.items()}


def check_partial(data: bytes) -> None:
    """
    Look at a request head that is not complete yet, so that a hopeless one is refused at once.

    Raises:
        HeadError: a line ends in a bare LF, or the first line is no request line (HTTP/0.9, TLS, SSH).
    """
    if data.count(b"\n") != data.count(b"\r\n"):
        raise HeadError("a line ends in a bare LF")
    end = data.find(b"\r\n")
    # The start of a line is enough: looking at ever more of a long one, byte by byte, would be work.
    known = _REQUEST_LINE_BEGUN.match(data[:_BEGUN]) if end < 0 else _REQUEST_LINE.match(data, 0, end + 2)
    if known is None:
        raise HeadError("the request line is malformed")


def check_partial_response(data: bytes) -> None:
    """
    Look at a response head that is not complete yet: one that is none may never end.

    Raises:
        HeadError: a line ends in a bare LF, or it does not begin as HTTP/1 does (HTTP/0.9, another protocol).
    """
    if data.count(b"\n") != data.count(b"\r\n") or not data[:7] == b"HTTP/1."[: len(data)]:
        raise HeadError("the answer is no HTTP/1 head")


def parse_request(head: bytes) -> RequestHead:
    """
    Parse a request head.

    Args:
        head: everything up to and including the first empty line.

    Raises:
        HeadError: it is malformed or ambiguous.
    """
    match = _REQUEST_LINE.match(head)
    if match is None:
        raise HeadError("the request line is malformed")
    fields, index = _fields(head, match.end())
    minor = 1 if match[3] == b"1" else 0
    if minor and b"host" not in index:
        raise HeadError("the Host field is missing")
    if not _END_TO_END.isdisjoint(connection_options(index)):
        raise HeadError("Connection names a field of the message itself")
    length = _framing(index, minor)
    return RequestHead(
        match[1].decode("ascii"),
        match[2].decode("ascii"),
        minor,
        fields,
        index,
        0 if length is None else length,
        _keep_alive(index, minor),
    )


def parse_response(head: bytes) -> ResponseHead:
    """
    Parse a response head.

    Raises:
        HeadError: it is malformed or ambiguous.
    """
    match = _STATUS_LINE.match(head)
    if match is None:
        raise HeadError("the status line is malformed")
    fields, index = _fields(head, match.end())
    minor = 1 if match[1] == b"1" else 0
    status = int(match[2])
    length = _framing(index, minor)
    if status < 200 or status in (204, 304):
        length = 0  # whatever the fields say (RFC 9112 section 6.3)
    return ResponseHead(
        status,
        match[3] or b"",
        minor,
        fields,
        index,
        UNTIL_CLOSE if length is None else length,
        _keep_alive(index, minor) and length is not None,
    )


def connection_options(index: dict[bytes, bytes]) -> frozenset[bytes]:
    """Return the lower-case names listed in ``Connection``: hop-by-hop by the sender's word."""
    value = index.get(b"connection")
    if not value:
        return frozenset()
    return frozenset(item.strip().lower() for item in value.split(b","))


def as_read(name: bytes) -> bytes:
    """Return a field's name as some servers read it: without regard to case, an underscore as a hyphen."""
    return name.lower().replace(b"_", b"-")


def overridden(index: dict[bytes, bytes]) -> bool:
    """Say whether fields tell a server to take another method or path than the request line's."""
    return not _OVERRIDES.isdisjoint(map(as_read, index))


def _fields(head: bytes, start: int) -> tuple[list[tuple[bytes, bytes]], dict[bytes, bytes]]:
    if len(head) > MAX_HEAD:
        raise HeadError("the head is too long")
    if _FIELD_LINES.match(head, start) is None:
        raise HeadError("a field line is malformed")
    fields: list[tuple[bytes, bytes]] = _FIELD.findall(head, start)
    if len(fields) > MAX_FIELDS:
        raise HeadError("there are too many fields")
    index: dict[bytes, bytes] = {}
    for name, value in fields:
        key = name.lower()
        if key not in index:
            index[key] = value
        elif key == b"host":
            raise HeadError("the Host field is repeated")
        elif key == b"content-length":
            if index[key] != value:
                raise HeadError("there are several lengths")
        else:
            index[key] += (b"; " if key == b"cookie" else b", ") + value
    return fields, index


def _framing(index: dict[bytes, bytes], minor: int) -> int | None:
    """Return the length, `CHUNKED`, or None when nothing says."""
    coding = index.get(b"transfer-encoding")
    length = index.get(b"content-length")
    if coding is not None:
        if length is not None:
            raise HeadError("both a length and a transfer coding are given")
        if coding.lower() != b"chunked" or not minor:
            raise HeadError("the transfer coding is not exactly chunked")
        return CHUNKED
    if length is None:
        return None
    if _LENGTH.match(length) is None:
        raise HeadError("the length is not a number")
    return int(length)


def _keep_alive(index: dict[bytes, bytes], minor: int) -> bool:
    if b"connection" not in index:
        return minor == 1
    options = connection_options(index)
    if b"close" in options:
        return False
    return minor == 1 or b"keep-alive" in options
