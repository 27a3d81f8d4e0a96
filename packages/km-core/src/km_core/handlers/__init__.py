"""km_core.handlers."""

from __future__ import annotations
