"""The rig itself: what a test leaves open is told at its end, and never waited for."""

from __future__ import annotations

import asyncio

import pytest
from gate_rig import run


def test_a_server_that_is_left_open_is_told_and_does_not_hang():
    left = []

    async def main():
        left.append(await asyncio.start_server(lambda *_: None, "127.0.0.1", 0))

    with pytest.raises(ResourceWarning, match="unclosed resource <TCPServer"):
        run(main, timeout=5)


def test_a_failure_is_seen_beside_what_it_left_open():
    left = []

    async def main():
        left.append(await asyncio.start_server(lambda *_: None, "127.0.0.1", 0))
        raise ValueError("the finding")

    with pytest.raises(ResourceWarning) as caught:
        run(main, timeout=5)
    assert str(caught.value.__context__) == "the finding"
