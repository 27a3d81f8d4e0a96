"""
Ed25519 over canonical bytes (RFC 8032), the one place where km signs.

Every signature is bound to a purpose, so that what was signed as a checkpoint can never be passed off
as something else.
"""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

# Made once: `json.dumps` with options builds an encoder on every call, and audit chains call this per record.
_ENCODE = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode

SEED_BYTES = 32
SIGNATURE_BYTES = 64


def canonical_json(data: Mapping[str, Any]) -> bytes:
    """
    Return the one JSON spelling of *data*: sorted keys, no spaces, ASCII.

    Raises:
        ValueError: *data* holds NaN or an infinity.
        TypeError: *data* holds something that is not JSON.
    """
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode(
        "ascii"
    )


def signed_bytes(purpose: str, data: Mapping[str, Any]) -> bytes:
    """Return the bytes a signature covers: ``km:PURPOSE:v1``, a NUL and the canonical JSON."""
    if not purpose.isascii() or "\0" in purpose:
        raise ValueError("a purpose is a short ASCII word")
    return f"km:{purpose}:v1\0".encode("ascii") + canonical_json(data)


def new_seed() -> bytes:
    """Return a fresh Ed25519 seed (32 random bytes)."""
    return secrets.token_bytes(SEED_BYTES)


def public_key(seed: bytes) -> bytes:
    """Return the public key (32 bytes) of a seed."""
    from nacl.signing import SigningKey

    return SigningKey(seed).verify_key.encode()


def sign(seed: bytes, purpose: str, data: Mapping[str, Any]) -> bytes:
    """
    Sign *data*.

    Args:
        seed: the Ed25519 seed, 32 bytes.
        purpose: what the signature is for (``audit-checkpoint``).
        data: plain JSON data.

    Returns:
        The signature, 64 bytes.
    """
    from nacl.signing import SigningKey

    return SigningKey(seed).sign(signed_bytes(purpose, data)).signature


def verify(key: bytes, purpose: str, data: Mapping[str, Any], signature: bytes) -> bool:
    """Say whether *signature* is that of *key* (32 bytes) over *data* for *purpose*; never raises on bad input."""
    from nacl.exceptions import CryptoError
    from nacl.signing import VerifyKey

    try:
        VerifyKey(key).verify(signed_bytes(purpose, data), signature)
    except (CryptoError, ValueError, TypeError):
        return False
    return True
