"""km_core.policy."""

from __future__ import annotations
