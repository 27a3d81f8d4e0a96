"""From a profile file to a plan."""

from __future__ import annotations

from km_core.compile.load import Document, load_document
from km_core.compile.profile import LoadedProfile, load_profile

__all__ = ["Document", "LoadedProfile", "load_document", "load_profile"]
