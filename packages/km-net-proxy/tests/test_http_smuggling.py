"""The table of spec/network.md section 4.4: what two servers could read in two ways is refused."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest
from gate_rig import AI, WEB, Rig, answer, ok, run
from hypothesis import given
from hypothesis import strategies as st

from km_net_proxy.http.chunked import ChunkedDecoder, chunk
from km_net_proxy.http.head import CHUNKED, HeadError, parse_request, parse_response

HOST = b"Host: web.test\r\n"
BAD_HEADS = {
    "length and coding": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    "list of lengths": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3, 3\r\n\r\nabc",
    "signed length": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +3\r\n\r\nabc",
    "hex length": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 0x3\r\n\r\nabc",
    "coding gzip, chunked": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "coding twice": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "coding identity": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: identity\r\n\r\n",
    "coding with a tab inside": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chu\tnked\r\n\r\n",
    "coding in 1.0": b"POST / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n",
    "folded line": b"GET / HTTP/1.1\r\n" + HOST + b"X-A: 1\r\n more\r\n\r\n",
    "folded line at first": b"GET / HTTP/1.1\r\n X-A: 1\r\n" + HOST + b"\r\n",
    "bare LF": b"GET / HTTP/1.1\r\n" + HOST + b"X-A: 1\nX-B: 2\r\n\r\n",
    "bare LF head": b"GET / HTTP/1.1\nHost: web.test\n\n",
    "bare CR": b"GET / HTTP/1.1\r\n" + HOST + b"X-A: 1\rX-B: 2\r\n\r\n",
    "space before the colon": b"GET / HTTP/1.1\r\n" + HOST + b"X-A : 1\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\n" + HOST + b"X-A\r\n\r\n",
    "empty name": b"GET / HTTP/1.1\r\n" + HOST + b": 1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
    "two hosts in other case": b"GET / HTTP/1.1\r\n" + HOST + b"hOsT: evil.test\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\n" + HOST + b"\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "NUL in a value": b"GET / HTTP/1.1\r\n" + HOST + b"X-A: a\0b\r\n\r\n",
    "NUL in the target": b"GET /\0 HTTP/1.1\r\n" + HOST + b"\r\n",
    "space in the target": b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n",
    "leading empty line": b"\r\nGET / HTTP/1.1\r\n" + HOST + b"\r\n",
    "userinfo in Host": b"GET / HTTP/1.1\r\nHost: web.test@evil.test\r\n\r\n",
    "percent in Host": b"GET / HTTP/1.1\r\nHost: web%2etest\r\n\r\n",
    "two ports": b"GET / HTTP/1.1\r\nHost: web.test:80:80\r\n\r\n",
    "target without a slash": b"GET web.test HTTP/1.1\r\n" + HOST + b"\r\n",
    "URL and Host differ": b"GET http://other.test/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "empty Host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "list of hosts": b"GET / HTTP/1.1\r\nHost: web.test, evil.test\r\n\r\n",
    "space in Host": b"GET / HTTP/1.1\r\nHost: web.test evil.test\r\n\r\n",
    "tab in Host": b"GET / HTTP/1.1\r\nHost: web.test\tevil.test\r\n\r\n",
    "path in Host": b"GET / HTTP/1.1\r\nHost: web.test/evil.test\r\n\r\n",
    "brackets in Host": b"GET / HTTP/1.1\r\nHost: [web.test]\r\n\r\n",
    "empty port in Host": b"GET / HTTP/1.1\r\nHost: web.test:\r\n\r\n",
    "port 0 in Host": b"GET / HTTP/1.1\r\nHost: web.test:0\r\n\r\n",
    "octal port in Host": b"GET / HTTP/1.1\r\nHost: web.test:080\r\n\r\n",
    "two dots in Host": b"GET / HTTP/1.1\r\nHost: web..test\r\n\r\n",
    "letters beyond ASCII in Host": b"GET / HTTP/1.1\r\nHost: w\xe9b.test\r\n\r\n",
    "userinfo in the URL": b"GET http://web.test@evil.test/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "another scheme": b"GET https://web.test/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "URL without an authority": b"GET http:/web.test/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "URL with two ports": b"GET http://web.test:80:81/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "backslash before the path": b"GET http://web.test\\@evil.test/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "a fragment": b"GET /a#/../b HTTP/1.1\r\n" + HOST + b"\r\n",
    "star with GET": b"GET * HTTP/1.1\r\n" + HOST + b"\r\n",
    "vertical tab around a coding": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "form feed after a length": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\x0c\r\n\r\nabc",
    "coding with a parameter": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: chunked;q=0\r\n\r\n0\r\n\r\n",
    "coding in quotes": b"POST / HTTP/1.1\r\n" + HOST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "coding before and after a comma": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n",
    "empty coding": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding:\r\n\r\n",
    "empty length": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length:\r\n\r\n",
    "lengths written differently": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Content-Length: 3\r\nContent-Length: 03\r\n\r\nabc",
    "a length of twenty digits": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Content-Length: 00000000000000000003\r\n\r\nabc",
    "digits beyond ASCII": b"POST / HTTP/1.1\r\n" + HOST + "Content-Length: \u0663\r\n\r\nabc".encode(),
    "folded coding": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "control byte in a name": b"GET / HTTP/1.1\r\n" + HOST + b"X\x01A: 1\r\n\r\n",
    "DEL in a value": b"GET / HTTP/1.1\r\n" + HOST + b"X-A: a\x7f\r\n\r\n",
    "a letter beyond ASCII in a name": b"GET / HTTP/1.1\r\n" + HOST + b"X\xe9: 1\r\n\r\n",
    "CR CR LF": b"GET / HTTP/1.1\r\n" + HOST + b"X-A: 1\r\r\n\r\n",
    "version without a digit": b"GET / HTTP/1.\r\n" + HOST + b"\r\n",
    "version in other case": b"GET / http/1.1\r\n" + HOST + b"\r\n",
    "version 1.10": b"GET / HTTP/1.10\r\n" + HOST + b"\r\n",
    "space after the version": b"GET / HTTP/1.1 \r\n" + HOST + b"\r\n",
    "tab in the request line": b"GET\t/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "CR in the target": b"GET /\rX HTTP/1.1\r\n" + HOST + b"\r\n",
    "letters beyond ASCII in the target": b"GET /\xe9 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method that is too long": b"G" * 33 + b" / HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method with a colon": b"GET:POST / HTTP/1.1\r\n" + HOST + b"\r\n",
    "SSLv2": b"\x80\x2e\x01\x00\x02",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "a line that never ends": b"\x00\x01\x02",
    "a first word that is no method": b"(((",
    "no version in sight": b"GET / FTP/1",
    "Connection takes the coding away": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Connection: close, Content-Encoding\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n",
    "Connection takes the host away": b"GET / HTTP/1.1\r\n" + HOST + b"Connection: HOST\r\n\r\n",
    "too many fields": b"GET / HTTP/1.1\r\n" + HOST + b"X: 1\r\n" * 101 + b"\r\n",
    "too long": b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 70000 + b"\r\n\r\n",
}
BAD_CHUNKS = {
    "sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "minus": b"-5\r\nhello\r\n0\r\n\r\n",
    "prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "underscore": b"1_0\r\nhello\r\n0\r\n\r\n",
    "space": b"5 \r\nhello\r\n0\r\n\r\n",
    "leading space": b" 5\r\nhello\r\n0\r\n\r\n",
    "bare LF": b"5\nhello\r\n0\r\n\r\n",
    "too short": b"5\r\nhello!\r\n0\r\n\r\n",
    "overflow": b"ffffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "no size": b"\r\nhello\r\n0\r\n\r\n",
    "bad trailer": b"5\r\nhello\r\n0\r\nX-A : 1\r\n\r\n",
    "a sign without an end": b"+",
    "no size without an end": b"zz",
    "data without an end": b"5\r\nhello!",
    "bare CR in the size": b"5\r\r\nhello\r\n0\r\n\r\n",
    "bare LF in an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "NUL in an extension": b"5;\0\r\nhello\r\n0\r\n\r\n",
    "a long extension": b"5;" + b"a" * 5000,
    "size of seventeen digits": b"00000000000000005\r\nhello\r\n0\r\n\r\n",
    "Host in the trailers": b"5\r\nhello\r\n0\r\nHost: evil.test\r\n\r\n",
    "a length in the trailers": b"5\r\nhello\r\n0\r\nContent-Length: 4\r\n\r\n",
    "a coding in the trailers": b"5\r\nhello\r\n0\r\nTransfer_Encoding: chunked\r\n\r\n",
    "endless trailers": b"5\r\nhello\r\n0\r\n" + b"X-A: 1\r\n" * 4000,
    "bare LF at the end": b"5\r\nhello\r\n0\r\n\n",
}


@pytest.fixture(scope="module")
def outcomes():
    """Send every bad request to one gate; returns the answers and what the server saw."""
    results = {}
    seen = []

    async def main():
        async with Rig() as rig:

            async def handler(head, body, writer):
                seen.append((head, body))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

            await rig.serve(WEB, handler, tls=False)
            await rig.up()
            front = rig.front(WEB, 80)
            for label, data in BAD_HEADS.items():
                results[label] = await raw(front, data)
            for label, data in BAD_CHUNKS.items():
                head = b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
                results["chunk " + label] = await raw(front, head + data)
            results["events"] = [event for event in rig.events() if event["kind"] == "http_malformed"]

    run(main)
    results["seen"] = seen
    return results


async def raw(port, data):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    received = b""
    with contextlib.suppress(ConnectionResetError):
        received = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return received


@pytest.mark.parametrize("label", [*BAD_HEADS, *("chunk " + label for label in BAD_CHUNKS)])
def test_an_ambiguous_request_is_answered_400_and_closes_the_connection(outcomes, label):
    received = outcomes[label]
    assert received.startswith(b"HTTP/1.1 400 "), received[:200]
    assert received.count(b"HTTP/1.1 ") == 1
    assert b"onnection: close" in received
    assert json.loads(received.partition(b"\r\n\r\n")[2])["error"] == "http_malformed"


def test_no_server_gets_a_whole_request_out_of_any_of_them(outcomes):
    assert outcomes["seen"] == []
    assert outcomes["events"]


def test_hop_by_hop_fields_and_those_named_by_connection_do_not_pass():
    async def main():
        async with Rig() as rig:
            server = await rig.serve(WEB, ok(b"", b"Alt-Svc: h3", b"Keep-Alive: 5", b"X-B: kept"), tls=False)
            await rig.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(WEB, 80))
            writer.write(
                b"GET /p HTTP/1.1\r\nHost: WEB.test.\r\nConnection: keep-alive, X-Private\r\nX-Private: 1\r\n"
                b"TE: trailers\r\nProxy-Authorization: Basic eA==\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\nX-Kept: 2\r\n\r\n"
            )
            status, fields, _ = await answer(reader)
            assert status == 200
            assert fields == {"content-length": "0", "x-b": "kept"}
            head = server.requests[0][0].lower()
            assert b"host: web.test\r\n" in head
            assert b"x-kept: 2" in head
            for gone in (b"http2-settings", b"x-private", b"te:", b"proxy-", b"upgrade", b"keep-alive"):
                assert gone not in head
            writer.close()

    run(main)


@pytest.mark.parametrize(
    "field", ["X-HTTP-Method-Override: DELETE", "x_http_method: PUT", "X-Original-URL: /v1/files"]
)
def test_a_field_that_changes_method_or_path_is_refused_where_content_is_judged(field):
    async def main():
        async with Rig() as rig:
            server = await rig.serve(AI, ok())
            await rig.up()
            reader, writer = await rig.tls(AI)
            writer.write(f"GET /v1/models HTTP/1.1\r\nHost: {AI}\r\n{field}\r\n\r\n".encode())
            status, _, body = await answer(reader)
            assert status == 403
            assert b"builtin:method-override" in body
            assert not server.requests
            writer.close()

    run(main)


def test_a_redirect_is_handed_to_the_client_and_never_followed():
    async def main():
        async with Rig() as rig:

            async def handler(head, body, writer):
                writer.write(
                    b"HTTP/1.1 302 Found\r\nLocation: http://other.test/secret\r\nContent-Length: 0\r\n\r\n"
                )

            await rig.serve(WEB, handler, tls=False)
            other = await rig.serve("other.test", ok(), tls=False)
            await rig.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(WEB, 80))
            writer.write(b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n")
            status, fields, _ = await answer(reader)
            assert (status, fields["location"]) == (302, "http://other.test/secret")
            assert not other.requests
            writer.close()

    run(main)


def test_an_intercepted_host_is_not_served_over_plain_http():
    async def main():
        async with Rig() as rig:
            server = await rig.serve(AI, ok())
            await rig.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(AI, 80))
            writer.write(b"GET /v1/models HTTP/1.1\r\nHost: api.anthropic.com\r\n\r\n")
            assert (await answer(reader))[0] == 403
            assert not server.requests
            writer.close()

    run(main)


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
        b"garbage\r\n\r\n",
        b"",
    ],
)
def test_an_answer_that_is_no_plain_http_becomes_502(sent):
    async def main():
        async with Rig() as rig:

            async def handler(head, body, writer):
                writer.write(sent)
                return "close"

            await rig.serve(WEB, handler, tls=False)
            await rig.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(WEB, 80))
            writer.write(b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n")
            status, _, body = await answer(reader)
            assert (status, json.loads(body)["error"]) == (502, "upstream_lost")
            writer.close()

    run(main)


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
    ],
)
def test_a_body_that_breaks_off_never_looks_whole_to_the_client(sent):
    async def main():
        async with Rig() as rig:

            async def handler(head, body, writer):
                writer.write(sent)
                return "close"

            await rig.serve(WEB, handler, tls=False)
            await rig.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(WEB, 80))
            writer.write(b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n")
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await answer(reader)
            writer.close()

    run(main)


TOKEN = st.text("abcXYZ019-_!#", min_size=1, max_size=12).filter(
    lambda name: name.lower() not in {"host", "connection", "content-length", "transfer-encoding"}
)
VALUE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=30)


@given(st.lists(st.tuples(TOKEN, VALUE), max_size=20), st.integers(0, 10**9))
def test_a_well_formed_head_is_read_as_it_was_meant(fields, length):
    lines = "".join(f"{name}: \t{value} \r\n" for name, value in fields)
    head = f"PUT /p HTTP/1.1\r\nHost: h\r\n{lines}Content-Length: {length}\r\n\r\n".encode()
    request = parse_request(head)
    assert request.length == length
    assert request.fields[1:-1] == [(name.encode(), value.encode()) for name, value in fields]


@given(st.binary(max_size=200))
def test_no_bytes_make_the_head_parser_do_anything_but_refuse(data):
    for parse in (parse_request, parse_response):
        with contextlib.suppress(HeadError):
            parse(data + b"\r\n\r\n")


@given(st.binary(max_size=120))
def test_whatever_is_accepted_says_the_same_when_written_out_again(junk):
    head = b"GET / HTTP/1.1\r\nHost: h\r\n" + junk + b"\r\n\r\n"
    try:
        request = parse_request(head)
    except HeadError:
        return
    lines = b"".join(b"%b: %b\r\n" % field for field in request.fields)
    again = parse_request(b"GET / HTTP/1.1\r\n" + lines + b"\r\n")
    assert again.fields == request.fields
    assert again.length == request.length
    assert b"\n" not in b"".join(name + value for name, value in request.fields)


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=6), st.data())
def test_chunks_decode_to_what_was_coded_however_they_are_split(pieces, data):
    coded = b"".join(chunk(piece) for piece in pieces) + b"0\r\nX-T: 1\r\n\r\nREST"
    decoder = ChunkedDecoder()
    out, position = b"", 0
    while position < len(coded) and not decoder.done:
        size = data.draw(st.integers(1, len(coded)))
        out += decoder.feed(coded[position : position + size])
        position += size
    assert decoder.done
    assert out == b"".join(pieces)
    assert decoder.trailers == [(b"X-T", b"1")]
    assert decoder.rest + coded[position:] == b"REST"


def test_equal_lengths_and_a_chunked_request_are_understood():
    head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n"
    assert parse_request(head).length == 3
    assert (
        parse_request(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n").length == CHUNKED
    )
