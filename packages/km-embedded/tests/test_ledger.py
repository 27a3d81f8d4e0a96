"""The ledger: its rules one by one, and every sequence of operations against a model of it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from km_core.errors import GuardError, UsageError
from km_core.types import SandboxRecord
from km_embedded.ledger import KEEP_CALLS_S, MAX_NUSD, STALE_S, CallUsage, Ledger
from km_embedded.store import Database, Records

A, B = "sb-0000000a", "sb-0000000b"
USAGE = {"model": "m", "provider": "p", "input_tokens": 10, "output_tokens": 5}


@pytest.fixture
def money(bench):
    bench.running(A)
    bench.operator("budget.set", id=A, ai_limit_nusd=1000, compute_limit_nusd=None, warning_threshold=0.8)

    class Money:
        def reserve(self, call, amount):
            return bench.sandbox(
                A, "ledger.reserve", call_id=call, model="m", provider="p", amount_nusd=amount
            )

        def settle(self, call, cost, **usage):
            return bench.sandbox(A, "ledger.settle", call_id=call, cost_nusd=cost, usage=USAGE | usage)

        def release(self, call):
            return bench.sandbox(A, "ledger.release", call_id=call)

        def ai(self):
            return bench.operator("budget.get", id=A)["ai"]

    return Money()


def test_a_call_is_reserved_and_settled_and_shows_in_the_summary(money):
    answer = money.reserve("c1", 600)
    assert answer == {
        "granted": True,
        "spent_nusd": 0,
        "reserved_nusd": 600,
        "limit_nusd": 1000,
        "remaining_nusd": 400,
    }
    assert money.settle("c1", 250) == {
        "limit_nusd": 1000,
        "spent_nusd": 250,
        "reserved_nusd": 0,
        "exhausted": False,
    }
    (model,) = money.ai()["models"]
    assert (model["provider"], model["model"], model["spent_nusd"], model["calls"]) == ("p", "m", 250, 1)
    assert (model["input_tokens"], model["output_tokens"], model["estimated_calls"]) == (10, 5, 0)


def test_what_does_not_fit_is_not_granted_and_may_ask_again_for_less(money):
    money.reserve("c1", 600)
    refused = money.reserve("c2", 401)
    assert (refused["granted"], refused["remaining_nusd"], refused["reserved_nusd"]) == (False, 400, 600)
    assert money.reserve("c2", 400)["granted"]


def test_asking_again_for_the_same_reservation_holds_it_once(money):
    assert money.reserve("c1", 600)["granted"]
    assert money.reserve("c1", 600) == money.reserve("c1", 600)
    assert money.ai()["reserved_nusd"] == 600
    with pytest.raises(GuardError, match="another amount"):
        money.reserve("c1", 1)


def test_a_call_that_has_ended_holds_nothing_again(money):
    money.reserve("c1", 600)
    money.settle("c1", 1)
    money.reserve("c2", 600)
    money.release("c2")
    for call in ("c1", "c2"):
        with pytest.raises(GuardError, match="ended"):
            money.reserve(call, 1)
    assert money.ai()["reserved_nusd"] == 0


def test_a_settlement_sent_again_counts_once(money):
    money.reserve("c1", 600)
    for cost in (250, 250, 999):
        assert money.settle("c1", cost)["spent_nusd"] == 250
    assert money.ai()["models"][0]["calls"] == 1


def test_a_settlement_without_a_reservation_is_recorded_and_flagged(money, bench):
    assert money.settle("c9", 40)["spent_nusd"] == 40
    event = next(event for event in bench.events(A) if event["kind"] == "settlement_flagged")
    assert (event["flags"], event["cost_nusd"], event["reserved_nusd"]) == (["without_reservation"], 40, None)


def test_a_provider_that_billed_more_is_recorded_truthfully_and_flagged(money, bench):
    money.reserve("c1", 900)
    after = money.settle("c1", 1500)
    assert (after["spent_nusd"], after["exhausted"]) == (1500, True)
    event = next(event for event in bench.events(A) if event["kind"] == "settlement_flagged")
    assert event["flags"] == ["above_reservation"]
    assert not money.reserve("c2", 1)["granted"]
    assert not money.reserve("c3", 0)["granted"]


def test_a_released_call_that_was_billed_after_all_is_recorded(money, bench):
    money.reserve("c1", 500)
    assert money.release("c1")["reserved_nusd"] == 0
    assert money.settle("c1", 70)["spent_nusd"] == 70
    assert money.release("c1")["spent_nusd"] == 70
    assert "settlement_flagged" in bench.kinds(A)


def test_a_release_that_overtakes_its_reservation_leaves_nothing_held(money):
    money.release("c1")
    with pytest.raises(GuardError):
        money.reserve("c1", 500)
    assert money.ai()["reserved_nusd"] == 0


def test_a_reservation_nobody_settles_is_settled_in_full_and_corrected_when_the_truth_comes(money, bench):
    money.reserve("c1", 500)
    bench.tick(STALE_S - 1)
    assert money.ai()["reserved_nusd"] == 500
    bench.tick(10)
    assert (money.ai()["reserved_nusd"], money.ai()["spent_nusd"]) == (0, 500)
    assert money.ai()["models"][0]["estimated_calls"] == 1
    bench.tick(10)
    assert money.ai()["spent_nusd"] == 500
    assert money.settle("c1", 120, model="m2")["spent_nusd"] == 120
    (model,) = money.ai()["models"]
    assert (model["model"], model["calls"], model["estimated_calls"], model["spent_nusd"]) == (
        "m2",
        1,
        0,
        120,
    )
    assert money.settle("c1", 1)["spent_nusd"] == 120
    assert "reservation_expired" in bench.kinds(A)


def test_call_ids_are_remembered_for_two_days(money, bench):
    money.settle("c1", 10)
    bench.tick(KEEP_CALLS_S - 60)
    assert money.settle("c1", 10)["spent_nusd"] == 10
    bench.tick(3700)
    assert bench.service.db.all("SELECT * FROM calls") == []


def test_nothing_may_be_spent_under_a_ceiling_of_zero_and_anything_without_one(money, bench):
    bench.operator("budget.set", id=A, ai_limit_nusd=0, compute_limit_nusd=None)
    assert not money.reserve("c1", 0)["granted"]
    assert not money.reserve("c1", 1)["granted"]
    bench.operator("budget.set", id=A, ai_limit_nusd=None, compute_limit_nusd=None)
    answer = money.reserve("c1", MAX_NUSD)
    assert (answer["granted"], answer["limit_nusd"], answer["remaining_nusd"]) == (True, None, None)


def test_the_warning_comes_once_per_crossing_and_again_after_a_top_up(money, bench):
    for call, cost in (("c1", 799), ("c2", 1), ("c3", 50)):
        money.settle(call, cost)
    assert bench.kinds(A).count("budget_warning") == 1
    assert bench.operator("budget.get", id=A)["warned"]
    money.settle("c4", 150)
    money.settle("c5", 1)
    assert bench.kinds(A).count("budget_exhausted") == 1
    after = bench.operator("budget.add", id=A, ai_nusd=1000)
    assert (after["warned"], after["ai"]["exhausted"], after["ai"]["limit_nusd"]) == (False, False, 2000)
    money.settle("c6", 600)
    money.settle("c7", 400)
    assert bench.kinds(A).count("budget_warning") == 2
    assert bench.kinds(A).count("budget_exhausted") == 2
    assert bench.kinds(A).count("budget_topup") == 1


def test_a_leap_over_the_ceiling_is_told_as_exhaustion_alone(money, bench):
    money.settle("c1", 5000)
    assert "budget_warning" not in bench.kinds(A)
    assert bench.kinds(A).count("budget_exhausted") == 1


def test_a_pool_without_a_ceiling_cannot_be_topped_up(money, bench):
    with pytest.raises(GuardError, match="no ceiling"):
        bench.operator("budget.add", id=A, compute_nusd=5)
    with pytest.raises(GuardError):
        bench.operator("budget.add", id=A, ai_nusd=5, compute_nusd=5)
    assert money.ai()["limit_nusd"] == 1000
    with pytest.raises(UsageError):
        bench.operator("budget.add", id=A)
    with pytest.raises(UsageError):
        bench.operator("budget.add", id=A, ai_nusd=-5)


@pytest.mark.parametrize("amount", [-1, 1.5, True, "1", None, MAX_NUSD + 1])
def test_money_is_whole_and_bounded(money, amount):
    with pytest.raises(UsageError):
        money.reserve("c1", amount)
    with pytest.raises(UsageError):
        money.settle("c1", amount)
    assert money.ai()["spent_nusd"] == 0


@pytest.mark.parametrize(
    "usage",
    [{"input_tokens": -1}, {"output_tokens": 1.0}, {"model": 7}, {"estimated": 1}, {"provider": "x" * 300}],
)
def test_usage_figures_are_checked(money, usage):
    with pytest.raises(UsageError):
        money.settle("c1", 1, **usage)


def test_usage_the_ledger_does_not_keep_is_no_error_and_a_model_is_known_from_the_reservation(money, bench):
    money.reserve("c1", 100)
    bench.sandbox(A, "ledger.settle", call_id="c1", cost_nusd=10, usage={"reasoning_tokens": 7})
    assert money.ai()["models"][0]["model"] == "m"


class Sequences(RuleBasedStateMachine):
    """Any order of operations on two sandboxes against a plain model; a restart in between changes nothing."""

    calls = st.sampled_from([f"c{number}" for number in range(8)])
    boxes = st.sampled_from([A, B])
    amounts = st.integers(0, 400)

    @initialize(limit=st.none() | st.integers(0, 1500))
    def begin(self, limit):
        self.root = Path(tempfile.mkdtemp(prefix="kml-"))
        self.now = 1_000_000.0
        self.open()
        with self.db.transaction():
            for sandbox_id in (A, B):
                record = SandboxRecord(
                    id=sandbox_id, profile="p", substrate="local", state="creating", created_at=0.0
                )
                from attrs import evolve

                from km_core.types import SandboxState

                self.records.create(evolve(record, state=SandboxState.CREATING), now=0.0, most=0)
                self.ledger.set_limits(sandbox_id, ai=limit, compute=None, threshold_ppm=None)
        self.limit = {A: limit, B: limit}
        self.held = {A: {}, B: {}}
        self.ended = {A: {}, B: {}}
        self.billed_over = {A: 0, B: 0}

    def open(self):
        self.db = Database(self.root / "km.db")
        self.records = Records(self.db)
        self.ledger = Ledger(self.db, lambda *_: None)

    def spent(self, box):
        return sum(cost for _, cost in self.ended[box].values())

    @rule(box=boxes, call=calls, amount=amounts)
    def reserve(self, box, call, amount):
        held, ended, limit = self.held[box], self.ended[box], self.limit[box]
        try:
            with self.db.transaction():
                answer = self.ledger.reserve(box, call, provider="p", model="m", amount=amount, now=self.now)
        except GuardError:
            assert call in ended or held[call][0] != amount
            return
        assert call not in ended
        if call in held:
            assert answer["granted"]
            return
        total = self.spent(box) + sum(value for value, _ in held.values())
        fits = limit is None or (total + amount <= limit and not (amount == 0 and self.spent(box) >= limit))
        assert answer["granted"] is fits
        if fits:
            held[call] = (amount, self.now)

    @rule(box=boxes, call=calls, cost=st.integers(0, 500))
    def settle(self, box, call, cost):
        with self.db.transaction():
            self.ledger.settle(box, call, cost=cost, usage=CallUsage("p", "m"), now=self.now)
        reserved, _ = self.held[box].pop(call, (0, 0))
        before = self.ended[box].get(call, ("", 0))
        if before[0] != "settled":
            self.ended[box][call] = ("settled", cost)
            allowed = before[1] if before[0] == "stale" else reserved
            self.billed_over[box] += max(0, cost - allowed)

    @rule(box=boxes, call=calls)
    def release(self, box, call):
        with self.db.transaction():
            self.ledger.release(box, call, now=self.now)
        self.held[box].pop(call, None)
        self.ended[box].setdefault(call, ("released", 0))

    @rule(seconds=st.integers(0, STALE_S))
    def time_passes(self, seconds):
        self.now += seconds
        with self.db.transaction():
            self.ledger.settle_stale(self.now)
        for box in (A, B):
            for call, (amount, at) in list(self.held[box].items()):
                if at <= self.now - STALE_S:
                    del self.held[box][call]
                    self.ended[box][call] = ("stale", amount)

    @rule(box=boxes, amount=st.integers(1, 500))
    def top_up(self, box, amount):
        if self.limit[box] is not None:
            with self.db.transaction():
                self.ledger.add(box, ai=amount, compute=0)
            self.limit[box] += amount

    @rule()
    def restart(self):
        self.db.close()
        self.open()

    @invariant()
    def figures_are_those_of_the_model(self):
        if not hasattr(self, "root"):
            return
        for box in (A, B):
            summary = self.ledger.summary(box)["ai"]
            assert summary["spent_nusd"] == self.spent(box)
            assert summary["reserved_nusd"] == sum(amount for amount, _ in self.held[box].values())
            assert summary["limit_nusd"] == self.limit[box]
            assert sum(model["spent_nusd"] for model in summary["models"]) == self.spent(box)

    @invariant()
    def the_ceiling_is_passed_only_by_what_providers_billed_on_top(self):
        if not hasattr(self, "root"):
            return
        for box in (A, B):
            if self.limit[box] is not None:
                summary = self.ledger.ai_summary(box)
                total = summary["spent_nusd"] + summary["reserved_nusd"]
                assert total <= self.limit[box] + self.billed_over[box]

    def teardown(self):
        if hasattr(self, "root"):
            self.db.close()
            shutil.rmtree(self.root)


Sequences.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestSequences = Sequences.TestCase
