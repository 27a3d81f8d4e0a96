"""Events reach the audit chain once and the notifiers at least once, whatever breaks in between."""

from __future__ import annotations

import json
import sys
import time

import pytest

from km_core.errors import AuditError, GuardError, UsageError
from km_core.plugins import PluginRegistry, new_manager
from km_core.types import Delivery
from km_embedded.deliver import deliver, notifier
from km_embedded.notify import GIVE_UP_S

A, B = "sb-0000000a", "sb-0000000b"


def test_an_event_that_was_committed_reaches_the_chain_after_a_crash(bench, monkeypatch):
    bench.create(A)
    monkeypatch.setattr(type(bench.service.evidence), "flush", lambda _self, _id="": None)
    bench.operator("budget.set", id=A, ai_limit_nusd=5, compute_limit_nusd=None)
    assert "budget_set" not in bench.kinds(A)
    monkeypatch.undo()
    bench.restart()
    bench.tick()
    assert bench.kinds(A).count("budget_set") == 1


def test_an_event_that_reached_the_chain_before_a_crash_is_not_written_twice(bench, monkeypatch):
    bench.create(A)
    monkeypatch.setattr(type(bench.service.outbox), "chained", lambda _self, _numbers: None)
    bench.operator("budget.set", id=A, ai_limit_nusd=5, compute_limit_nusd=None)
    monkeypatch.undo()
    bench.restart()
    bench.tick()
    assert bench.kinds(A).count("budget_set") == 1
    assert bench.service.outbox.unchained() == []


def test_an_event_of_a_change_that_was_taken_back_is_never_seen(bench):
    bench.create(A)
    with pytest.raises(UsageError):
        bench.operator("sandbox.update", id=A, changes={"alias": "dev", "teardown": "explode"})
    assert bench.kinds(A) == ["create_requested"]


def nested(depth):
    detail = {"x": 1}
    for _ in range(depth):
        detail = {"a": detail}
    return detail


@pytest.mark.parametrize(
    "detail",
    [
        nested(400),
        nested(600),
        nested(900),
        nested(985),
        {"x": float("nan")},
        {"x": 10**5000},
        {"x": "y" * 20000},
    ],
    ids=range(7),
)
def test_an_event_that_could_never_be_written_is_refused_and_stops_nobodys_chain(bench, detail):
    """Accepted, it would wait before everything that follows, of this sandbox and of the others."""
    bench.running(A)
    bench.running(B)
    try:
        bench.sandbox(A, "event", kind="odd", detail=detail)
    except UsageError:
        assert "odd" not in bench.kinds(A)
    for who in (A, B):
        assert bench.sandbox(who, "lease", holder="gate")["valid_s"]
        assert bench.operator("audit.append", id=who, event={"kind": "other"})["seq"]
    assert bench.service.outbox.unchained() == []


def test_a_sandbox_whose_chain_is_broken_spends_nothing_and_gets_no_lease(bench):
    bench.running(A)
    bench.running(B)
    with (bench.config.audit_dir(A) / "kmd.jsonl").open("a") as stream:
        stream.write("somebody was here\n")
    with pytest.raises(AuditError, match="cannot be continued"):
        bench.operator("budget.set", id=A, ai_limit_nusd=5, compute_limit_nusd=None)
    for op, args in (
        ("lease", {"holder": "gate"}),
        ("ledger.reserve", {"call_id": "c", "model": "m", "provider": "p", "amount_nusd": 1}),
    ):
        with pytest.raises(AuditError):
            bench.sandbox(A, op, **args)
        assert bench.sandbox(B, op, **args)
    assert [row.sandbox_id for row in bench.service.outbox.unchained()] == [A]


def test_a_broken_chain_does_not_hold_up_other_sandboxes_and_its_owner_is_told(bench):
    bench.running(A)
    bench.running(B)
    with (bench.config.audit_dir(A) / "kmd.jsonl").open("a") as stream:
        stream.write("somebody was here\n")
    with pytest.raises(AuditError):
        bench.operator("budget.set", id=A, ai_limit_nusd=5, compute_limit_nusd=None)
    bench.operator("budget.set", id=B, ai_limit_nusd=5, compute_limit_nusd=None)
    assert "budget_set" in bench.kinds(B)
    bench.tick(61)
    assert "audit_broken" in waiting(bench)


