"""The profile model: what a SandboxProfile may say, declared once."""

from __future__ import annotations

from km_core.profile.duration import parse_duration, parse_ttl
from km_core.profile.kinds import Defect, FieldInfo, PluginSection, fields_of, optional, required
from km_core.profile.model import MODELS, SUBSTRATES, SandboxProfile, Spec

__all__ = [
    "MODELS",
    "SUBSTRATES",
    "Defect",
    "FieldInfo",
    "PluginSection",
    "SandboxProfile",
    "Spec",
    "fields_of",
    "optional",
    "parse_duration",
    "parse_ttl",
    "required",
]
