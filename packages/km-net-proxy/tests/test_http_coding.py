"""Taking codings off request bodies: every coding, no bomb."""

from __future__ import annotations

import contextlib
import gzip
import tracemalloc
import zlib

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from km_net_proxy.http.coding import CodingError, decode_whole, decoder

LIMIT = 1 << 20


def raw_deflate(data):
    engine = zlib.compressobj(wbits=-15)
    return engine.compress(data) + engine.flush()


CODERS = {
    "gzip": gzip.compress,
    "x-gzip": lambda data: gzip.compress(data[:3]) + gzip.compress(data[3:]),
    "deflate": zlib.compress,
    " Deflate ": raw_deflate,
    "br": brotli.compress,
    "zstd": lambda data: zstandard.compress(data[:3]) + zstandard.compress(data[3:]),
    "identity": bytes,
    "": bytes,
}


@pytest.mark.parametrize("coding", CODERS)
@given(data=st.binary(max_size=2000))
def test_a_coded_body_comes_back_whole(coding, data):
    assert decode_whole(coding, CODERS[coding](data), LIMIT) == data


@pytest.mark.parametrize("coding", ["gzip", "deflate", " Deflate ", "br", "zstd"])
def test_a_bomb_is_refused_before_it_fills_the_memory(coding):
    bomb = CODERS[coding](bytes(200 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(CodingError, match="more than is accepted"):
            decode_whole(coding, bomb, LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("coding", ["gzip", "deflate", " Deflate ", "br"])
def test_a_body_that_breaks_off_is_no_body(coding):
    whole = CODERS[coding](b"abc" * 1000)
    for end in (len(whole) - 1, len(whole) // 2):
        with pytest.raises(CodingError):
            decode_whole(coding, whole[:end], LIMIT)


@pytest.mark.parametrize("coding", ["gzip, br", "compress", "gzip;q=1", "chunked", "\x00"])
def test_other_and_stacked_codings_are_refused(coding):
    with pytest.raises(CodingError, match="not supported"):
        decode_whole(coding, b"", LIMIT)


@given(st.sampled_from(sorted(CODERS)), st.binary(max_size=400))
def test_no_bytes_make_a_decoder_do_anything_but_decode_or_refuse(coding, junk):
    with contextlib.suppress(CodingError):
        assert len(decode_whole(coding, junk, LIMIT)) <= LIMIT


@given(st.lists(st.binary(max_size=300), max_size=5), st.integers(1, 40))
def test_gzip_decodes_piece_by_piece_however_it_is_split(members, step):
    coded = b"".join(gzip.compress(member) for member in members)
    take = decoder("gzip")
    out = b"".join(take.feed(coded[at : at + step]) for at in range(0, len(coded), step))
    assert out == b"".join(members)
    for coding in ("br", "zstd", "deflate"):
        with pytest.raises(CodingError):
            decoder(coding)
