"""Sandbox records, references to them, and the journal."""

from __future__ import annotations

import pytest

from km_core.errors import GuardError, NotFoundError, UsageError

A, B, C, D = "sb-0000000a", "sb-0000000b", "sb-0000000c", "sb-0000000d"


def test_numbers_grow_and_start_again_when_nothing_is_left(bench):
    assert bench.create(A).number == 1
    assert bench.create(B).number == 2
    bench.operator("sandbox.delete", id=B)
    assert bench.create(C).number == 3
    bench.restart()
    assert bench.create(D).number == 4
    for sandbox_id in (A, C, D):
        bench.operator("sandbox.delete", id=sandbox_id)
    assert bench.create(B).number == 1


def test_an_alias_belongs_to_one_sandbox(bench):
    bench.create(A, alias="dev")
    with pytest.raises(GuardError, match="taken by sb-0000000a"):
        bench.create(B, alias="dev")
    bench.create(C)
    with pytest.raises(GuardError):
        bench.operator("sandbox.update", id=C, changes={"alias": "dev"})
    with pytest.raises(GuardError):
        bench.operator("sandbox.update", id=C, changes={"alias": A})
    bench.operator("sandbox.delete", id=A)
    assert bench.create(B, alias="dev").alias == "dev"


def test_no_more_sandboxes_than_the_configuration_allows(bench):
    (bench.config.home / "config.yaml").write_text("max_sandboxes: 2\n")
    bench.create(A)
    bench.create(B)
    with pytest.raises(GuardError, match=r"limit reached \(2/2\)"):
        bench.create(C)
    (bench.config.home / "config.yaml").write_text("max_sandboxes: 0\n")
    bench.create(C)


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "../../etc"},
        {"id": "host"},
        {"alias": "Not An Alias"},
        {"teardown": "explode"},
        {"expires_at": -1},
        {"expires_at": "soon"},
        {"expires_at": 1e300},
        {"idle_timeout_s": 1.5},
        {"labels": {"a": 1}},
        {"labels": ["a"]},
        {"resources": "x"},
        {"profile": 7},
        {"state": "running"},
        {"state": "asleep"},
    ],
)
def test_a_record_that_cannot_be_is_refused(bench, record_for, fields):
    with pytest.raises(UsageError):
        bench.operator("sandbox.create", record=record_for(A, bench.clock.now) | fields)
    assert bench.operator("sandbox.list") == []


def test_a_reference_is_an_id_an_alias_a_number_or_the_beginning_of_an_id(bench):
    bench.create(A, alias="dev")
    bench.create("other-12345678", alias="orc")
    for ref in (A, "dev", "1", "#1"):
        assert bench.operator("sandbox.resolve", ref=ref)["id"] == A
    for ref in ("other-12345678", "orc", "2", "othe", "other-123"):
        assert bench.operator("sandbox.resolve", ref=ref)["id"] == "other-12345678"


def test_an_unknown_or_ambiguous_reference_names_what_is_near(bench):
    bench.create(A, alias="devel")
    bench.create(B)
    with pytest.raises(NotFoundError) as caught:
        bench.operator("sandbox.resolve", ref="devle")
    assert "devel" in caught.value.hint
    with pytest.raises(NotFoundError, match="more than one") as caught:
        bench.operator("sandbox.resolve", ref="sb-0")
    assert A in caught.value.hint
    for ref in ("oth", "3", "0", "-1", "²", "9" * 60):
        with pytest.raises(NotFoundError):
            bench.operator("sandbox.resolve", ref=ref)


def test_an_update_happens_only_while_what_was_expected_holds(bench):
    bench.create(A)
    changes = {"state": "running"}
    bench.operator("sandbox.update", id=A, changes=changes, expect={"state": "creating"})
    with pytest.raises(GuardError, match="changed meanwhile"):
        bench.operator("sandbox.update", id=A, changes={"reason": "x"}, expect={"state": "creating"})
    with pytest.raises(GuardError):
        bench.operator("sandbox.update", id=A, changes={"reason": "x"}, expect={"nonsense": 1})
    assert bench.get(A).reason == ""


@pytest.mark.parametrize(
    "changes",
    [{"id": B}, {"number": 9}, {"version": 1}, {"created_at": 0}, {"nonsense": 1}, {"state": "gone"}],
)
def test_what_may_not_change_does_not(bench, changes):
    bench.create(A)
    before = bench.get(A)
    with pytest.raises(UsageError):
        bench.operator("sandbox.update", id=A, changes=changes)
    assert bench.get(A) == before


