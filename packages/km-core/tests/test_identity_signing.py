"""One signing function over one canonical form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from km_core.identity import canonical_json, new_seed, public_key, sign, verify

SEED = bytes(range(32))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_a_signature_holds_for_its_data_and_purpose_only(data):
    signature = sign(SEED, "test", data)
    key = public_key(SEED)
    assert len(signature) == 64
    assert verify(key, "test", dict(reversed(data.items())), signature)
    assert not verify(key, "other", data, signature)
    assert not verify(key, "test", {**data, "x\0new": 1}, signature)
    assert not verify(public_key(new_seed()), "test", data, signature)


def test_the_known_answer_stays():
    # RFC 8032 section 7.1 gives the public key of this seed's algorithm; the bytes signed are ours.
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    assert public_key(seed).hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert canonical_json({"b": 1, "a": "é"}) == b'{"a":"\\u00e9","b":1}'


def test_bad_input_to_verify_is_no_signature():
    assert not verify(b"short", "test", {}, b"")
    assert not verify(public_key(SEED), "test", {}, b"x" * 64)
    assert not verify(public_key(SEED), "test", {"x": float("nan")}, b"x" * 64)


def test_what_is_not_json_is_not_signed():
    with pytest.raises(ValueError, match="JSON"):
        sign(SEED, "test", {"x": float("inf")})
    with pytest.raises(ValueError, match="purpose"):
        sign(SEED, "a\0b", {})
