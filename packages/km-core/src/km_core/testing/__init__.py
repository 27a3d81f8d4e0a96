"""km_core.testing."""

from __future__ import annotations