def test_an_appended_event_must_name_its_kind_and_leaves_kmds_fields_alone(bench):
    bench.create(A)
    answer = bench.operator("audit.append", id=A, event={"kind": "shell", "user": "root"})
    assert answer == {"seq": bench.events(A)[-1]["seq"], "hash": bench.events(A)[-1]["hash"]}
    for event in ({}, {"kind": 3}):
        with pytest.raises(UsageError):
            bench.operator("audit.append", id=A, event=event)
    for name in ("seq", "hash", "event_id"):
        with pytest.raises(Exception, match=name):
            bench.operator("audit.append", id=A, event={"kind": "x", name: 1})


@pytest.fixture
def told(make_bench, tmp_path):
    """A bench whose delivery process records what it gets and answers from a file."""
    seen, answer = tmp_path / "seen", tmp_path / "answer"
    script = (
        "import json,sys\n"
        "request=json.load(sys.stdin)\n"
        f"open({str(seen)!r},'a').write(json.dumps(request)+'\\n')\n"
        f"reply=json.load(open({str(answer)!r}))\n"
        "results={str(e['number']):{n:{'ok':ok,'detail':''} for n,ok in reply.items() if n not in e['done']}"
        " for e in request['events']}\n"
        "print(json.dumps({'notifiers':sorted(reply),'results':results}))\n"
    )
    bench = make_bench(deliver_command=(sys.executable, "-c", script))
    bench.answer = lambda **plugins: answer.write_text(json.dumps(plugins))

    def seen_kinds():
        lines = [json.loads(line) for line in seen.read_text().splitlines()] if seen.exists() else []
        return [[event["event"]["kind"] for event in line["events"]] for line in lines]

    def tick(seconds=0):
        bench.tick(seconds)
        bench.run(bench.service.notifier.drain())

    def begin():
        bench.create(A)
        bench.operator("sandbox.update", id=A, changes={"state": "failed"})

    bench.begin = begin
    bench.seen = seen_kinds
    bench.deliver = tick
    return bench


def waiting(bench):
    return [row.kind for row in bench.service.outbox.untold(bench.clock.now + 1e9)]


def test_an_event_is_delivered_once_when_that_works(told):
    told.answer(mail=True)
    told.begin()
    told.deliver()
    told.deliver(1)
    assert told.seen() == [["failed"]]
    assert waiting(told) == []


def test_what_one_notifier_missed_is_tried_again_for_it_alone(told):
    told.answer(mail=True, chat=False)
    told.begin()
    told.deliver()
    assert waiting(told) == ["failed"]
    (row,) = told.service.outbox.untold(told.clock.now + 1e9)
    assert (row.done, row.attempts) == (("mail",), 1)
    told.deliver(1)
    assert len(told.seen()) == 1
    told.restart()
    told.answer(mail=True, chat=True)
    told.deliver(2)
    assert len(told.seen()) == 2
    assert waiting(told) == []


def test_a_delivery_process_that_fails_loses_nothing(told):
    told.begin()
    told.deliver()
    assert waiting(told) == ["failed"]
    told.answer(mail=True)
    told.deliver(5)
    assert waiting(told) == []


def test_an_event_that_cannot_be_delivered_for_a_day_is_given_up_but_stays_in_the_chain(told):
    told.answer(chat=False)
    told.begin()
    told.deliver()
    told.deliver(GIVE_UP_S + 1)
    assert "failed" not in waiting(told)
    assert "failed" in told.kinds(A)
    assert any(event == "event_given_up" for event, _ in told.lines)


def test_without_notifiers_no_process_is_started_for_each_event(told):
    told.answer()
    told.begin()
    told.deliver()
    told.operator("sandbox.update", id=A, changes={"state": "frozen"})
    told.deliver(1)
    assert len(told.seen()) == 1
    assert waiting(told) == []
    told.deliver(601)
    told.operator("sandbox.update", id=A, changes={"state": "stopped"})
    told.deliver(1)
    assert len(told.seen()) == 2


def test_one_notifiers_exception_does_not_stop_another_and_its_text_is_not_kept():
    def broken(_event):
        raise RuntimeError("token=hunter2")

    item = {
        "number": 1,
        "done": ["had"],
        "event": {"kind": "created", "sandbox_id": A, "at": "2026-01-01T00:00:00Z", "detail": {}},
    }
    results = deliver(
        item,
        {
            "broken": broken,
            "had": broken,
            "mail": lambda _event: Delivery.ok("sent"),
            "off": lambda _event: None,
            "refused": lambda _event: Delivery(delivered=False, detail="full"),
            "odd": lambda _event: "yes",
        },
    )
    assert results == {
        "broken": {"ok": False, "detail": "RuntimeError"},
        "mail": {"ok": True, "detail": "sent"},
        "off": {"ok": True, "detail": ""},
        "refused": {"ok": False, "detail": "full"},
        "odd": {"ok": False, "detail": ""},
    }


