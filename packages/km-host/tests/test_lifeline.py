"""A pod's line to the control plane, against a real server of the real wire."""

from __future__ import annotations

import asyncio
import time

import pytest

from km_core.control.ops import Op, mapping, number, text
from km_core.control.server import ControlServer
from km_core.errors import GuardError
from km_host.lifeline import MAX_REASON, Lifeline, LifelineTiming

FAST = LifelineTiming(lease_s=0.05, retry_s=0.05, silent_s=0.3)
WORD = text(longest=512, empty=True)


class Plane:
    """A sandbox's control socket."""

    def __init__(self, path, token="right"):
        self.path, self.token = path, token
        self.got = []
        self.refuse = set()
        self.deadline = 0.0
        self.server = None

    async def up(self):
        def record(op):
            def run(_peer, **args):
                if op in self.refuse:
                    raise GuardError("not now")
                self.got.append((op, args))
                return {"deadline": self.deadline} if op == "lease" else {}

            return run

        ops = {
            "lease": Op(record("lease"), {"holder": WORD}),
            "event": Op(record("event"), {"kind": WORD, "detail": mapping}),
            "activity": Op(record("activity"), {"at": number(0, 1e12)}),
            "state": Op(record("state"), {"state": WORD, "reason": WORD, "resources": mapping}),
        }
        self.server = ControlServer(self.path, ops, check_token=lambda token: token == self.token)
        await self.server.start()

    async def down(self):
        if self.server is not None:
            await self.server.close()
            self.server = None

    def of(self, op):
        return [args for name, args in self.got if name == op]


def play(short_dir, scenario, token="right"):
    async def run():
        plane = Plane(short_dir / "kmd.sock")
        mark = short_dir / "mark"
        lines = []
        lifeline = Lifeline(
            plane.path,
            token,
            lambda event, **fields: lines.append((event, fields)),
            ensure=("/bin/sh", "-c", f"echo x >> {mark}"),
            timing=FAST,
        )
        lifeline.lines, lifeline.mark = lines, mark
        task = asyncio.ensure_future(lifeline.run())
        try:
            return await scenario(plane, lifeline)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await lifeline.close()
            await plane.down()

    return asyncio.run(run())


async def until(condition):
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen in time")


def test_leases_are_renewed_and_carry_the_deadline(short_dir):
    async def scenario(plane, lifeline):
        await plane.up()
        plane.deadline = 1234.5
        await until(lambda: len(plane.of("lease")) >= 3)
        assert plane.of("lease")[0] == {"holder": "pod"}
        assert lifeline.deadline == 1234.5
        assert not lifeline.is_silent

    play(short_dir, scenario)


def test_a_control_plane_that_is_gone_is_brought_back_and_reports_wait(short_dir):
    async def scenario(plane, lifeline):
        lifeline.report("event", kind="gate_restarted", detail={})
        lifeline.report_state("running", "")
        lifeline.report_state("stopped", "x" * 2000)
        await until(lambda: lifeline.is_silent)
        assert 1 <= len(lifeline.mark.read_text().split()) <= 10
        await plane.up()
        await until(lambda: plane.of("state"))
        assert [args["kind"] for args in plane.of("event")] == ["gate_restarted"]
        assert plane.of("state") == [{"state": "stopped", "reason": "x" * MAX_REASON, "resources": {}}]
        assert not lifeline.is_silent
        await asyncio.sleep(0.2)
        assert len(plane.of("state")) == 1

    play(short_dir, scenario)


def test_a_report_that_is_refused_does_not_hold_up_the_others(short_dir):
    async def scenario(plane, lifeline):
        plane.refuse = {"event"}
        await plane.up()
        lifeline.report("event", kind="a", detail={})
        lifeline.report("activity", at=time.time())
        await until(lambda: plane.of("activity"))
        assert any(event == "report_refused" for event, _ in lifeline.lines)

    play(short_dir, scenario)


def test_a_wrong_token_is_logged_and_is_silence(short_dir):
    async def scenario(plane, lifeline):
        await plane.up()
        await until(lambda: lifeline.is_silent)
        assert plane.got == []
        assert any(event == "control_refuses" for event, _ in lifeline.lines)
        assert "wrong" not in str(lifeline.lines)

    play(short_dir, scenario, token="wrong")


def test_flush_says_whether_all_went(short_dir):
    async def scenario(plane, lifeline):
        lifeline.report_state("stopped", "")
        assert await lifeline.flush(0.2) is False
        await plane.up()
        assert await lifeline.flush(2) is True
        assert plane.of("state")

    play(short_dir, scenario)


def test_only_so_many_reports_are_kept(short_dir):
    async def scenario(plane, lifeline):
        for index in range(1000):
            lifeline.report("event", kind=f"n{index}", detail={})
        await plane.up()
        await until(lambda: plane.of("event"))
        await asyncio.sleep(0.2)
        assert len(plane.of("event")) == 256
        assert plane.of("event")[-1]["kind"] == "n999"

    play(short_dir, scenario)


@pytest.mark.parametrize("command", [("/nonexistent/program",), ("/bin/false",)])
def test_a_command_that_fails_is_no_drama(short_dir, command):
    async def scenario(plane, lifeline):
        lifeline._ensure = command
        await until(lambda: any(event.startswith("control_restart") for event, _ in lifeline.lines))
        await plane.up()
        await until(lambda: plane.of("lease"))

    play(short_dir, scenario)


@pytest.mark.parametrize(("after", "due"), [(-1, False), (1, False), (59, False), (61, True)])
def test_a_control_plane_that_answers_is_not_waited_for_for_ever(short_dir, after, due):
    async def scenario(plane, lifeline):
        plane.deadline = 1_000_000.0
        await plane.up()
        await until(lambda: lifeline.deadline)
        assert not lifeline.is_silent
        return lifeline.is_due(1_000_000.0 + after)

    assert play(short_dir, scenario) is due


def test_a_silent_control_plane_is_not_waited_for_and_no_deadline_is_never_due(short_dir):
    async def scenario(plane, lifeline):
        await plane.up()
        await until(lambda: plane.of("lease"))
        assert not lifeline.is_due(time.time() + 1e9)
        plane.deadline = 1_000_000.0
        await until(lambda: lifeline.deadline)
        await plane.down()
        await until(lambda: lifeline.is_silent)
        assert not lifeline.is_due(999_999.0)
        return lifeline.is_due(1_000_000.0)

    assert play(short_dir, scenario)
