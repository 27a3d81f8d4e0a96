"""The gate of km: DNS filter, HTTP(S) proxy, TLS interception, AI metering."""

from __future__ import annotations
