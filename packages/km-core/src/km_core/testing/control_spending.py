"""The promises of a control plane about money, and its fixtures; part of `ControlPlaneContract`."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from attrs import define
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from km_core.config import Config
from km_core.control.rpc import ControlClient
from km_core.errors import GuardError, KmError
from km_core.plan import SandboxPlan
from km_core.testing.probes import must_override, short_directory
from km_core.types import SandboxRecord, SandboxState, new_sandbox_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from km_core.control.protocols import Control, ControlPlaneOffer

USAGE = {
    "model": "m",
    "provider": "p",
    "input_tokens": 3,
    "output_tokens": 4,
    "estimated": False,
    "rate_source": "table",
}


def new_record(**fields: Any) -> SandboxRecord:
    """Return the record of a sandbox that is being created, with *fields* changed."""
    now = time.time()
    base: dict[str, Any] = {
        "id": new_sandbox_id(),
        "profile": "contract",
        "substrate": "contract",
        "state": SandboxState.CREATING,
        "created_at": now,
        "last_activity_at": now,
        "plan_digest": plan().digest(),
    }
    base.update(fields)
    base["state"] = SandboxState(base["state"])
    return SandboxRecord(**base)


def plan() -> SandboxPlan:
    """Return the plan of the sandboxes here: nothing may be reached."""
    return SandboxPlan(profile="contract", profile_digest="0" * 64, prefix="sb", substrate="contract")


@define
class Sandbox:
    """A sandbox and its own connection to the control plane."""

    id: str
    socket: Path
    token: str
    client: ControlClient

    def reserve(self, call_id: str, amount: int) -> dict[str, Any]:
        """Ask for room."""
        answer: dict[str, Any] = self.client.call(
            "ledger.reserve", call_id=call_id, model="m", provider="p", amount_nusd=amount
        )
        return answer

    def settle(self, call_id: str, cost: int) -> dict[str, Any]:
        """Say what a call cost."""
        answer: dict[str, Any] = self.client.call(
            "ledger.settle", call_id=call_id, cost_nusd=cost, usage=USAGE
        )
        return answer


class SpendingPromises:
    """Fixtures of a control plane's contract, and the promises C11 to C15."""

    supports_crash = True

    @pytest.fixture
    def offer(self) -> ControlPlaneOffer:
        """The control plane."""
        must_override("offer", "return the ControlPlaneOffer that your plugin offers")

    @pytest.fixture
    def config(self) -> Iterator[Config]:
        """A configuration with a fresh home."""
        root = short_directory()
        yield Config(home=root / "h", runtime_dir=root / "r", max_sandboxes=0)
        shutil.rmtree(root, ignore_errors=True)

    @pytest.fixture
    def connect(self, offer: ControlPlaneOffer, config: Config) -> Iterator[Callable[[], Control]]:
        """Give a function that makes connections; all are closed at the end, and the control plane is ended."""
        made: list[Control] = []

        def make() -> Control:
            made.append(offer.connect(config))
            return made[-1]

        yield make
        if made:
            with contextlib.suppress(KmError):
                made[-1].call("shutdown")
        for control in made:
            control.close()

    @pytest.fixture
    def control(self, connect: Callable[[], Control]) -> Control:
        """A connection with the operator's rights."""
        return connect()

    @pytest.fixture
    def crash(self, control: Control) -> Callable[[], None]:
        """Give a function that kills the control plane; the default sends SIGKILL to the pid it names."""
        if not self.supports_crash:
            pytest.skip("supports_crash = False")
        pid = int(control.call("ping")["pid"])
        if pid == os.getpid():
            must_override(
                "crash", "the control plane runs in this process; kill it, or set supports_crash = False"
            )

        def kill() -> None:
            os.kill(pid, signal.SIGKILL)
            ends = time.monotonic() + 10
            while time.monotonic() < ends and _lives(pid):
                time.sleep(0.01)

        return kill

    @pytest.fixture
    def open_sandbox(self, control: Control, config: Config) -> Iterator[Callable[..., Sandbox]]:
        """Give a function that makes a sandbox with its token; *ai_limit_nusd* is its ceiling."""
        made: list[Sandbox] = []

        def make(*, ai_limit_nusd: int | None = None, **fields: Any) -> Sandbox:
            record = new_record(**fields)
            state_dir = config.sandbox_dir(record.id)
            state_dir.mkdir(mode=0o700, parents=True)
            (state_dir / "plan.json").write_text(plan().to_json(), encoding="utf-8")
            control.call("sandbox.create", record=record.to_wire())
            control.call("budget.set", id=record.id, ai_limit_nusd=ai_limit_nusd, compute_limit_nusd=None)
            answer = control.call("sandbox.open", id=record.id)
            socket = Path(answer["socket"])
            client = ControlClient(socket, token=answer["token"])
            made.append(Sandbox(record.id, socket, answer["token"], client))
            return made[-1]

        yield make
        for sandbox in made:
            sandbox.client.close()

    def test_c11_a_call_is_paid_once(self, control: Control, open_sandbox: Callable[..., Sandbox]) -> None:
        """C11: reserving, settling and releasing are idempotent by the call's id."""
        sandbox = open_sandbox(ai_limit_nusd=1000)
        assert sandbox.reserve("c1", 600)["granted"] is True
        again = sandbox.reserve("c1", 600)
        assert (again["granted"], again["reserved_nusd"], again["remaining_nusd"]) == (True, 600, 400)
        for _ in range(2):
            sandbox.settle("c1", 250)
        pool = control.call("budget.get", id=sandbox.id)["ai"]
        assert (pool["spent_nusd"], pool["reserved_nusd"]) == (250, 0)
        assert [(model["calls"], model["spent_nusd"]) for model in pool["models"]] == [(1, 250)]
        assert sandbox.reserve("c2", 700)["granted"] is True
        for _ in range(2):
            sandbox.client.call("ledger.release", call_id="c2")
        pool = control.call("budget.get", id=sandbox.id)["ai"]
        assert (pool["spent_nusd"], pool["reserved_nusd"]) == (250, 0)
        sandbox.settle("never reserved", 50)
        assert control.call("budget.get", id=sandbox.id)["ai"]["spent_nusd"] == 300

    def test_c12_a_ceiling_holds_and_can_be_raised(
        self, control: Control, open_sandbox: Callable[..., Sandbox]
    ) -> None:
        """C12: no room means no grant; zero means nothing; a pool without a ceiling cannot be raised."""
        sandbox = open_sandbox(ai_limit_nusd=100)
        assert sandbox.reserve("c1", 101)["granted"] is False
        assert sandbox.reserve("c2", 100)["granted"] is True
        assert sandbox.reserve("c3", 1)["granted"] is False
        control.call("budget.add", id=sandbox.id, ai_nusd=1, compute_nusd=0)
        assert sandbox.reserve("c3", 1)["granted"] is True
        with pytest.raises(GuardError):
            control.call("budget.add", id=sandbox.id, ai_nusd=0, compute_nusd=5)
        nothing = open_sandbox(ai_limit_nusd=0)
        assert nothing.reserve("c1", 1)["granted"] is False
        assert nothing.reserve("c2", 0)["granted"] is False
        free = open_sandbox(ai_limit_nusd=None)
        answer = free.reserve("c1", 10**15)
        assert (answer["granted"], answer["limit_nusd"], answer["remaining_nusd"]) == (True, None, None)

    def test_c13_calls_at_once_never_pass_the_ceiling(
        self, control: Control, open_sandbox: Callable[..., Sandbox]
    ) -> None:
        """C13: of reservations made at once, no more are granted than the ceiling has room for."""
        sandbox = open_sandbox(ai_limit_nusd=1000)

        def spend(worker: int) -> int:
            granted = 0
            with ControlClient(sandbox.socket, token=sandbox.token) as client:
                for number in range(15):
                    answer = client.call(
                        "ledger.reserve",
                        call_id=f"{worker}-{number}",
                        model="m",
                        provider="p",
                        amount_nusd=30,
                    )
                    granted += int(answer["granted"])
                    total = answer["spent_nusd"] + answer["reserved_nusd"]
                    assert total <= 1000, f"{total} of 1000 are held"
            return granted

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            granted = sum(pool.map(spend, range(8)))
        assert granted == 1000 // 30
        assert control.call("budget.get", id=sandbox.id)["ai"]["reserved_nusd"] == 30 * granted

    def test_c14_every_sequence_of_calls_keeps_the_books(
        self, control: Control, open_sandbox: Callable[..., Sandbox]
    ) -> None:
        """C14: whatever is reserved, settled, released and raised in any order, every sum is right."""

        class Books(RuleBasedStateMachine):
            def __init__(self) -> None:
                super().__init__()
                self.sandbox = open_sandbox(ai_limit_nusd=500)
                self.limit, self.spent = 500, 0
                self.held: dict[str, int] = {}
                self.ended: set[str] = set()

            @rule(call=st.sampled_from("abcdef"), amount=st.integers(0, 400))
            def reserve(self, call: str, amount: int) -> None:
                if call in self.ended or self.held.get(call, amount) != amount:
                    with pytest.raises(GuardError):
                        self.sandbox.reserve(call, amount)
                    return
                room = self.limit - self.spent - sum(self.held.values())
                # At the ceiling even a call that costs nothing is refused.
                fits = call in self.held or (
                    amount <= max(room, 0) and not (self.spent >= self.limit and not amount)
                )
                assert self.sandbox.reserve(call, amount)["granted"] is fits
                if fits:
                    self.held[call] = amount

            @rule(call=st.sampled_from("abcdef"), cost=st.integers(0, 450))
            def settle(self, call: str, cost: int) -> None:
                self.sandbox.settle(call, cost)
                if f"{call} settled" not in self.ended:
                    self.spent += cost
                    self.held.pop(call, None)
                    self.ended |= {call, f"{call} settled"}

            @rule(call=st.sampled_from("abcdef"))
            def release(self, call: str) -> None:
                self.sandbox.client.call("ledger.release", call_id=call)
                self.held.pop(call, None)
                self.ended.add(call)

            @rule(amount=st.integers(1, 300))
            def raise_ceiling(self, amount: int) -> None:
                control.call("budget.add", id=self.sandbox.id, ai_nusd=amount, compute_nusd=0)
                self.limit += amount

            @invariant()
            def the_sums_are_right(self) -> None:
                pool = control.call("budget.get", id=self.sandbox.id)["ai"]
                found = (pool["limit_nusd"], pool["spent_nusd"], pool["reserved_nusd"])
                assert found == (self.limit, self.spent, sum(self.held.values()))

            def teardown(self) -> None:
                self.sandbox.client.close()
                control.call("sandbox.delete", id=self.sandbox.id)

        run_state_machine_as_test(
            Books, settings=settings(max_examples=15, stateful_step_count=20, deadline=None, database=None)
        )

    def test_c15_after_its_deadline_a_sandbox_spends_nothing(
        self, control: Control, open_sandbox: Callable[..., Sandbox]
    ) -> None:
        """C15: a lease names the end of the sandbox, and past it no reservation is granted."""
        ends = time.time() + 3600
        sandbox = open_sandbox(ai_limit_nusd=100, expires_at=ends)
        lease = sandbox.client.call("lease", holder="gate")
        assert lease["deadline"] == pytest.approx(ends)
        assert lease["valid_s"] > 0
        assert sandbox.reserve("c1", 1)["granted"] is True
        control.call("sandbox.update", id=sandbox.id, changes={"expires_at": time.time() - 1}, expect={})
        with pytest.raises(GuardError):
            sandbox.reserve("c2", 1)


def _lives(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
