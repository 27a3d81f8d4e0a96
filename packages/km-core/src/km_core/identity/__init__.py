"""Keys and signatures: one canonical form, one signing function."""

from __future__ import annotations

from km_core.identity.signing import canonical_json, new_seed, public_key, sign, signed_bytes, verify

__all__ = ["canonical_json", "new_seed", "public_key", "sign", "signed_bytes", "verify"]
