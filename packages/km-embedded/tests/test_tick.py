"""What the tick does for lifetimes, supervisors, evidence and deliveries."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time

import pytest

from km_core.audit import verify_dir
from km_core.identity import public_key
from km_embedded.liveness import boot_id, pod_alive
from km_embedded.reconcile import UNFINISHED_S
from km_embedded.settings import Settings
from km_embedded.tick import MAX_RECOVERIES, RECOVERY_WINDOW_S

A, B = "sb-0000000a", "sb-0000000b"


@pytest.fixture
def tasks(make_bench, tmp_path):
    """A bench whose tasks write their arguments to a file; ``code`` holds their exit code."""
    log, code = tmp_path / "tasks", tmp_path / "code"
    code.write_text("0")
    script = (
        "import sys,time\n"
        f"open({str(log)!r},'a').write(' '.join(sys.argv[1:])+'\\n')\n"
        f"words=open({str(code)!r}).read().split()\n"
        "time.sleep(float(words[1]) if len(words)>1 else 0)\n"
        "sys.exit(int(words[0]))\n"
    )
    bench = make_bench(task_command=(sys.executable, "-c", script))

    def ran(count, *, settle=True):
        import asyncio

        async def wait():
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                lines = log.read_text().splitlines() if log.exists() else []
                if len(lines) >= count and not (settle and bench.service.tasks._running):
                    break
                await asyncio.sleep(0.02)

        bench.run(wait())
        return log.read_text().splitlines() if log.exists() else []

    bench.ran = ran
    bench.code = code
    return bench


@pytest.fixture
def supervisor(config):
    """Holds the supervisor's lock of a sandbox; calling it again gives the lock back."""
    held = {}

    def toggle(sandbox_id=A):
        if sandbox_id in held:
            os.close(held.pop(sandbox_id))
            return
        directory = config.sandbox_runtime_dir(sandbox_id)
        directory.mkdir(parents=True, exist_ok=True)
        held[sandbox_id] = os.open(directory / "pod.lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(held[sandbox_id], fcntl.LOCK_EX)

    yield toggle
    for descriptor in held.values():
        os.close(descriptor)


def test_a_sandbox_past_its_ttl_is_expired_once(tasks):
    tasks.create(A, expires_at=tasks.clock.now + 10)
    tasks.create(B)
    tasks.tick(9)
    assert tasks.ran(0) == []
    tasks.tick(2)
    tasks.tick()
    tasks.tick()
    assert tasks.ran(1) == [f"expire {A} --cause ttl"]
    event = next(event for event in tasks.events(A) if event["kind"] == "expired")
    assert (event["cause"], event["policy"]) == ("ttl", "destroy")


def test_an_expiry_that_fails_is_tried_again_less_and_less_often(tasks):
    tasks.code.write_text("1")
    tasks.create(A, expires_at=tasks.clock.now - 1)
    tasks.tick()
    for count, wait in ((2, 2.1), (3, 4.1), (4, 8.1)):
        tasks.ran(count - 1)
        tasks.tick(wait - 1.2)
        assert len(tasks.ran(0)) == count - 1
        tasks.tick(1.2)
        assert len(tasks.ran(count)) == count


def test_only_one_task_runs_for_a_sandbox_even_when_kmd_was_started_again(tasks):
    tasks.code.write_text("0 1.5")
    tasks.create(A, expires_at=tasks.clock.now - 1)
    tasks.tick()
    assert len(tasks.ran(1, settle=False)) == 1
    tasks.restart()
    tasks.tick(5)
    tasks.tick(5)
    assert len(tasks.ran(1)) == 1
    time.sleep(1.6)
    tasks.tick(5)
    assert len(tasks.ran(2)) == 2


def test_a_task_that_hangs_is_killed(make_bench):
    bench = make_bench(
        task_command=(sys.executable, "-c", "import time; time.sleep(60)"),
        settings=Settings(task_timeout_s=5),
    )
    bench.create(A, expires_at=bench.clock.now - 1)
    bench.tick()
    assert bench.service.tasks.running(A)
    bench.tick(6)
    deadline = time.monotonic() + 5
    while bench.service.tasks.running(A) and time.monotonic() < deadline:
        import asyncio

        bench.run(asyncio.sleep(0.02))
    assert ("task_killed", {"sandbox": A, "verb": "expire"}) in bench.lines
    assert not bench.service.tasks.running(A)


def test_an_idle_sandbox_is_expired_after_somebody_listened(tasks, supervisor):
    supervisor()
    tasks.running(A, idle_timeout_s=100, boot_id=boot_id())
    tasks.tick(99)
    tasks.sandbox(A, "activity")
    tasks.tick(99)
    assert tasks.ran(0) == []
    tasks.tick(2)
    assert tasks.ran(1) == [f"expire {A} --cause idle"]


def test_a_kmd_that_was_away_does_not_take_silence_for_idleness(tasks, supervisor):
    supervisor()
    tasks.running(A, idle_timeout_s=100, boot_id=boot_id())
    tasks.clock.now += 1000
    tasks.restart()
    tasks.tick(30)
    assert tasks.ran(0) == []
    tasks.sandbox(A, "activity")
    tasks.tick(60)
    assert tasks.ran(0) == []


def test_the_longest_life_ends_a_sandbox_too(tasks):
    tasks.create(A, max_expires_at=tasks.clock.now + 5)
    tasks.tick(6)
    assert tasks.ran(1) == [f"expire {A} --cause max_lifetime"]


def test_a_retained_sandbox_that_is_idle_is_told_of_once(tasks, supervisor):
    supervisor()
    tasks.running(A, idle_timeout_s=10, teardown="retain", boot_id=boot_id())
    for _ in range(5):
        tasks.tick(30)
    assert tasks.ran(0) == []
    assert tasks.kinds(A).count("retained") == 1


def test_the_owner_is_warned_at_fifteen_and_five_minutes_and_again_after_an_extension(tasks, supervisor):
    supervisor()
    tasks.running(A, expires_at=tasks.clock.now + 1000, boot_id=boot_id())
    for _ in range(9):
        tasks.tick(100)
    assert tasks.kinds(A).count("ttl_warning") == 2
    tasks.operator("sandbox.update", id=A, changes={"expires_at": tasks.clock.now + 1000})
    tasks.tick(1)
    assert tasks.kinds(A).count("ttl_warning") == 2
    tasks.tick(200)
    assert tasks.kinds(A).count("ttl_warning") == 3


def test_a_supervisor_that_lives_is_left_alone(tasks, supervisor):
    supervisor()
    tasks.running(A, boot_id=boot_id())
    for _ in range(5):
        tasks.tick(10)
    assert tasks.ran(0) == []
    assert pod_alive(tasks.config, A)


def test_a_supervisor_that_died_is_brought_back_after_a_moment(tasks, supervisor):
    supervisor()
    tasks.running(A, boot_id=boot_id())
    tasks.tick()
    supervisor()
    tasks.tick(1)
    tasks.tick(1)
    assert tasks.ran(0) == []
    # Longer than the grace: a child of this process that has not reached its exec yet still shares
    # the lock, so the first look may have found it held.
    tasks.tick(4)
    assert tasks.ran(1) == [f"recover {A}"]
    event = next(event for event in tasks.events(A) if event["kind"] == "pod_lost")
    assert (event["recovery"], event["of"]) == (1, MAX_RECOVERIES)


def test_a_stop_that_is_recorded_a_moment_later_is_no_loss(tasks):
    tasks.running(A, boot_id=boot_id())
    tasks.tick(1)
    tasks.operator("sandbox.update", id=A, changes={"state": "stopped"})
    tasks.tick(10)
    assert tasks.ran(0) == []


def test_a_supervisor_that_keeps_dying_is_given_up_with_the_reason(tasks):
    tasks.running(A, boot_id=boot_id())
    for _ in range(40):
        tasks.tick(2)
        tasks.ran(0)
    assert tasks.ran(0) == [f"recover {A}"] * MAX_RECOVERIES
    record = tasks.get()
    assert str(record.state) == "failed"
    assert f"after {MAX_RECOVERIES} recoveries" in record.reason
    assert tasks.kinds(A).count("failed") == 1


def test_recoveries_are_counted_across_a_restart_and_forgotten_in_time(tasks):
    tasks.running(A, boot_id=boot_id())
    for _ in range(5):
        tasks.tick(2)
        tasks.ran(0)
    before = len(tasks.ran(0))
    tasks.restart()
    assert 0 < before < MAX_RECOVERIES
    for _ in range(40):
        tasks.tick(2)
        tasks.ran(0)
    assert len(tasks.ran(0)) == MAX_RECOVERIES
    tasks.operator("sandbox.update", id=A, changes={"state": "running"})
    tasks.clock.now += RECOVERY_WINDOW_S
    tasks.tick(1)
    tasks.tick(4)
    assert len(tasks.ran(MAX_RECOVERIES + 1)) == MAX_RECOVERIES + 1


def test_after_a_reboot_a_sandbox_is_stopped_with_its_ttl_running_on(tasks):
    tasks.running(A, boot_id="another-boot", expires_at=tasks.clock.now + 100)
    ends = tasks.get().expires_at
    tasks.tick()
    record = tasks.get()
    assert (str(record.state), record.reason, record.expires_at) == ("stopped", "host restarted", ends)
    assert tasks.ran(0) == []
    tasks.tick(101)
    assert tasks.ran(1) == [f"expire {A} --cause ttl"]


def test_a_destroy_that_nobody_finishes_is_taken_up_again(tasks):
    tasks.running(A)
    tasks.operator("sandbox.update", id=A, changes={"state": "destroying"})
    tasks.tick(299)
    assert tasks.ran(0) == []
    tasks.tick(2)
    assert tasks.ran(1) == [f"expire {A} --cause unfinished-destroy"]


def test_one_sandboxs_trouble_does_not_stop_anothers_expiry(tasks):
    tasks.create(A, expires_at=tasks.clock.now - 1)
    tasks.create(B, expires_at=tasks.clock.now - 1)
    (tasks.config.audit_dir(A) / "kmd.jsonl").write_text("somebody was here\n")
    tasks.tick()
    assert f"expire {B} --cause ttl" in tasks.ran(2)
    assert any(event == "tick_failed" for event, _ in tasks.lines)


def test_checkpoints_come_every_minute_when_something_moved_and_at_changes_of_state(tasks, supervisor):
    supervisor()
    tasks.running(A, boot_id=boot_id())
    path = tasks.config.audit_dir(A) / "checkpoints.jsonl"
    assert [json.loads(line)["state"] for line in path.read_text().splitlines()] == ["running"]
    tasks.tick(61)
    assert len(path.read_text().splitlines()) == 1
    tasks.sandbox(A, "audit.head", writer="gate", seq=1, hash="a" * 64)
    tasks.tick(61)
    tasks.tick(61)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 2
    assert set(lines[1]["heads"]) == {"gate", "kmd"}


def test_evidence_verifies_after_a_whole_life(tasks, supervisor):
    supervisor()
    tasks.running(A, boot_id=boot_id())
    tasks.operator("audit.append", id=A, event={"kind": "exec", "argv": ["ls"]})
    tasks.operator("budget.set", id=A, ai_limit_nusd=5, compute_limit_nusd=None)
    tasks.restart()
    tasks.operator("budget.add", id=A, ai_nusd=5)
    tasks.operator("sandbox.delete", id=A)
    report = verify_dir(
        tasks.config.audit_dir(A), public_key((tasks.config.home / "checkpoint.key").read_bytes())
    )
    assert report.ok, report
    assert report.unsigned == {"kmd": 0} or not any(report.unsigned.values())
    kinds = tasks.kinds(A)
    assert [kinds[0], kinds[-1]] == ["create_requested", "destroyed"]
    assert {"created", "exec", "budget_set", "budget_topup"} <= set(kinds)


def test_reconciling_reports_first_and_acts_when_told(tasks, supervisor):
    tasks.create(A)
    tasks.running(B, boot_id="another-boot")
    orphan = tasks.config.runtime_dir / "sb-00000bad"
    orphan.mkdir()
    (orphan / "kmd.sock").write_text("")
    (tasks.config.runtime_dir / "tasks").mkdir(exist_ok=True)
    tasks.clock.now += UNFINISHED_S + 1
    expected = [
        {"id": A, "found": "create never finished", "action": "km destroy"},
        {"id": B, "found": "host restarted", "action": "stopped"},
        {"id": "sb-00000bad", "found": "sockets without a record", "action": "remove"},
    ]
    assert tasks.operator("reconcile", dry_run=True) == expected
    assert orphan.exists()
    assert tasks.operator("reconcile") == expected
    assert not orphan.exists()
    assert str(tasks.get(B).state) == "stopped"
    assert (tasks.config.runtime_dir / "tasks").exists()
    assert [finding["id"] for finding in tasks.operator("reconcile")] == [A]


def test_sockets_of_a_supervisor_that_lives_are_not_removed(tasks, supervisor):
    supervisor("sb-00000bad")
    assert tasks.operator("reconcile") == []


def test_what_a_dead_creator_left_is_removed_after_a_minute(make_bench):
    bench = make_bench(task_command=("/bin/echo",))
    record = bench.create(resources={"creator": "999999999:1"})
    bench.tick(59)
    assert "task_started" not in [event for event, _ in bench.lines]
    bench.tick(2)

    (started,) = [fields for event, fields in bench.lines if event == "task_started"]
    assert ("expire", record.id) == (started["verb"], started["sandbox"])


def test_a_create_that_goes_on_is_left_alone_however_long_it_takes(make_bench):
    from km_core.lifecycle.create import process_mark

    bench = make_bench(task_command=("/bin/echo",))
    bench.create(resources={"creator": process_mark(1)})
    bench.tick(3600)

    assert "task_started" not in [event for event, _ in bench.lines]
