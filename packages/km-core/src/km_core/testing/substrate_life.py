"""The promises of a substrate about life and death of a sandbox, and its fixtures; part of `SubstrateContract`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from typing import TYPE_CHECKING, Protocol

import pytest
from attrs import evolve

from km_core.config import Config
from km_core.control.substrate import Box
from km_core.errors import KmError
from km_core.plan import SandboxPlan
from km_core.testing.fake_control import FakeControlPlane
from km_core.testing.inside import REFUSED, begin, fork, run
from km_core.testing.probes import (
    canary,
    files_holding,
    must_override,
    processes_naming,
    short_directory,
)
from km_core.types import SandboxRecord, SandboxState, new_sandbox_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from km_core.control.substrate import Leftover, Substrate

TICKS = "while :; do echo tick; sleep 0.1; done"

_LOSS_S = 2.0
"""How long the death of what enforces may take to be felt: a killed process dies when it is scheduled."""


class Access(Protocol):
    """How a test sees whether a running sandbox reaches what its plan allows."""

    def allowed(self, box: Box) -> bool:
        """Try the allowed destination from inside, with a new connection; say whether an answer came back."""

    def kill(self, box: Box) -> None:
        """End what the sandbox's enforcement depends on, the hard way; it may be dying when this returns."""


class SubstrateLife:
    """Fixtures of a substrate's contract, and the promises S9 to S19."""

    supports_stop = True
    supports_pause = True
    supports_network = True
    supports_root = False
    enforces_deadline = False
    gone_s = 10.0
    deadline_slack_s = 15.0
    kill_delays: tuple[float, ...] = (0.0, 0.02, 0.1, 0.3)

    @pytest.fixture
    def substrate(self) -> Substrate:
        """The substrate."""
        must_override("substrate", "return the Substrate that your plugin offers")

    @pytest.fixture
    def config(self) -> Iterator[Config]:
        """A configuration with a fresh home."""
        root = short_directory()
        home, runtime = root / "h", root / "r"
        home.mkdir(mode=0o700)
        runtime.mkdir(mode=0o700)
        yield Config(home=home, runtime_dir=runtime, max_sandboxes=0)
        shutil.rmtree(root, ignore_errors=True)

    @pytest.fixture
    def plan(self, substrate: Substrate) -> SandboxPlan:
        """The plan of the sandboxes here; the default allows nothing."""
        return SandboxPlan(profile="contract", profile_digest="0" * 64, prefix="sb", substrate=substrate.name)

    @pytest.fixture
    def control_plane(self, config: Config) -> Iterator[FakeControlPlane]:
        """What answers on the sandboxes' sockets."""
        plane = FakeControlPlane(config)
        yield plane
        plane.close()

    @pytest.fixture
    def make_box(
        self, substrate: Substrate, config: Config, plan: SandboxPlan, control_plane: FakeControlPlane
    ) -> Iterator[Callable[..., Box]]:
        """Give a function that makes what `km create` makes before it prepares a sandbox."""
        made: list[Box] = []

        def make(*, expires_at: float = 0.0) -> Box:
            sandbox_id = new_sandbox_id()
            now = time.time()
            record = SandboxRecord(
                id=sandbox_id,
                profile=plan.profile,
                substrate=substrate.name,
                state=SandboxState.CREATING,
                created_at=now,
                expires_at=expires_at,
                plan_digest=plan.digest(),
            )
            state_dir, audit_dir = config.sandbox_dir(sandbox_id), config.audit_dir(sandbox_id)
            for directory in (
                *(state_dir / name for name in ("workspace", "home", "gate", "logs")),
                audit_dir,
            ):
                directory.mkdir(mode=0o700, parents=True)
            (state_dir / "plan.json").write_text(plan.to_json(), encoding="utf-8")
            control_plane.call("sandbox.create", {"record": record.to_wire()})
            opened = control_plane.call("sandbox.open", {"id": sandbox_id})
            runtime_dir = config.sandbox_runtime_dir(sandbox_id)
            made.append(
                Box(
                    id=sandbox_id,
                    plan=plan,
                    config=config,
                    state_dir=state_dir,
                    runtime_dir=runtime_dir,
                    audit_dir=audit_dir,
                    control_socket=runtime_dir / "kmd.sock",
                    token=opened["token"],
                )
            )
            return made[-1]

        yield make
        for box in made:
            substrate.destroy(box)

    @pytest.fixture
    def box(self, make_box: Callable[..., Box], substrate: Substrate) -> Box:
        """A running sandbox."""
        box = make_box()
        substrate.prepare(box)
        substrate.start(box)
        return box

    @pytest.fixture
    def access(self) -> Access:
        """How access is seen and what it depends on; must be overridden while `supports_network` is set."""
        must_override("access", "return an Access, or declare supports_network = False")

    @pytest.fixture
    def breakages(self) -> Sequence[Callable[[Box], Box]]:
        """Ways to spoil a box so that preparing it fails somewhere; may be overridden."""

        def no_gate_directory(box: Box) -> Box:
            shutil.rmtree(box.state_dir / "gate")
            (box.state_dir / "gate").write_text("in the way", encoding="utf-8")
            return box

        def no_control_plane(box: Box) -> Box:
            return evolve(box, control_socket=box.runtime_dir / "nobody.sock")

        return (no_gate_directory, no_control_plane)

    def traces(self, substrate: Substrate, box: Box, seconds: float | None = None) -> list[str]:
        """Return what is left of a sandbox on the host, after waiting for it to go."""
        ends = time.monotonic() + (self.gone_s if seconds is None else seconds)
        while (found := _traces(substrate, box)) and time.monotonic() < ends:
            time.sleep(0.05)
        return found

    def test_s9_nothing_of_the_workload_runs_before_start(
        self, make_box: Callable[..., Box], substrate: Substrate
    ) -> None:
        """S9: after `prepare` alone the sandbox does not run and takes no command."""
        box = make_box()
        substrate.prepare(box)
        assert substrate.status(box)["running"] is False
        ran = run(substrate, box, "/bin/sh", "-c", "echo ran > /workspace/early")
        assert ran.code == REFUSED, f"a command ran before start: {ran}"
        assert not (box.state_dir / "workspace" / "early").exists()

    def test_s10_creating_again_changes_nothing(
        self, make_box: Callable[..., Box], substrate: Substrate
    ) -> None:
        """S10: `prepare` and `start` are idempotent: the same sandbox goes on, and nothing is doubled."""
        box = make_box()
        substrate.prepare(box)
        substrate.prepare(box)
        substrate.start(box)
        before = sorted(_names(substrate, box))
        assert run(substrate, box, "/bin/sh", "-c", "echo kept > kept", cwd="/workspace").code == 0
        substrate.prepare(box)
        substrate.start(box)
        assert sorted(_names(substrate, box)) == before, "a second create made something new"
        assert substrate.status(box)["running"] is True
        assert run(substrate, box, "cat", "kept", cwd="/workspace").text == "kept\n"

    def test_s11_stopping_keeps_the_files(self, box: Box, substrate: Substrate) -> None:
        """S11: `stop` ends every process, keeps the files, and is idempotent; `resume` brings it back."""
        if not self.supports_stop:
            pytest.skip("supports_stop = False")
        assert run(substrate, box, "/bin/sh", "-c", "echo kept > kept", cwd="/workspace").code == 0
        ticking = begin(substrate, box, "/bin/sh", "-c", TICKS)
        try:
            assert ticking.read(20), "the command says nothing"
            substrate.stop(box)
            substrate.stop(box)
            assert substrate.status(box)["running"] is False
            ends = time.monotonic() + self.gone_s
            while ticking.read(0.3) and time.monotonic() < ends:
                pass
            assert not ticking.read(0.5), "a command runs on in a stopped sandbox"
        finally:
            ticking.kill()
        assert run(substrate, box, "true").code == REFUSED
        substrate.resume(box)
        assert run(substrate, box, "cat", "kept", cwd="/workspace").text == "kept\n"

    def test_s12_a_paused_sandbox_does_nothing(self, box: Box, substrate: Substrate) -> None:
        """S12: `pause` freezes what runs and `resume` lets it go on; both are idempotent."""
        if not self.supports_pause:
            with pytest.raises(KmError):
                substrate.pause(box)
            pytest.skip("supports_pause = False, and pause is refused")
        ticking = begin(substrate, box, "/bin/sh", "-c", TICKS)
        try:
            assert ticking.read(20), "the command says nothing"
            substrate.pause(box)
            substrate.pause(box)
            ticking.read(0.5, enough=1 << 20)
            assert ticking.read(1.0) == b"", "a paused sandbox goes on"
            substrate.resume(box)
            substrate.resume(box)
            assert ticking.read(20), "a resumed sandbox stands still"
        finally:
            ticking.kill()

    def test_s13_destroying_leaves_nothing_and_is_idempotent(self, box: Box, substrate: Substrate) -> None:
        """S13: after `destroy` only the state directory is left; again, and without anything, it is fine."""
        running = begin(substrate, box, "/bin/sh", "-c", f"(trap '' TERM HUP INT; {TICKS}) & {TICKS}")
        try:
            running.read(20)
            substrate.destroy(box)
        finally:
            running.kill()
        substrate.destroy(box)
        assert self.traces(substrate, box) == []
        assert box.state_dir.is_dir(), "the state directory is km's to remove"
        assert substrate.status(box)["running"] is False
        assert run(substrate, box, "true").code == REFUSED

    def test_s14_a_create_killed_at_any_moment_leaves_nothing(
        self, make_box: Callable[..., Box], substrate: Substrate
    ) -> None:
        """S14: whenever the creating process is killed, `destroy` leaves nothing."""
        for delay in self.kill_delays:
            box = make_box()
            pid = fork()
            if pid == 0:
                with contextlib.suppress(BaseException):
                    substrate.prepare(box)
                    substrate.start(box)
                os._exit(0)
            time.sleep(delay)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            substrate.destroy(box)
            assert self.traces(substrate, box) == [], f"left after a kill at {delay:g} s"

    def test_s15_a_create_that_fails_says_why_and_leaves_nothing(
        self,
        make_box: Callable[..., Box],
        substrate: Substrate,
        breakages: Sequence[Callable[[Box], Box]],
    ) -> None:
        """S15: a failed `prepare` or `start` is a `KmError`; `destroy` then leaves nothing."""
        for spoil in breakages:
            box = spoil(make_box())
            with contextlib.suppress(KmError):
                substrate.prepare(box)
                substrate.start(box)
            substrate.destroy(box)
            assert self.traces(substrate, box) == [], f"left after {spoil.__name__}"

    def test_s16_an_orphan_is_found_and_removed(self, box: Box, substrate: Substrate, config: Config) -> None:
        """S16: a sandbox that nobody destroyed is among `leftovers` of its home only, and can be removed."""
        elsewhere = evolve(config, home=config.home / "other", runtime_dir=config.runtime_dir / "other")
        assert [item for item in substrate.leftovers(elsewhere) if item.sandbox_id == box.id] == []
        found = _leftovers(substrate, box)
        assert found, "a running sandbox is not among the leftovers"
        for leftover in found:
            substrate.remove_leftover(config, leftover)
            substrate.remove_leftover(config, leftover)
        for _ in range(5):
            for leftover in _leftovers(substrate, box):
                substrate.remove_leftover(config, leftover)
            time.sleep(0.1)
        # Its socket directory belongs to the control plane, which removes those without a record.
        assert [trace for trace in self.traces(substrate, box) if not trace.startswith("file ")] == []

    def test_s17_no_secret_shows(
        self, make_box: Callable[..., Box], substrate: Substrate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """S17: the token and the operator's variables are in no argument, environment, file, output or error."""
        mine = canary()
        monkeypatch.setenv("ANTHROPIC_API_KEY", mine)
        monkeypatch.setenv("KM_CONTRACT_TOKEN", mine)
        box = make_box()
        substrate.prepare(box)
        substrate.start(box)
        look = "env; cat /proc/1/environ /proc/1/cmdline /proc/self/environ 2>/dev/null; :"
        shown = run(substrate, box, "/bin/sh", "-c", look)
        texts = [repr(shown), repr(box), json.dumps(substrate.status(box))]
        for secret, name in ((box.token, "the token"), (mine, "a variable of the operator")):
            assert processes_naming(secret) == {}, f"{name} is in a process's arguments or environment"
            places = (box.state_dir, box.runtime_dir, box.audit_dir)
            assert files_holding(secret, *places) == [], f"{name} is in a file"
            assert not any(secret in text for text in texts), f"{name} is shown"
        substrate.destroy(box)
        for attempt in (substrate.start, substrate.pause):
            try:
                attempt(box)
            except KmError as error:
                told = json.dumps(error.to_dict())
                assert box.token not in told, "the token is in an error"
                assert mine not in told, "a variable of the operator is in an error"

    def test_s18_without_what_enforces_there_is_no_access(
        self, box: Box, substrate: Substrate, request: pytest.FixtureRequest
    ) -> None:
        """S18: when what enforces dies, the sandbox loses access; it never gets more."""
        if not self.supports_network:
            ran = run(substrate, box, "/bin/sh", "-c", "cat /proc/net/dev; cat /proc/net/route")
            devices = [line.partition(":")[0].strip() for line in ran.text.splitlines() if ":" in line]
            assert devices == ["lo"], f"a sandbox without network has {devices}"
            return
        access: Access = request.getfixturevalue("access")
        assert access.allowed(box), (
            "the allowed destination is not reached: nothing can be said about its loss"
        )
        access.kill(box)
        ends = time.monotonic() + _LOSS_S
        while access.allowed(box):
            assert time.monotonic() < ends, (
                "it fails open: nothing enforces any more, and traffic still passes"
            )
            time.sleep(0.05)
        time.sleep(1)
        assert not access.allowed(box), "it fails open after a while"

    def test_s19_a_deadline_holds_without_a_control_plane(
        self, make_box: Callable[..., Box], substrate: Substrate, control_plane: FakeControlPlane
    ) -> None:
        """S19: a sandbox ends at its deadline although nobody comes to end it."""
        if not self.enforces_deadline:
            pytest.skip("enforces_deadline = False: the control plane ends the sandboxes of this substrate")
        ends = time.time() + 3
        box = make_box(expires_at=ends)
        substrate.prepare(box)
        substrate.start(box)
        assert substrate.status(box)["running"] is True
        time.sleep(1)
        control_plane.close()
        while substrate.status(box)["running"]:
            assert time.time() < ends + self.deadline_slack_s, "the sandbox outlives its deadline"
            time.sleep(0.1)


def _leftovers(substrate: Substrate, box: Box) -> list[Leftover]:
    return [item for item in substrate.leftovers(box.config) if item.sandbox_id == box.id]


def _names(substrate: Substrate, box: Box) -> list[tuple[str, str]]:
    return [(item.what, item.detail) for item in _leftovers(substrate, box)]


def _traces(substrate: Substrate, box: Box) -> list[str]:
    """Return leftovers as the substrate and as the host see them; the control plane's socket is not its."""
    found = [
        f"leftover: {item.what} {item.detail}"
        for item in _leftovers(substrate, box)
        if item.detail != str(box.runtime_dir)
    ]
    found += [f"process {pid} ({place})" for pid, place in processes_naming(box.id).items()]
    with contextlib.suppress(FileNotFoundError):
        found += [f"file {entry}" for entry in box.runtime_dir.iterdir() if entry.name != "kmd.sock"]
    return found
