"""Docker sandboxes for km, without a network device in the sandbox."""

from __future__ import annotations
