"""Sandboxes on Linux without any network: for profiles that allow nothing."""

from __future__ import annotations
