#!/usr/bin/python3 -I
"""Start one of km's runners inside a container of km's own: ``km_sidecar.py gate --connect PATH``."""

from __future__ import annotations

import sys

sys.path.insert(0, "/opt/km/lib")

if __name__ == "__main__":
    from km_core.sidecars.runner import main

    sys.exit(main())
