"""The control plane's protocols and its wire."""

from __future__ import annotations
