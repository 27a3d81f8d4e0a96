"""km_core.cli."""

from __future__ import annotations
