"""Compile family: from a profile to a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pluggy import HookspecMarker

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from km_core.types import Problem

hookspec = HookspecMarker("km")


@hookspec
def km_validate_profile(profile: Mapping[str, Any], substrate: str) -> Iterable[Problem]:
    """
    Report problems of a merged profile for a substrate.

    Shape: collect.  Called by `km validate --substrate`, `km compile` and `km create`, once per
    profile, after the schema and the built-in semantic rules.
    Failure: an exception is an error that names the plugin; the operation ends.

    Args:
        profile: the merged document as plain data, after `extends` and defaults; read only.
        substrate: name of the substrate it is meant for.

    Returns:
        Problems with dotted paths; core adds file, line and column.
    """
