"""
What runs inside a sandbox: standard library only, copied to ``/opt/km`` and run by the system's python3.

`frames` is shared by both sides; nothing here may import from anywhere else in km.
"""

from __future__ import annotations