def test_a_notifier_that_hangs_holds_up_no_other_and_is_asked_once(monkeypatch):
    monkeypatch.setenv("KM_PLUGIN_TIMEOUT_S", "0.2")
    asked, had = [], []

    def hangs(event):
        asked.append(event)
        time.sleep(30)

    plugins = PluginRegistry(new_manager())
    notifiers = {
        "hangs": notifier(plugins, "hangs", hangs, ("event",)),
        "works": notifier(plugins, "works", lambda: had.append(1), ()),
    }
    event = {"kind": "created", "sandbox_id": A, "at": "2026-01-01T00:00:00Z", "detail": {}}
    for number in (1, 2, 3):
        results = deliver({"number": number, "event": event}, notifiers)
        assert results == {
            "hangs": {"ok": False, "detail": "HookTimeoutError"},
            "works": {"ok": True, "detail": ""},
        }
    assert (1, 3) == (len(asked), len(had))


def test_the_real_delivery_process_answers(make_bench):
    from km_embedded.notify import COMMAND

    bench = make_bench(deliver_command=COMMAND)
    bench.running(A)
    bench.tick()
    bench.run(bench.service.notifier.drain())
    assert not any(event == "delivery_failed" for event, _ in bench.lines), bench.lines
    assert waiting(bench) == []


def cut_back(directory, records):
    for name in ("kmd.jsonl", "checkpoints.jsonl"):
        path = directory / name
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:records]))


def test_the_last_checkpoint_is_remembered_in_the_database_and_in_a_signed_file(bench):
    record = bench.running()
    bench.operator("audit.checkpoint", id=record["id"])
    anchor = bench.operator("audit.anchor", id=record["id"])
    path = bench.config.anchor_file(record["id"])

    assert anchor["number"] >= 2
    assert json.loads(path.read_text())["digest"] == anchor["digest"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_destroyed_sandbox_keeps_its_anchor_until_its_evidence_is_purged(bench):
    record = bench.running()
    with pytest.raises(GuardError):
        bench.operator("audit.purge", id=record["id"])
    bench.operator("sandbox.delete", id=record["id"])
    assert bench.operator("audit.anchor", id=record["id"])["number"] >= 2

    bench.operator("audit.purge", id=record["id"])

    assert bench.operator("audit.anchor", id=record["id"]) is None
    assert not bench.config.anchor_file(record["id"]).exists()
    assert "audit_purged" in bench.kinds("host")


@pytest.mark.parametrize("records", [0, 1])
def test_kmd_signs_nothing_more_on_evidence_that_was_cut_back(bench, records):
    record = bench.running()
    bench.operator("audit.checkpoint", id=record["id"])
    bench.stop()
    cut_back(bench.config.audit_dir(record["id"]), records)
    bench.start()

    with pytest.raises(AuditError, match="went back"):
        bench.operator("audit.checkpoint", id=record["id"])


def test_a_lost_database_does_not_hide_that_evidence_was_cut_back(bench):
    record = bench.running()
    bench.operator("audit.checkpoint", id=record["id"])
    bench.stop()
    cut_back(bench.config.audit_dir(record["id"]), 1)
    for path in bench.config.home.glob("km.db*"):
        path.unlink()
    bench.start()
    bench.create()

    with pytest.raises(AuditError, match="went back"):
        bench.operator("audit.checkpoint", id=record["id"])


def test_a_crash_between_a_checkpoint_and_its_anchor_is_no_break(bench):
    record = bench.running()
    with bench.service.db.transaction():
        bench.service.db.run(
            "UPDATE anchors SET number = 1, digest = ? WHERE sandbox_id = ?",
            (bench.service.evidence._checkpoints(record["id"]).digest_of(1), record["id"]),
        )
    bench.service.evidence.flush()
    bench.operator("audit.checkpoint", id=record["id"])


@pytest.mark.parametrize("name", ["../km", "..", "x/y", "sb-0000000a/../x"])
def test_an_anchor_is_asked_for_by_id_only(bench, name):
    for op in ("audit.anchor", "audit.purge"):
        with pytest.raises(UsageError):
            bench.operator(op, id=name)


def test_the_hosts_own_chain_is_checkpointed_with_every_change(bench):
    bench.operator("secret.set", name="a", value="b")

    assert bench.operator("audit.anchor", id="host")["number"] == 1
    assert (bench.config.audit_dir("host") / "checkpoints.jsonl").exists()
