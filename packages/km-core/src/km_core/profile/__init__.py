"""km_core.profile."""

from __future__ import annotations
