"""Makes the gate's test rig importable and takes time limits off property tests: the cores are shared."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
settings.register_profile("shared-cores", deadline=None)
settings.load_profile("shared-cores")
