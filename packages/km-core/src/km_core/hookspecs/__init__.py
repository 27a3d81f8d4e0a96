"""
The hook specifications: the whole contract between km-core and plugins.

One module per family, hooks in the order they fire.  Three shapes, no fourth: *offer* (return
descriptors that core picks from by name), *collect* (every answer is merged; deny wins) and *tell*
(fan-out; one plugin's failure never stops another).
"""

from __future__ import annotations

from km_core.hookspecs import compile as compile_family
from km_core.hookspecs import enforce, host, meter, notify, provision

FAMILIES = (compile_family, provision, enforce, notify, meter, host)
"""The modules that pluggy reads specifications from, in the order their hooks fire."""
