"""
Makes the gate's test rig importable and takes time limits off property tests: the cores are shared.

It also lets a uvloop loop end over what a test left open.  `Loop.close` closes each open handle from a C
callback and warns about it first; where that warning is an error the exception is dropped, the handle stays
open, and close waits for it for ever: a test that fails half-way would hang instead of saying why.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import uvloop
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
settings.register_profile("shared-cores", deadline=None)
settings.load_profile("shared-cores")


class EndingLoop(uvloop.Loop):
    """A loop whose close ends, and only then warns about what was left open."""

    def close(self) -> None:
        with warnings.catch_warnings(record=True) as left:
            warnings.simplefilter("always", ResourceWarning)
            super().close()
        for warning in left:
            warnings.warn(warning.message, stacklevel=2)


uvloop.new_event_loop = EndingLoop
