"""
``km plugins check``: is this plugin what its page in the documentation says it is?

What the metadata says is read here; what the code does is tried in a process of its own
(`km_core.inspection.probe`), which a plugin may crash, hang or print in.
"""

from __future__ import annotations

from km_core.inspection.finding import Finding
from km_core.inspection.inspect import inspect_plugins
from km_core.inspection.subject import Subject, find_subjects

__all__ = ["Finding", "Subject", "find_subjects", "inspect_plugins"]
