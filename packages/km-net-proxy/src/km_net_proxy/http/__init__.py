"""The TCP half of the gate: transparent and explicit proxying, TLS interception, streaming HTTP/1.1."""

from __future__ import annotations
