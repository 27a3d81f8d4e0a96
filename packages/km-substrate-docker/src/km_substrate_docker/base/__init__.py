"""
The base image: built here once, used as pause, helper and gate container and as the default sandbox.

`closure` says what Python code belongs in it, `rootfs` makes its operating system, `build` puts both
together with the engine, `inside` holds the programs that run in it.
"""

from __future__ import annotations
