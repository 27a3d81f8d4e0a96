"""Content decoding: every coding, any split, damage, bombs."""

from __future__ import annotations

import gzip
import itertools
import random
import zlib
from typing import TYPE_CHECKING

import brotli
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from km_net_proxy.meter.decode import PIECE, new_decoder

if TYPE_CHECKING:
    from km_net_proxy.meter import decode


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def members(data: bytes) -> bytes:
    half = len(data) // 2
    return gzip.compress(data[:half]) + gzip.compress(b"") + gzip.compress(data[half:])


def frames(data: bytes) -> bytes:
    half = len(data) // 2
    packer = zstandard.ZstdCompressor()
    return packer.compress(data[:half]) + packer.compress(data[half:])


CODINGS = {
    "plain": ("identity", lambda data: data),
    "none": ("", lambda data: data),
    "gzip": ("gzip", gzip.compress),
    "gzip upper case": (" GZip ", gzip.compress),
    "gzip members": ("gzip", members),
    "gzip padded": ("gzip", lambda data: gzip.compress(data) + b"\0" * 7),
    "deflate zlib": ("deflate", zlib.compress),
    "deflate raw": ("deflate", raw_deflate),
    "br": ("br", brotli.compress),
    "zstd": ("zstd", zstandard.ZstdCompressor().compress),
    "zstd frames": ("zstd", frames),
}
TEXT = ('event: ping\ndata: {"type": "ping"}\n\n' * 40 + "\u00e9\u4e2d").encode()
NOISE = random.Random(7).randbytes(3000)


def run(name: str, pieces: list[bytes]) -> tuple[bytes, decode.Decoder]:
    decoder = new_decoder(name)
    out = []
    for piece in pieces:
        out.append(decoder.feed(piece))
        while decoder.pending:
            out.append(decoder.feed(b""))
    out.append(decoder.finish())
    return b"".join(out), decoder


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize(
    "body", [b"", b"x", TEXT, NOISE, TEXT * 200], ids=["empty", "one", "text", "noise", "long"]
)
def test_gzip_br_zstd_decoded(coding, body):
    name, pack = CODINGS[coding]
    packed = pack(body)
    assert run(name, [packed])[0] == body
    out, decoder = run(name, [packed[at : at + 1] for at in range(len(packed))])
    assert out == body
    assert not decoder.failed


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(CODINGS)), st.binary(max_size=400), st.data())
def test_any_split_gives_the_same_bytes(coding, body, data):
    name, pack = CODINGS[coding]
    packed = pack(body)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(packed)), max_size=6)))
    edges = [0, *cuts, len(packed)]
    out, decoder = run(name, [packed[a:b] for a, b in itertools.pairwise(edges)])
    assert (out, decoder.failed) == (body, False)


@pytest.mark.parametrize("coding", sorted(set(CODINGS) - {"plain", "none"}))
def test_a_cut_body_keeps_what_could_be_inflated(coding):
    name, pack = CODINGS[coding]
    body = b"".join(b"%d:%s\n" % (n, NOISE[n % 2000 : n % 2000 + 40].hex().encode()) for n in range(9000))
    packed = pack(body)
    out, decoder = run(name, [packed[: len(packed) * 3 // 4]])
    assert len(out) > len(body) // 8
    assert body.startswith(out)
    assert not decoder.failed


@pytest.mark.parametrize("coding", sorted(set(CODINGS) - {"plain", "none"}))
def test_damage_is_a_failure_and_never_an_exception(coding):
    name, pack = CODINGS[coding]
    packed = bytearray(pack(TEXT * 50))
    for at in range(0, len(packed), max(1, len(packed) // 60)):
        damaged = bytes(packed[:at]) + bytes([packed[at] ^ 0x55]) + bytes(packed[at + 1 :])
        decoder = new_decoder(name)
        out = decoder.feed(damaged) + decoder.finish()
        assert len(out) < 10 * PIECE
    garbage = new_decoder(name)
    garbage.feed(b"this is not compressed at all, not in the least" * 3)
    assert garbage.failed
    assert garbage.feed(packed) == b""


@pytest.mark.parametrize("name", ["compress", "gzip, br", "aes128gcm", "gzipp", "*"])
def test_an_unknown_coding_fails_at_once(name):
    decoder = new_decoder(name)
    assert decoder.failed
    assert decoder.feed(b"data") == b""
    assert decoder.finish() == b""


@pytest.mark.parametrize("coding", ["gzip", "deflate zlib", "deflate raw", "br", "zstd"])
def test_output_comes_in_bounded_pieces(coding):
    name, pack = CODINGS[coding]
    body = b"\0" * (20 * PIECE)
    packed = pack(body)
    decoder = new_decoder(name)
    sizes = [len(decoder.feed(packed))]
    while decoder.pending:
        sizes.append(len(decoder.feed(b"")))
    assert max(sizes) <= 10 * PIECE
    assert sum(sizes) == len(body)
    assert not decoder.failed


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_a_caller_that_ignores_pending_gets_everything_at_the_end(coding):
    name, pack = CODINGS[coding]
    body = bytes(range(256)) * (12 * PIECE // 256)
    decoder = new_decoder(name)
    assert decoder.feed(pack(body)) + decoder.finish() == body


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_a_bomb_is_stopped(coding):
    name, pack = CODINGS[coding]
    packed = pack(b"\0" * (100 * PIECE))
    decoder = new_decoder(name)
    total = largest = 0
    piece = decoder.feed(packed)
    while piece or decoder.pending:
        total += len(piece)
        largest = max(largest, len(piece))
        piece = decoder.feed(b"")
    assert decoder.failed
    assert total <= 75 * PIECE
    assert largest <= 10 * PIECE


def test_a_zstd_window_beyond_the_limit_is_refused():
    params = zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
    packer = zstandard.ZstdCompressor(compression_params=params).compressobj()
    packed = packer.compress(NOISE * 10) + packer.flush()
    assert run("zstd", [packed])[1].failed
