"""km_core.identity."""

from __future__ import annotations
