"""
The hook specifications: the whole contract between km-core and plugins.

One module per family, hooks in the order they fire.  Three shapes, no fourth:

*offer*: return descriptors that core picks from by name; one name may be offered once;
*collect*: every answer is merged in the order of plugin names; deny wins, a failure is an error;
*tell*: fan-out; one plugin's failure never stops another.

What holds for every hook: an implementation is a plain function marked ``@hookimpl`` and takes any subset
of the arguments, by name.  It has `km_core.plugins.calls.DEFAULT_TIMEOUT_S` seconds
(``KM_PLUGIN_TIMEOUT_S``), prints nothing on standard output, and returns only the type its page names;
what it returns is checked field by field before it is used.  A hook of the shapes offer and collect changes
nothing, reads no clock and gives the same answer each time.
"""

from __future__ import annotations

from km_core.hookspecs import compile as compile_family
from km_core.hookspecs import enforce, host, meter, notify, provision

FAMILIES = (compile_family, provision, enforce, notify, meter, host)
"""The modules that pluggy reads specifications from, in the order their hooks fire."""
