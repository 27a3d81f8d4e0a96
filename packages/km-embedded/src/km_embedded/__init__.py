"""The embedded control plane of km: kmd, SQLite, leases, schedules."""

from __future__ import annotations
