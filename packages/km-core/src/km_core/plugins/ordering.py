"""The order of lifecycle steps: by phase, then as their *after* says, then by name."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from km_core.control.steps import PHASES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from km_core.control.steps import LifecycleStep


def in_order(steps: Mapping[str, LifecycleStep]) -> tuple[list[str], list[str]]:
    """
    Return the names of *steps* in the order they act, and the names in a cycle.

    Args:
        steps: by ``PLUGIN.NAME``; what *after* names outside their phase, or not at all, is ignored.

    Returns:
        The order, without the steps of a cycle and those that wait for it; and one cycle, its first
        name repeated at the end, or nothing.
    """
    order: list[str] = []
    for phase in PHASES:
        names = {name for name, step in steps.items() if step.phase == phase}
        waits = {name: set(steps[name].after) & names for name in names}
        ready = [name for name in names if not waits[name]]
        heapq.heapify(ready)
        while ready:
            name = heapq.heappop(ready)
            order.append(name)
            del waits[name]
            for other, left in waits.items():
                if name in left:
                    left.remove(name)
                    if not left:
                        heapq.heappush(ready, other)
        if waits:
            return order, _cycle(waits)
    return order, []


def _cycle(waits: Mapping[str, set[str]]) -> list[str]:
    """Return one cycle of a graph in which everything waits for something."""
    path = [min(waits)]
    while True:
        following = min(name for name in waits[path[-1]] if name in waits)
        if following in path:
            return [*path[path.index(following) :], following]
        path.append(following)
