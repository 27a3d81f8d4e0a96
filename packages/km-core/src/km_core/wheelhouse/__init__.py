"""
Wheelhouses: everything one profile's host installs, locked by hash, in one directory.

A wheelhouse holds the wheels of a plan's requirements with all that these need, ``requirements.txt`` with
a SHA-256 for each, and ``wheelhouse.json``.  A host installs it with ``--no-index --require-hashes``: it
asks nobody, and gets no distribution that the profile does not use.
"""

from __future__ import annotations

from km_core.wheelhouse.build import Order, build_wheelhouse, order_for
from km_core.wheelhouse.lock import LOCK, MANIFEST, Flaw, Manifest, verify_wheelhouse
from km_core.wheelhouse.sources import Source, build_wheel, installed_source
from km_core.wheelhouse.wheels import Wheel, WheelhouseError, read_wheel

__all__ = [
    "LOCK",
    "MANIFEST",
    "Flaw",
    "Manifest",
    "Order",
    "Source",
    "Wheel",
    "WheelhouseError",
    "build_wheel",
    "build_wheelhouse",
    "installed_source",
    "order_for",
    "read_wheel",
    "verify_wheelhouse",
]