def test_a_life_cannot_be_extended_past_its_longest(bench):
    now = bench.clock.now
    bench.create(A, expires_at=now + 10, max_expires_at=now + 100)
    bench.operator("sandbox.update", id=A, changes={"expires_at": now + 100})
    with pytest.raises(GuardError, match="longest life"):
        bench.operator("sandbox.update", id=A, changes={"expires_at": now + 101})


def test_the_ttl_stands_still_while_a_sandbox_is_paused_or_stopped(bench):
    bench.running(A, expires_at=bench.clock.now + 100)
    bench.clock.now += 40
    bench.operator("sandbox.update", id=A, changes={"state": "paused"})
    assert (bench.get().expires_at, bench.get().ttl_remaining_s) == (0, 60)
    bench.clock.now += 1000
    bench.operator("sandbox.update", id=A, changes={"state": "stopped"})
    assert bench.get().ttl_remaining_s == 60
    bench.operator("sandbox.update", id=A, changes={"state": "running"})
    assert (bench.get().expires_at, bench.get().ttl_remaining_s) == (bench.clock.now + 60, 0)
    bench.operator("sandbox.update", id=A, changes={"state": "stopped"})
    bench.operator("sandbox.update", id=A, changes={"expires_at": bench.clock.now + 7})
    bench.operator("sandbox.update", id=A, changes={"state": "running"})
    assert bench.get().expires_at == bench.clock.now + 7


def test_a_deleted_sandbox_leaves_nothing_but_its_evidence(bench):
    bench.running(A)
    bench.operator("journal.begin", id=A, step="prepare", index=1)
    bench.operator("budget.set", id=A, ai_limit_nusd=10, compute_limit_nusd=None)
    bench.sandbox(A, "ledger.reserve", call_id="c", model="m", provider="p", amount_nusd=5)
    bench.sandbox(A, "audit.head", writer="gate", seq=3, hash="0" * 64)
    bench.operator("sandbox.open", id=A)
    assert bench.operator("sandbox.delete", id=A) == {}
    assert bench.operator("sandbox.delete", id=A) == {}
    tables = (
        "sandboxes",
        "journal",
        "budgets",
        "reservations",
        "calls",
        "models",
        "tokens",
        "heads",
        "notices",
    )
    for table in tables:
        assert bench.service.db.all(f"SELECT * FROM {table}") == [], table
    assert not (bench.config.sandbox_runtime_dir(A) / "kmd.sock").exists()
    assert bench.kinds(A)[-1] == "destroyed"
    with pytest.raises(NotFoundError):
        bench.operator("sandbox.get", id=A)


def test_the_journal_keeps_steps_in_order_until_they_are_undone(bench):
    bench.create(A)
    for index, step in enumerate(("files", "prepare", "start")):
        bench.operator("journal.begin", id=A, step=step, index=index)
    bench.operator("journal.done", id=A, step="files")
    bench.restart()
    assert bench.operator("journal.list", id=A) == [
        {"step": "files", "index": 0, "state": "done"},
        {"step": "prepare", "index": 1, "state": "begun"},
        {"step": "start", "index": 2, "state": "begun"},
    ]
    bench.operator("journal.undone", id=A, step="prepare")
    bench.operator("journal.undone", id=A, step="prepare")
    assert [step["step"] for step in bench.operator("journal.list", id=A)] == ["files", "start"]
    with pytest.raises(NotFoundError):
        bench.operator("journal.done", id=A, step="prepare")
    with pytest.raises(NotFoundError):
        bench.operator("journal.begin", id=B, step="files", index=0)


def test_every_operation_on_a_sandbox_that_is_not_there_says_so(bench):
    calls = {
        "sandbox.get": {},
        "sandbox.update": {"changes": {}},
        "sandbox.open": {},
        "journal.begin": {"step": "a", "index": 0},
        "budget.get": {},
        "budget.set": {"ai_limit_nusd": 1, "compute_limit_nusd": None},
        "budget.add": {"ai_nusd": 1},
        "audit.append": {"event": {"kind": "a"}},
        "audit.checkpoint": {},
    }
    for op, args in calls.items():
        with pytest.raises(NotFoundError):
            bench.operator(op, id=A, **args)
    assert not bench.config.audit_dir(A).exists()
