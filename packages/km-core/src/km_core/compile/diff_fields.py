"""
What two profiles say differently in fields that no plan carries, such as ``spec.identity``.

A plan holds what this km's own substrates act on; a cloud identity, mail or an agent's rights are acted on
by distributions that may not be here.  Their fields are compared as they stand in the effective profiles:
a list that allows by its entries, entry by entry; of every other one that bears on rights it is not known
which value is stricter, so a difference counts as looser.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import evolve

from km_core.compile.diff import LOOSENED, OTHER, TIGHTENED, Change, PlanDiff

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

_COMPARED = (
    *("spec.network", "spec.sourceAccess", "spec.budget", "spec.lifecycle", "spec.runtime.substrate"),
    *(
        f"spec.execution.{name}"
        for name in ("shell", "workingDir", "env", "initCommands", "configFiles", "privileged")
    ),
)
"""What plans carry, and `km_core.compile.diff` compares."""
_ALLOWING = (
    "spec.identity.allowedSecretPaths",
    "spec.identity.allowedRegions",
    "spec.otp.secrets",
    "spec.agent.allowedTools",
    "spec.email.allowedSenders",
)
"""Lists whose entries each allow something."""
_EMPTY_ALLOWS_NOTHING = ("spec.identity.allowedSecretPaths", "spec.otp.secrets")
"""Those of which it is sure that without an entry they allow nothing, and not everything."""
_RIGHTS = (
    *("spec.identity", "spec.otp", "spec.email", "spec.sidecars", "spec.observability"),
    *("spec.agent.allowedTools", "spec.cli.claudeArgs", "spec.cli.codexArgs"),
    *("spec.cli.notifySlackInboundEnabled", "spec.cli.notifySlackTranscriptEnabled"),
    *("spec.execution.useBedrock", "spec.execution.initScripts", "spec.execution.rsync"),
    *("spec.runtime.mountEFS", "spec.runtime.ami"),
)
"""Fields and sections that bear on what a sandbox may do, or on what is seen of it; so may any of a plugin."""
_MODELLED = (
    *("metadata", "lifecycle", "runtime", "execution", "sourceAccess", "network", "identity", "sidecars"),
    *("observability", "agent", "artifacts", "budget", "email", "otp", "cli"),
)
_OFF_WHEN_ABSENT = ("spec.cli", "spec.otp", "spec.agent", "spec.artifacts", "spec.execution", "spec.runtime")
"""Where a field that is not written is the same as one that is false or empty."""


def with_fields(
    found: PlanDiff, before: Mapping[str, Any], after: Mapping[str, Any], *, inert: Collection[str] = ()
) -> PlanDiff:
    """
    Add what the effective profiles say differently in fields that no plan carries.

    Args:
        found: how the plans differ.
        before: the merged document of the plan that is known.
        after: that of the plan that is looked at.
        inert: fields that have no meaning where the second one runs; they never count as looser.
    """
    more: dict[str, list[Change]] = {LOOSENED: [], TIGHTENED: [], OTHER: []}
    old, new = dict(_leaves(before.get("spec"), "spec")), dict(_leaves(after.get("spec"), "spec"))
    for path in sorted(set(old) | set(new)):
        first, second = old.get(path), new.get(path)
        # True == 1 in Python; a profile's true is not its 1.
        if (type(first), first) == (type(second), second) or _below(path, _COMPARED):
            continue
        if not first and not second and _below(path, _OFF_WHEN_ABSENT):
            continue
        for direction, text in _judge(path, first, second, harmless=path in inert):
            more[direction].append(Change("field", path, text))
    return evolve(
        found,
        loosened=(*found.loosened, *more[LOOSENED]),
        tightened=(*found.tightened, *more[TIGHTENED]),
        other=(*found.other, *more[OTHER]),
    )


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every value that is no section, by dotted path."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}")
    elif node is not None:
        yield path, node


def _judge(path: str, old: Any, new: Any, *, harmless: bool) -> Iterator[tuple[str, str]]:
    name = path.removeprefix("spec.")
    if harmless:
        yield OTHER, f"{name} is written differently; it has no meaning here"
        return
    first, second = _entries(old), _entries(new)
    if path in _ALLOWING and (path in _EMPTY_ALLOWS_NOTHING or (first and second)):
        for direction, word, entries in (
            (LOOSENED, "newly lists", second - first),
            (TIGHTENED, "no longer lists", first - second),
        ):
            if entries:
                yield direction, f"{name} {word} {', '.join(sorted(entries))}"
        if first == second:
            yield OTHER, f"{name} is written differently"
        return
    # Values stay untold: what is passed on to an agent or a collector may be anything.
    if _below(path, _RIGHTS) or path.split(".")[1] not in _MODELLED:
        yield LOOSENED, f"{name} is written differently, which may be looser"
    else:
        yield OTHER, f"{name} is written differently"


def _entries(value: Any) -> set[str]:
    return {str(entry) for entry in value} if isinstance(value, (list, tuple)) else set()


def _below(path: str, sections: tuple[str, ...]) -> bool:
    return any(path == section or path.startswith(f"{section}.") for section in sections)
