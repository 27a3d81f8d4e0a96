"""What end-to-end tests put outside a sandbox, besides the quick start's stand-ins."""

from __future__ import annotations
