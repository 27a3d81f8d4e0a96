"""Substrates with one planted defect each; `Honest` has none."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from km_core.errors import ProvisionError
from km_core.plan import HostRule, NetworkPlan, SandboxPlan
from km_core.testing.fakes import FakeSubstrate
from km_core.testing.substrate import SubstrateContract

QUIET = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def leak(box, seconds="30", **env):
    """Start a process that nobody will find again; it ends by itself."""
    process = subprocess.Popen(["sleep", seconds], env={"PATH": os.environ["PATH"], **env}, **QUIET)
    process.returncode = 0
    return process


class Base(SubstrateContract):
    Made = FakeSubstrate
    gone_s = 5.0
    kill_delays = (0.01, 0.2)

    @pytest.fixture
    def substrate(self):
        return self.Made()

    @pytest.fixture
    def plan(self):
        network = NetworkPlan(hosts=(HostRule("allowed.example", "exact"),))
        return SandboxPlan("contract", "0" * 64, "sb", "fake", network=network)

    @pytest.fixture
    def access(self, substrate):
        class Gate:
            def allowed(self, box):
                return substrate.reaches(box, "allowed.example")

            def kill(self, box):
                os.kill(substrate.status(box)["gate"]["pid"], signal.SIGKILL)

        return Gate()


class TestHonest(Base):
    pass


class TestMakesThingsWhileItLooks(Base):
    class Made(FakeSubstrate):
        def problems(self, plan, config):
            (config.home / "probe").write_text("x")
            return super().problems(plan, config)


class TestAcceptsWhatItCannotDo(Base):
    class Made(FakeSubstrate):
        def problems(self, plan, config):
            return ()


class TestGoesThroughAShell(Base):
    class Made(FakeSubstrate):
        def exec(self, box, argv, **how):
            return super().exec(box, ["/bin/sh", "-c", " ".join(argv)], **how)


class TestLosesTheExitCode(Base):
    class Made(FakeSubstrate):
        def exec(self, box, argv, **how):
            return min(super().exec(box, argv, **how), 1)


class TestHoldsTheOutputBack(Base):
    class Made(FakeSubstrate):
        def exec(self, box, argv, *, env, cwd, root, tty):
            if "ready" not in argv[-1]:
                return super().exec(box, argv, env=env, cwd=cwd, root=root, tty=tty)
            done = subprocess.run(
                list(argv), stdout=subprocess.PIPE, env=self._environment(box, "exec"), cwd="/", check=False
            )
            os.write(1, done.stdout)
            return done.returncode


class TestStartsWhatWasNotMade(Base):
    class Made(FakeSubstrate):
        def start(self, box):
            self._note(box, "running")


class TestRunsBeforeStart(Base):
    class Made(FakeSubstrate):
        def prepare(self, box):
            super().prepare(box)
            self._note(box, "running")


class TestCreateIsNotIdempotent(Base):
    class Made(FakeSubstrate):
        def prepare(self, box):
            self._spawn(box, "gate")
            if not self._state(box):
                self._note(box, "prepared")


class TestStopLosesTheFiles(Base):
    class Made(FakeSubstrate):
        def stop(self, box):
            super().stop(box)
            for path in (box.state_dir / "workspace").iterdir():
                path.unlink()


class TestPauseDoesNothing(Base):
    class Made(FakeSubstrate):
        def pause(self, box):
            super().resume(box)


class TestDestroyLeavesProcesses(Base):
    gone_s = 0.5

    class Made(FakeSubstrate):
        def prepare(self, box):
            super().prepare(box)
            leak(box, KM_TOY=box.id)


class TestDestroyIsNotIdempotent(Base):
    class Made(FakeSubstrate):
        def destroy(self, box):
            if not self._state(box) and not getattr(self, "again", False):
                self.again = True
                raise ProvisionError("there is no such sandbox")
            super().destroy(box)


class TestForgetsAKilledCreate(Base):
    gone_s = 0.5

    class Made(FakeSubstrate):
        known = ()

        def prepare(self, box):
            super().prepare(box)
            self.known = (*self.known, box.id)

        def destroy(self, box):
            if box.id in self.known:
                super().destroy(box)


class TestLeaksOnAFailedCreate(Base):
    gone_s = 0.5

    class Made(FakeSubstrate):
        def prepare(self, box):
            if not box.control_socket.exists():
                leak(box, KM_TOY=box.id)
                raise ProvisionError("the control plane does not answer")
            super().prepare(box)


class TestFindsNoOrphans(Base):
    gone_s = 0.5

    class Made(FakeSubstrate):
        def leftovers(self, config):
            return ()


class TestShowsTheToken(Base):
    class Made(FakeSubstrate):
        def _environment(self, box, role):
            return super()._environment(box, role) | {"KM_TOKEN": box.token}


class TestFailsOpen(Base):
    class Made(FakeSubstrate):
        def reaches(self, box, host):
            return True


class TestIgnoresTheDeadline(Base):
    enforces_deadline = True
    deadline_slack_s = 0.5
