"""A notifier for km: appends every event to a file, one JSON object a line."""

from __future__ import annotations
