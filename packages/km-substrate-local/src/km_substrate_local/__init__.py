"""Daemon-less Linux sandboxes for km: bubblewrap and a network namespace without a device."""

from __future__ import annotations
