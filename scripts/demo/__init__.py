"""The quick start and the stand-ins it talks to: an origin, an AI provider, a name server."""

from __future__ import annotations
