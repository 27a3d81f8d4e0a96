"""Decisions about lifetimes, states and budgets: pure, so tried with every value."""

from __future__ import annotations

import itertools

from attrs import evolve
from hypothesis import example, given
from hypothesis import strategies as st

from km_core.handlers.budget import PPM, Notice, Pool, admits, notices, running_cost_nusd
from km_core.handlers.lifetime import (
    IDLE_GRACE_S,
    deadline,
    due_warning,
    expiry,
    rearmed,
    suspended,
)
from km_core.handlers.states import event_kind, may_change, may_report
from km_core.types import SandboxRecord, SandboxState, policy_at_end

NOW = 1_000_000.0
times = st.one_of(st.just(0.0), st.floats(NOW - 5000, NOW + 5000))


def record(**fields):
    base = {
        "id": "sb-00000000",
        "profile": "p",
        "substrate": "local",
        "state": SandboxState.RUNNING,
        "created_at": NOW - 4000,
    }
    return SandboxRecord(**(base | fields))


records = st.builds(
    record,
    state=st.sampled_from(SandboxState),
    expires_at=times,
    max_expires_at=times,
    idle_timeout_s=st.sampled_from([0, 1, 60, 3600]),
    last_activity_at=times,
    teardown=st.sampled_from(["destroy", "stop", "retain"]),
)


@given(records, st.floats(NOW - 1000, NOW))
def test_an_expiry_has_a_cause_that_holds(item, since):
    due = expiry(item, NOW, observed_since=since)
    if due is None:
        return
    assert item.state is not SandboxState.DESTROYING
    if due.cause == "ttl":
        assert 0 < item.expires_at <= NOW
    elif due.cause == "max_lifetime":
        assert 0 < item.max_expires_at <= NOW
    else:
        assert item.state is SandboxState.RUNNING
        assert NOW - max(item.last_activity_at, item.created_at) >= item.idle_timeout_s > 0


@given(records, st.floats(NOW - 1000, NOW))
def test_a_sandbox_past_its_deadline_that_is_destroyed_on_expiry_never_stays(item, since):
    item = evolve(item, teardown="destroy")
    if 0 < deadline(item) <= NOW and item.state is not SandboxState.DESTROYING:
        due = expiry(item, NOW, observed_since=since)
        assert due is not None
        assert due.act


@given(records)
def test_time_alone_never_takes_an_expiry_back(item):
    if expiry(item, NOW, observed_since=0) is not None:
        assert expiry(item, NOW + 10_000, observed_since=0) is not None


def test_a_stopped_sandbox_is_not_stopped_again_but_a_running_one_is():
    past = record(expires_at=NOW - 1, teardown="stop")
    assert expiry(past, NOW, observed_since=0).cause == "ttl"
    assert expiry(evolve(past, state=SandboxState.STOPPED), NOW, observed_since=0) is None


def test_a_retained_sandbox_loses_its_ttl_once_and_is_only_told_of_the_rest():
    assert expiry(record(expires_at=NOW - 1, teardown="retain"), NOW, observed_since=0).act
    idle = record(idle_timeout_s=10, teardown="retain")
    assert not expiry(idle, NOW, observed_since=0).act


def test_what_was_to_stay_is_stopped_and_not_destroyed_when_it_is_idle():
    for_ever = record(idle_timeout_s=10, teardown="destroy")
    assert policy_at_end(for_ever, "idle") == "stop"
    assert policy_at_end(for_ever, "max_lifetime") == "destroy"
    assert policy_at_end(evolve(for_ever, expires_at=NOW + 60), "idle") == "destroy"
    assert policy_at_end(evolve(for_ever, teardown="retain"), "idle") == "retain"


def test_silence_counts_as_idleness_only_after_somebody_listened():
    quiet = record(idle_timeout_s=600, last_activity_at=NOW - 3000)
    assert expiry(quiet, NOW, observed_since=NOW - 1) is None
    assert expiry(quiet, NOW, observed_since=NOW - IDLE_GRACE_S).cause == "idle"
    assert expiry(evolve(quiet, last_activity_at=NOW - 10), NOW, observed_since=0) is None
    assert expiry(evolve(quiet, state=SandboxState.PAUSED), NOW, observed_since=0) is None


def test_the_nearer_of_both_ends_is_the_deadline():
    assert deadline(record()) == 0
    assert deadline(record(expires_at=5.0)) == 5.0
    assert deadline(record(expires_at=5.0, max_expires_at=3.0)) == 3.0


