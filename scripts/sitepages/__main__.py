"""Assemble the sources of the site: ``python -m sitepages DIRECTORY``."""

from __future__ import annotations

import sys
from pathlib import Path

from sitepages.tree import assemble

assemble(Path(sys.argv[1]))
