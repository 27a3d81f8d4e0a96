"""km_core.compile."""

from __future__ import annotations
