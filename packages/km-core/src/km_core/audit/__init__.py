"""km_core.audit."""

from __future__ import annotations
