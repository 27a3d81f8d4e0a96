"""km_core.sidecars."""

from __future__ import annotations
