"""km_core.lifecycle."""

from __future__ import annotations
