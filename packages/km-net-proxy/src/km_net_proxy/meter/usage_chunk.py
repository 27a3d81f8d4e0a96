"""Takes the usage chunk that the meter asked for out of a chat stream again."""

from __future__ import annotations

import re

from km_net_proxy.meter.figures import has_usage, loads, mapping
from km_net_proxy.meter.sse import MAX_EVENT, data_of

# Two line ends in a row.  A CR is one by itself only when what follows is known not to be its LF.
_BOUNDARY = re.compile(rb"(?:\r\n|\n|\r(?=[^\n]))(?:\r\n|\n|\r(?=[^\n]))")
_LINE_END = re.compile(rb"\r\n|\r")


class UsageChunkFilter:
    """
    Passes a chat stream on, without the one event that has ``choices: []`` and ``usage: {…}``.

    Every other byte stays as it is.  Held back is at most the event that is still arriving.
    """

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self._size = 0
        self._tail = b""

    def feed(self, data: bytes) -> bytes:
        """Take decoded bytes, return the events that are whole."""
        # Only the seam with what is held and the new bytes can hold a boundary.
        seam = self._tail + data
        if b"\r" in seam:
            last = max((match.end() for match in _BOUNDARY.finditer(seam)), default=0)
        else:
            last = seam.rfind(b"\n\n") + 2 if b"\n\n" in seam else 0
        if last == 0:
            self._hold(data)
            return self._release() if self._size > MAX_EVENT else b""
        cut = len(data) - (len(seam) - last)
        # A boundary that ends with CR is told by the byte after it, so it may end before these bytes.
        cut = max(cut, 0)
        ready = self._release() + data[:cut]
        self._hold(data[cut:])
        return _without_usage(ready) if has_usage(ready) else ready

    def finish(self) -> bytes:
        """Return what is left at the end."""
        rest = self._release()
        return _without_usage(rest) if has_usage(rest) else rest

    def _hold(self, data: bytes) -> None:
        if data:
            self._held.append(data)
            self._size += len(data)
            self._tail = (self._tail + data)[-3:]

    def _release(self) -> bytes:
        whole = b"".join(self._held)
        self._held.clear()
        self._size = 0
        self._tail = b""
        return whole


def _without_usage(block: bytes) -> bytes:
    out: list[bytes] = []
    at = 0
    for match in _BOUNDARY.finditer(block):
        out.append(block[at : match.end()])
        at = match.end()
    out.append(block[at:])
    return b"".join(event for event in out if not _is_usage_chunk(event))


def _is_usage_chunk(event: bytes) -> bool:
    if b'"usage"' not in event:
        return False
    for data in data_of(_LINE_END.sub(b"\n", event).strip(b"\n")):
        chunk = mapping(loads(data))
        if chunk.get("choices") == [] and isinstance(chunk.get("usage"), dict):
            return True
    return False
