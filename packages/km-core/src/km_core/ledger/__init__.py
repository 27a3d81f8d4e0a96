"""km_core.ledger."""

from __future__ import annotations
