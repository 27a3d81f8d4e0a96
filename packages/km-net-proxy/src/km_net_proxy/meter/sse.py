"""
Server-sent events, incremental, for metering.

The grammar is that of the HTML standard ("Server-sent events", event stream interpretation): lines end
with LF, CRLF or CR, ``data`` lines of one event are joined by LF, one space after the colon is dropped,
a blank line ends the event.  Two deviations, both for the sake of the ledger: an event that the end of
the stream cuts off before its blank line is still given out, and fields other than ``data`` are skipped,
because every provider repeats the event's type inside its JSON.

Metering does not need an event at the moment it arrives, so bytes are gathered into blocks and a
block's events are looked at together; that is what makes a tap affordable at 120-byte chunks.  Nothing
here delays what the client gets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 16 * 1024
"""Bytes gathered before they are looked at."""

MAX_EVENT = 16 * 1024 * 1024
"""Longest event in bytes; a longer one is skipped and the stream counts as damaged."""

_BOM = b"\xef\xbb\xbf"


class EventStream(ABC):
    """
    Cuts a byte stream into blocks of whole events.

    Memory is bounded by the longest event plus `BLOCK`; the result does not depend on how the stream
    is split.

    Attributes:
        damaged: an event was longer than `MAX_EVENT` and is lost.
    """

    def __init__(self) -> None:
        self.damaged = False
        self._waiting: list[bytes] = []
        self._size = 0
        self._enough = BLOCK
        self._rest = b""
        self._started = False
        self._after_cr = False
        self._skipping = False

    @abstractmethod
    def block(self, block: bytes) -> None:
        """
        Take one or more whole events.

        Lines end with LF; events are separated by one or more blank lines, and none is cut.
        """

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        self._waiting.append(data)
        self._size += len(data)
        if self._size >= self._enough:
            self._look()

    def end(self) -> None:
        """Look at everything, the cut-off last event too."""
        self._look()
        rest, self._rest = self._rest, b""
        if rest.strip(b"\n") and not self._skipping:
            self.block(rest)

    def _look(self) -> None:
        data = b"".join(self._waiting)
        self._waiting.clear()
        self._size = 0
        if not self._started:
            if len(data) < len(_BOM) and _BOM.startswith(data):
                # Too little to tell a byte order mark; only the very first bytes can be this few.
                self._rest_of_start(data)
                return
            self._started = True
            data = data.removeprefix(_BOM)
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._cut(data)

    def _rest_of_start(self, data: bytes) -> None:
        if data:
            self._waiting.append(data)
            self._size = len(data)

    def _cut(self, data: bytes) -> None:
        if self._skipping:
            joined = self._rest[-1:] + data
            at = joined.find(b"\n\n")
            if at < 0:
                self._rest = joined[-1:]
                return
            self._skipping = False
            self._rest = b""
            data = joined[at + 2 :]
        whole = self._rest + data if self._rest else data
        at = whole.rfind(b"\n\n")
        if at >= 0:
            self.block(whole[:at])
            self._rest = whole[at + 2 :]
        else:
            self._rest = whole
        if len(self._rest) > MAX_EVENT:
            self.damaged = True
            self._skipping = True
            self._rest = self._rest[-1:]
        # An event that keeps growing is looked at ever more rarely, so that its cost stays linear.
        self._enough = max(BLOCK, len(self._rest))


def data_of(block: bytes) -> Iterator[bytes]:
    """
    Yield the data of each event of a *block* (lines end with LF), events without data left out.

    A single ``data`` line, the rule in practice, is sliced without joining.
    """
    for event in block.split(b"\n\n"):
        parts: list[bytes] = []
        for line in event.split(b"\n"):
            if line.startswith(b"data:"):
                parts.append(line[6:] if line[5:6] == b" " else line[5:])
            elif line == b"data":
                parts.append(b"")
        if parts:
            yield parts[0] if len(parts) == 1 else b"\n".join(parts)
