"""
A sans-IO reader of TLS ClientHello messages (RFC 8446 section 4.1.2, RFC 5246 section 7.4.1.2).

It sees through any split of the message over TCP segments and TLS records, up to 64 KiB, and refuses
what two readers could understand in two ways: repeated extensions, several server names, lengths that
do not add up, a record of another type in between (spec/network.md section 4.3, rows 17 and 18 of its
threat table).
"""

from __future__ import annotations

from attrs import frozen

MAX_HELLO = 65536
"""Longest handshake message accepted, in bytes; post-quantum key shares make 2 KiB common."""

_MAX_RECORD = 16384
_HANDSHAKE = 22
_CLIENT_HELLO = 1
_EXT_SNI = 0
_EXT_ALPN = 16
_EXT_EARLY_DATA = 42
_EXT_ECH = 0xFE0D
_EXT_ESNI = 0xFFCE


class HelloError(ValueError):
    """The bytes are not one well-formed ClientHello."""


@frozen
class ClientHello:
    """
    What the gate judges in a ClientHello.

    Attributes:
        sni: the server name as sent, or None when there is none.
        alpn: protocols offered, in order.
        ech: whether Encrypted ClientHello (or its GREASE form) is present; *sni* is the outer name.
        size: bytes of the stream that hold the message's records.
        early_data: whether application data may follow before the server has answered.
    """

    sni: str | None
    alpn: tuple[str, ...]
    ech: bool
    size: int
    early_data: bool = False


def read_client_hello(data: bytes) -> ClientHello | int:
    """
    Read a ClientHello from the start of a stream.

    Args:
        data: the stream's first bytes.

    Returns:
        The message, or the total number of bytes that must be there before it is worth asking again.

    Raises:
        HelloError: what is there can never become a ClientHello.
    """
    message = bytearray()
    position = 0
    needed = 4
    while len(message) < needed:
        if len(data) < position + 5:
            _check_start(data, position)
            return position + 5
        kind, major = data[position], data[position + 1]
        length = int.from_bytes(data[position + 3 : position + 5], "big")
        if kind != _HANDSHAKE or major != 3 or not 0 < length <= _MAX_RECORD:
            raise HelloError("not a TLS handshake record")
        fragment = data[position + 5 : position + 5 + length]
        message += fragment
        if message and message[0] != _CLIENT_HELLO:
            raise HelloError("not a ClientHello")
        if len(message) >= 4:
            needed = 4 + int.from_bytes(message[1:4], "big")
            if needed > MAX_HELLO:
                raise HelloError("the ClientHello is too long")
        position += 5 + length
        if len(fragment) < length:
            return position
    if len(message) != needed:
        raise HelloError("bytes after the ClientHello in its record")
    sni, alpn, kinds = _parse(bytes(message[4:]))
    return ClientHello(
        sni, alpn, bool(kinds & {_EXT_ECH, _EXT_ESNI}), position, early_data=_EXT_EARLY_DATA in kinds
    )


def _check_start(data: bytes, position: int) -> None:
    head = data[position:]
    if (head[:1] and head[0] != _HANDSHAKE) or (head[1:2] and head[1] != 3):
        raise HelloError("not a TLS handshake record")


class _Reader:
    """A cursor over one message; every read checks its length."""

    __slots__ = ("data", "position")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise HelloError("a length points past the end")
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def vector(self, width: int) -> bytes:
        return self.take(int.from_bytes(self.take(width), "big"))

    def at_end(self) -> bool:
        return self.position == len(self.data)


def _parse(body: bytes) -> tuple[str | None, tuple[str, ...], set[int]]:
    """Return the server name, the protocols offered and the types of all extensions."""
    reader = _Reader(body)
    if reader.take(2)[0] != 3:
        raise HelloError("not a version of TLS")
    reader.take(32)
    if len(reader.vector(1)) > 32:
        raise HelloError("the session id is too long")
    suites = reader.vector(2)
    if not suites or len(suites) % 2:
        raise HelloError("the list of cipher suites is malformed")
    if not reader.vector(1):
        raise HelloError("the list of compression methods is empty")
    if reader.at_end():
        return None, (), set()
    extensions = _Reader(reader.vector(2))
    if not reader.at_end():
        raise HelloError("bytes after the extensions")
    seen: set[int] = set()
    sni: str | None = None
    alpn: tuple[str, ...] = ()
    while not extensions.at_end():
        kind = int.from_bytes(extensions.take(2), "big")
        value = extensions.vector(2)
        if kind in seen:
            raise HelloError("an extension is repeated")
        seen.add(kind)
        if kind == _EXT_SNI:
            sni = _server_name(value)
        elif kind == _EXT_ALPN:
            alpn = _protocols(value)
    return sni, alpn, seen


def _server_name(value: bytes) -> str:
    outer = _Reader(value)
    names = _Reader(outer.vector(2))
    if not outer.at_end():
        raise HelloError("bytes after the server name list")
    if names.take(1) != b"\0":
        raise HelloError("an unknown kind of server name")
    name = names.vector(2)
    if not names.at_end():
        raise HelloError("several server names")
    if not name or len(name) > 255 or any(byte <= 0x20 or byte >= 0x7F for byte in name):
        raise HelloError("the server name is malformed")
    return name.decode("ascii")


def _protocols(value: bytes) -> tuple[str, ...]:
    outer = _Reader(value)
    names = _Reader(outer.vector(2))
    if not outer.at_end():
        raise HelloError("bytes after the protocol list")
    result = []
    while not names.at_end():
        protocol = names.vector(1)
        if not protocol:
            raise HelloError("an empty protocol name")
        result.append(protocol.decode("latin-1"))
    return tuple(result)
