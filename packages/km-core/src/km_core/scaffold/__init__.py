"""
New plugin distributions: ``km plugins new``.

`names` decides what things are called, `render` fills the templates of a kind, `write` puts the result
in place, whole or not at all.
"""

from __future__ import annotations

from km_core.scaffold.names import KINDS, Names, check_name
from km_core.scaffold.render import render
from km_core.scaffold.write import write_distribution

__all__ = ["KINDS", "Names", "check_name", "render", "write_distribution"]
