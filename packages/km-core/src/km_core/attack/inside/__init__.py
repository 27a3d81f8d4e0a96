"""
What is tried from inside, standard library only: these modules are sent into a sandbox as they are.

They run on whatever ``python3`` is there, so nothing here imports the rest of km.
"""

from __future__ import annotations
