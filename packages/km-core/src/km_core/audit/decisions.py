"""
Decisions into a chain: all of them, equal ones within a second as one record with a count.

Denials of ever new names cost whoever asks nothing, so they are written one by one up to a rate and
beyond it as one record per kind and rule with their count: none is lost, and no flood fills the disk.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from attrs import define

from km_core.audit.allowance import Allowance
from km_core.audit.endings import Endings
from km_core.audit.redact import redact_name, redact_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from km_core.audit.chain import ChainWriter
    from km_core.types import Verdict

_Key = tuple[str, bool, str, str, str, int, str]

OVERFLOW = "further denials, too many different ones to be recorded one by one"
"""The *detail* of a record that counts denials beyond the rate; it names no host."""


@define
class _Repeat:
    ends: float
    reason: str
    count: int = 0


class DecisionLog:
    """
    Never samples: the first of equal decisions is written at once, what follows within the window is
    counted and written as one record when the window ends.  The counts of a key's records add up to the
    number of decisions; distinct denials beyond the rate share the key of `OVERFLOW`.

    Args:
        chain: where records go.
        clock: monotonic seconds.
        window_s: how long equal decisions are gathered.
        max_keys: how many distinct decisions may be open at once; beyond, all are written out.
        denial_burst: how many distinct denials of one kind may be written one by one in a row.
        denials_per_s: how many more of it each second thereafter.
    """

    def __init__(
        self,
        chain: ChainWriter,
        *,
        clock: Callable[[], float] = time.monotonic,
        window_s: float = 1.0,
        max_keys: int = 32768,
        denial_burst: int = 1024,
        denials_per_s: float = 16.0,
    ) -> None:
        self._chain = chain
        self._clock = clock
        self._window_s = window_s
        self._max_keys = max_keys
        self._open: dict[_Key, _Repeat] = {}
        self._reasons: dict[str, str] = {}
        self._denials = Allowance(denial_burst, denials_per_s)
        self._endings = Endings(chain, clock=clock, window_s=window_s)

    def ended(self, event: dict[str, Any]) -> None:
        """Record what a connection came to; see `Endings.record`."""
        self._endings.record(event)

    def record(
        self,
        verdict: Verdict,
        *,
        kind: str,
        name: str = "",
        address: str = "",
        port: int = 0,
        detail: str = "",
        connection: int = 0,
    ) -> None:
        """
        Record one decision.

        Args:
            verdict: what was decided.
            kind: ``dns_query``, ``connect``, ``http_request`` ...
            name: the host name, canonical where it has a canonical form.
            address: the address, for literals and dialled addresses.
            port: TCP port; 0 when there is none.
            detail: what else tells decisions apart (a query type, a method and path).
            connection: number of the connection that it is about, 0 for none; it does not tell decisions
                apart, and only the record of the first of equal ones has it.

        Raises:
            AuditError: it cannot be written; the caller refuses what was asked.
        """
        key = (kind, verdict.allow, verdict.rule, name, address, port, detail)
        now = self._clock()
        if self._counted(key, now):
            return
        if not verdict.allow and not self._denials.take(kind, now):
            key = (kind, False, verdict.rule, "", "", 0, OVERFLOW)
            if self._counted(key, now):
                return
        if len(self._open) >= self._max_keys:
            self.flush(everything=True)
        self._write(key, verdict.reason, verdict.layer, 1, connection)
        self._open[key] = _Repeat(now + self._window_s, f"{verdict.layer}\0{verdict.reason}")

    def _counted(self, key: _Key, now: float) -> bool:
        """Count a decision whose window is open; a window that has ended is written out first."""
        repeat = self._open.get(key)
        if repeat is None:
            return False
        if now < repeat.ends:
            repeat.count += 1
            return True
        self._write_repeats(key, repeat)
        del self._open[key]
        return False

    def flush(self, *, everything: bool = False) -> None:
        """
        Write the counts of windows that have ended; call it a few times a second.

        Args:
            everything: end all windows now (a checkpoint, the end of the process).

        Raises:
            AuditError: a record cannot be written; what is unwritten stays counted.
        """
        now = self._clock()
        # Windows open in order and are equally long: the first that has not ended ends the search.
        while self._open:
            key = next(iter(self._open))
            repeat = self._open[key]
            if not everything and now < repeat.ends:
                break
            self._write_repeats(key, repeat)
            del self._open[key]
        self._endings.flush(everything=everything)

    def _write_repeats(self, key: _Key, repeat: _Repeat) -> None:
        if repeat.count:
            layer, _, reason = repeat.reason.partition("\0")
            self._write(key, reason, layer, repeat.count, kept=True)
            repeat.count = 0

    def _write(
        self, key: _Key, reason: str, layer: str, count: int, connection: int = 0, *, kept: bool = False
    ) -> None:
        kind, allow, rule, name, address, port, detail = key
        event: dict[str, Any] = {
            "kind": kind,
            "layer": layer,
            "verdict": "allow" if allow else "deny",
            "rule": rule,
            "reason": self._clean(reason),
            "count": count,
        }
        if name:
            event["name"] = redact_name(name)
        if address:
            event["address"] = address
        if port:
            event["port"] = port
        if detail:
            event["detail"] = redact_text(detail)
        if connection:
            event["connection"] = connection
        self._chain.append(event, redacted=True, kept=kept)

    def _clean(self, reason: str) -> str:
        """Redact a reason; there are few, and a flood of denials repeats them."""
        clean = self._reasons.get(reason)
        if clean is None:
            clean = redact_text(reason)
            if len(self._reasons) < 1024:
                self._reasons[reason] = clean
        return clean
