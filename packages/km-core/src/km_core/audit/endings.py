"""
What connections moved, into a chain: one record each up to a rate, beyond it one for all of a host.

A connection costs whoever makes it next to nothing, its record stays for ever.  Sums are exact: bytes,
requests and durations of gathered records are added up, and none is dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import define, field

from km_core.audit.allowance import Allowance

if TYPE_CHECKING:
    from collections.abc import Callable

    from km_core.audit.chain import ChainWriter

SUMS = ("requests", "bytes_up", "bytes_down", "duration_ms")
"""Fields that are added up."""

_KEYS = ("kind", "layer", "name", "port", "error")
_Key = tuple[Any, ...]


@define
class _Gathered:
    ends: float
    count: int = 0
    sums: dict[str, int] = field(factory=dict)


class Endings:
    """
    Writes records of what has ended.

    Args:
        chain: where records go.
        clock: monotonic seconds.
        window_s: how long records beyond the rate are gathered.
        burst: how many of one kind may be written one by one in a row.
        per_s: how many more of it each second thereafter.
        max_keys: how many hosts are told apart beyond the rate; further ones share a record without a name.
    """

    def __init__(
        self,
        chain: ChainWriter,
        *,
        clock: Callable[[], float],
        window_s: float = 1.0,
        burst: int = 4096,
        per_s: float = 64.0,
        max_keys: int = 4096,
    ) -> None:
        self._chain = chain
        self._clock = clock
        self._window_s = window_s
        self._allowance = Allowance(burst, per_s)
        self._max_keys = max_keys
        self._open: dict[_Key, _Gathered] = {}

    def record(self, event: dict[str, Any]) -> None:
        """
        Record one ending: an event with ``kind`` and, as they apply, `SUMS` and what tells hosts apart.

        Raises:
            AuditError: it cannot be written.
        """
        now = self._clock()
        if self._allowance.take(event["kind"], now):
            self._chain.append(event)
            return
        key = tuple(event.get(name, "") for name in _KEYS)
        if key not in self._open and len(self._open) >= self._max_keys:
            key = (event["kind"], event.get("layer", ""), "", "", "")
        gathered = self._open.setdefault(key, _Gathered(now + self._window_s))
        gathered.count += 1
        for name in SUMS:
            if name in event:
                gathered.sums[name] = gathered.sums.get(name, 0) + int(event[name])

    def flush(self, *, everything: bool = False) -> None:
        """
        Write gathered records whose window has ended, or all of them.

        Raises:
            AuditError: one cannot be written; what is unwritten stays gathered.
        """
        now = self._clock()
        for key in list(self._open):
            gathered = self._open[key]
            if not everything and now < gathered.ends:
                # Windows open in order and are equally long.
                return
            event = {name: value for name, value in zip(_KEYS, key, strict=True) if value != ""}
            self._chain.append({**event, "count": gathered.count, **gathered.sums}, kept=True)
            del self._open[key]
