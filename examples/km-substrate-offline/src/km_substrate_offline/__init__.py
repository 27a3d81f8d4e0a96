"""A substrate for km: sandboxes on Linux without any network."""

from __future__ import annotations
