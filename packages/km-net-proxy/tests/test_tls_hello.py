"""The ClientHello reader: any split, nothing ambiguous."""

from __future__ import annotations

import contextlib
import ssl
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from km_net_proxy.http.hello import ClientHello, HelloError, read_client_hello


def real_hello(name="api.example.org", alpn=("h2", "http/1.1")):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(list(alpn))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


HELLO = real_hello()


def extension(kind, value):
    return struct.pack(">HH", kind, len(value)) + value


def server_name(*names, kind=0):
    entries = b"".join(bytes([kind]) + struct.pack(">H", len(name)) + name for name in names)
    return extension(0, struct.pack(">H", len(entries)) + entries)


def hello(extensions, *, record=None, tail=b""):
    body = b"\x03\x03" + bytes(32) + b"\0" + b"\0\x02\x13\x01" + b"\x01\0"
    body += struct.pack(">H", len(extensions)) + extensions
    message = b"\x01" + len(body).to_bytes(3, "big") + body + tail
    size = record or len(message)
    return b"".join(
        b"\x16\x03\x01" + struct.pack(">H", len(message[i : i + size])) + message[i : i + size]
        for i in range(0, len(message), size)
    )


def test_a_real_client_hello_is_read():
    found = read_client_hello(HELLO)
    assert isinstance(found, ClientHello)
    assert (found.sni, found.alpn, found.ech, found.size) == (
        "api.example.org",
        ("h2", "http/1.1"),
        False,
        len(HELLO),
    )


@given(st.integers(0, len(HELLO) - 1))
def test_every_prefix_asks_for_more_and_never_for_less_than_it_has(length):
    needed = read_client_hello(HELLO[:length])
    assert isinstance(needed, int)
    assert length < needed <= len(HELLO)


@given(st.integers(1, 400), st.binary(max_size=3000))
def test_the_message_is_put_together_from_any_records(record, padding):
    data = hello(server_name(b"a.example") + extension(21, padding), record=record)
    found = read_client_hello(data + b"later")
    assert isinstance(found, ClientHello)
    assert found.sni == "a.example"
    assert found.size == len(data)


def test_a_server_name_far_behind_a_large_key_share_is_found():
    data = hello(extension(51, bytes(40000)) + server_name(b"late.example"), record=16384)
    found = read_client_hello(data)
    assert isinstance(found, ClientHello)
    assert found.sni == "late.example"


@pytest.mark.parametrize(
    "data",
    [
        hello(server_name(b"a.example") + server_name(b"b.example")),
        hello(server_name(b"a.example", b"b.example")),
        hello(server_name(b"a.example", kind=1)),
        hello(server_name(b"")),
        hello(server_name(b"a b")),
        hello(server_name(b"a\0.example")),
        hello(extension(0, b"\0\x05\0\0\x09a")),
        hello(extension(16, b"\0\x09\x08h2")),
        hello(b"\0\0\0\x05ab"),
        hello(b"", tail=b"\x0b\0\0\0"),
        b"\x16\x03\x01\0\0",
        b"\x16\x03\x01\xff\xff",
        b"\x16\x02\x01\0\x05hello",
        b"\x15\x03\x01\0\x02\x02\x28",
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01\0\x04\x02\0\0\0",
        b"\x16\x03\x01\0\x04\x01\x01\x00\x01",
        hello(server_name(b"a.example"), record=60)[:65] + b"\x17\x03\x03\0\x01x",
    ],
)
def test_what_is_ambiguous_or_damaged_is_refused(data):
    with pytest.raises(HelloError):
        read_client_hello(data)


def test_encrypted_client_hello_is_noted_and_judged_by_its_outer_name():
    found = read_client_hello(hello(server_name(b"public.example") + extension(0xFE0D, b"x" * 40)))
    assert isinstance(found, ClientHello)
    assert found.ech
    assert found.sni == "public.example"


@given(st.binary(max_size=600))
def test_no_bytes_do_anything_but_be_refused_or_ask_for_more(junk):
    for data in (junk, b"\x16\x03\x01" + junk, HELLO[:50] + junk):
        with contextlib.suppress(HelloError):
            found = read_client_hello(data)
            assert isinstance(found, ClientHello) or found > len(data)


def test_grease_in_every_place_it_may_stand_changes_nothing():
    # RFC 8701: unknown values that clients send so that servers learn to pass over them.
    extensions = (
        extension(0x0A0A, b"")
        + server_name(b"a.example")
        + extension(16, b"\0\x06\x02\x0a\x0a\x02h2")
        + extension(51, b"\0\x05\x1a\x1a\0\x01\0")
        + extension(0xFAFA, b"\0")
    )
    found = read_client_hello(hello(extensions))
    assert isinstance(found, ClientHello)
    assert (found.sni, found.alpn, found.ech) == ("a.example", ("\n\n", "h2"), False)


@pytest.mark.parametrize(
    ("version", "passes"), [(0x0301, True), (0x0303, True), (0x0002, False), (0x7F12, False)]
)
def test_older_versions_are_read_by_the_same_rules_and_others_are_none(version, passes):
    data = bytearray(hello(server_name(b"a.example")))
    data[9:11] = version.to_bytes(2, "big")
    if passes:
        assert read_client_hello(bytes(data)).sni == "a.example"
    else:
        with pytest.raises(HelloError):
            read_client_hello(bytes(data))


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10",
        b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10",
        HELLO[:5][:3] + b"\0\x01" + HELLO[5:6] + b"\x16\x03\x01\0\0",
        hello(extension(16, b"\0\x01\0")),
        hello(server_name(b"a.example") + extension(0, b"")),
        hello(extension(0xFE0D, b"x") + extension(0xFE0D, b"x")),
        hello(server_name(b"\xc3\xa9.example")),
        hello(server_name(b"a" * 256)),
    ],
    ids=[
        "SSLv2", "SSLv2 for TLS 1.0", "an empty record in between", "an empty protocol", "an empty second list",
        "ECH twice", "letters beyond ASCII", "a name of 256 bytes",
    ],
)  # fmt: skip
def test_more_that_is_no_hello_anybody_should_guess_at(data):
    with pytest.raises(HelloError):
        read_client_hello(data)


def test_a_hello_without_extensions_has_no_name():
    body = b"\x03\x00" + bytes(32) + b"\0" + b"\0\x02\0\x0a" + b"\x01\0"
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    found = read_client_hello(b"\x16\x03\x00" + struct.pack(">H", len(message)) + message)
    assert isinstance(found, ClientHello)
    assert found.sni is None