def test_warnings_come_at_fifteen_and_at_five_minutes_and_not_for_short_lives():
    long = record(expires_at=NOW + 1000)
    assert due_warning(long, NOW) == 0
    assert due_warning(long, NOW + 100) == 900
    assert due_warning(long, NOW + 700) == 300
    assert due_warning(long, NOW + 1000) == 0
    short = record(created_at=NOW, expires_at=NOW + 400)
    assert due_warning(short, NOW) == 0
    assert due_warning(short, NOW + 150) == 300


@given(records, st.floats(0, 10_000))
def test_a_pause_neither_lengthens_nor_shortens_what_is_left(item, pause):
    expires_at, remaining = suspended(item, NOW)
    if item.expires_at <= NOW:
        assert (expires_at, remaining) == (item.expires_at, item.ttl_remaining_s)
        return
    assert expires_at == 0
    assert remaining == item.expires_at - NOW
    again, left = rearmed(evolve(item, expires_at=0.0, ttl_remaining_s=remaining), NOW + pause)
    assert left == 0
    if item.max_expires_at:
        assert again <= max(item.max_expires_at, 0)
        assert again == min(NOW + pause + remaining, item.max_expires_at)
    else:
        assert again == NOW + pause + remaining


def test_a_supervisor_cannot_finish_a_create_or_stop_a_destroy():
    for state, wanted in itertools.product(SandboxState, SandboxState):
        allowed = may_report(state, wanted)
        assert not (allowed and state in {SandboxState.CREATING, SandboxState.DESTROYING})
        assert not (
            allowed and wanted in {SandboxState.CREATING, SandboxState.DESTROYING, SandboxState.PAUSED}
        )


def test_a_sandbox_being_destroyed_only_ends_or_fails():
    for wanted in SandboxState:
        expected = wanted in {SandboxState.DESTROYING, SandboxState.FAILED}
        assert may_change(SandboxState.DESTROYING, wanted) is expected
    assert not may_change(SandboxState.RUNNING, SandboxState.CREATING)


def test_every_change_of_state_has_a_name():
    assert event_kind(SandboxState.CREATING, SandboxState.RUNNING) == "created"
    assert event_kind(SandboxState.STOPPED, SandboxState.RUNNING) == "resumed"
    assert event_kind(SandboxState.RUNNING, SandboxState.FROZEN) == "enforcement_lost"
    assert all(event_kind(a, b) for a, b in itertools.product(SandboxState, SandboxState))


money = st.integers(0, 10**12)
pools = st.builds(Pool, st.none() | money, money, money, warned=st.booleans(), told=st.booleans())


@given(pools, money)
@example(Pool(1, 0, 2), 0)
def test_what_is_admitted_stays_within_the_ceiling(pool, amount):
    if admits(pool, amount) and pool.limit_nusd is not None:
        assert pool.spent_nusd + pool.reserved_nusd + amount <= pool.limit_nusd


@given(pools)
def test_the_remainder_is_what_is_admitted_at_most(pool):
    remaining = pool.remaining_nusd
    if remaining:
        assert admits(pool, remaining)
        assert not admits(pool, remaining + 1)


def test_a_ceiling_of_zero_admits_nothing_and_no_ceiling_everything():
    assert not admits(Pool(0, 0), 0)
    assert not admits(Pool(0, 0), 1)
    assert admits(Pool(None, 10**15), 10**15)


@given(st.integers(1, 10**6), st.integers(1, PPM), st.lists(st.integers(0, 10**5), max_size=30))
def test_each_crossing_is_told_once_until_a_top_up_takes_it_back(limit, threshold, spends):
    pool = Pool(limit, 0)
    told = []
    for spend in spends:
        pool, notice = notices(evolve(pool, spent_nusd=pool.spent_nusd + spend), threshold)
        again, silence = notices(pool, threshold)
        assert again == pool
        assert silence is None
        told += [notice] if notice else []
    assert told.count(Notice.WARNING) <= 1
    assert told.count(Notice.EXHAUSTED) <= 1
    assert (Notice.EXHAUSTED in told) is (0 < limit <= pool.spent_nusd)
    if pool.spent_nusd and pool.spent_nusd * PPM >= limit * threshold:
        assert told
    pool, notice = notices(evolve(pool, limit_nusd=pool.spent_nusd * PPM + 1), threshold)
    assert notice is None or pool.spent_nusd * PPM >= pool.limit_nusd * threshold
    assert not pool.told
    pool, notice = notices(evolve(pool, spent_nusd=pool.limit_nusd), threshold)
    assert notice is Notice.EXHAUSTED


@given(st.integers(0, 10**12), st.integers(-100, 10**7))
def test_running_costs_are_whole_and_never_too_low(rate, seconds):
    cost = running_cost_nusd(rate, seconds)
    assert cost * 3600 >= rate * max(0, seconds)
    assert (cost - 1) * 3600 < rate * max(0, seconds) or cost == 0
