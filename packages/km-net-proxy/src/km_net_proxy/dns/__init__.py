"""
The DNS half of the gate: a filter that answers allowed names with addresses of its own.

A denied name never leaves; an allowed one is looked up outside first and then answered with a synthetic
address, so that the address of every later connection *is* the name (DESIGN section 7).
"""

from __future__ import annotations
