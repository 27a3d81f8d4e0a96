#!/usr/bin/python3 -I
"""Make the listeners in the namespace this runs in and hand them over: ``km_listeners.py SOCKET``."""

from __future__ import annotations

import runpy
import sys

sys.path.insert(0, "/opt/km/lib")

if __name__ == "__main__":
    runpy.run_module("km_host.listeners", run_name="__main__", alter_sys=True)
