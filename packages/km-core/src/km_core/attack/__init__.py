"""
Self-attack: the known ways out of a sandbox, tried from inside a running one.

`CASES` is the matrix as data, `Attack` runs it against a sandbox, `Canary` is what nothing may reach.
"""

from __future__ import annotations

from km_core.attack.bundle import bundle
from km_core.attack.canary import Canary, host_addresses
from km_core.attack.matrix import CASES, ELSEWHERE, Case
from km_core.attack.run import Attack, Result, Target

__all__ = ["CASES", "ELSEWHERE", "Attack", "Canary", "Case", "Result", "Target", "bundle", "host_addresses"]
