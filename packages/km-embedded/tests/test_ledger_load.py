"""Many clients at the ceiling, over real sockets of a real kmd; and kmd killed under them."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest

from km_core.audit import verify_dir
from km_core.control.rpc import ControlClient
from km_core.errors import ControlUnavailableError
from km_core.identity import public_key
from km_embedded.start import connect

A = "sb-0000000a"


@pytest.fixture
def opened(daemon, record_for):
    client = daemon.connect()
    client.call("sandbox.create", record=record_for(A, time.time()))
    return client, client.call("sandbox.open", id=A)


def test_fifty_clients_at_the_ceiling_never_pass_it_together(opened):
    client, access = opened
    limit, amount, clients, calls = 1_000_000, 1_700, 50, 30
    client.call("budget.set", id=A, ai_limit_nusd=limit, compute_limit_nusd=None)
    granted = []
    highest = []
    barrier = threading.Barrier(clients)

    def work(number):
        with ControlClient(Path(access["socket"]), token=access["token"]) as own:
            own.call("lease", holder="gate")
            barrier.wait()
            for call in range(calls):
                name = f"w{number}-{call}"
                answer = own.call("ledger.reserve", call_id=name, model="m", provider="p", amount_nusd=amount)
                highest.append(answer["spent_nusd"] + answer["reserved_nusd"])
                if answer["granted"]:
                    granted.append(name)
                    if call % 3:
                        own.call(
                            "ledger.settle",
                            call_id=name,
                            cost_nusd=amount,
                            usage={"model": "m", "provider": "p"},
                        )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(highest) <= limit
    assert len(granted) == limit // amount
    summary = client.call("budget.get", id=A)["ai"]
    assert summary["spent_nusd"] + summary["reserved_nusd"] == len(granted) * amount


def test_killing_kmd_under_load_loses_nothing_that_was_answered(daemon, opened):
    client, access = opened
    limit = 2_000_000
    client.call("budget.set", id=A, ai_limit_nusd=limit, compute_limit_nusd=None)
    client.close()
    stop = threading.Event()
    answered = {}
    attempted = {}
    lock = threading.Lock()

    def work(number):
        source = random.Random(number)
        own = ControlClient(Path(access["socket"]), token=access["token"], timeout_s=5)
        count = 0
        while not stop.is_set():
            count += 1
            name, amount = f"w{number}-{count}", source.randint(1, 500)
            cost = source.randint(0, amount)
            try:
                answer = own.call("ledger.reserve", call_id=name, model="m", provider="p", amount_nusd=amount)
                assert answer["spent_nusd"] + answer["reserved_nusd"] <= limit
                if not answer["granted"]:
                    own.call("ledger.release", call_id=name)
                    continue
                with lock:
                    attempted[name] = cost
                own.call("ledger.settle", call_id=name, cost_nusd=cost, usage={"model": "m", "provider": "p"})
                with lock:
                    answered[name] = cost
            except ControlUnavailableError:
                time.sleep(0.01)
        own.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        time.sleep(0.25)
        daemon.kill()
        connect(daemon.config).close()
    time.sleep(0.25)
    stop.set()
    for thread in threads:
        thread.join()
    again = daemon.connect()
    with ControlClient(Path(access["socket"]), token=access["token"]) as own:
        for name in set(attempted) - set(answered):
            # What the gate does with its own journal: settle again what was not answered.
            own.call(
                "ledger.settle",
                call_id=name,
                cost_nusd=attempted[name],
                usage={"model": "m", "provider": "p"},
            )
    summary = again.call("budget.get", id=A)["ai"]
    assert summary["spent_nusd"] == sum(attempted.values())
    assert summary["spent_nusd"] + summary["reserved_nusd"] <= limit
    assert len(answered) > 50


def test_records_and_journal_survive_a_kill_between_any_two_operations(daemon, record_for):
    expected = {}
    for number in range(6):
        client = daemon.connect()
        sandbox_id = f"sb-0000001{number}"
        client.call("sandbox.create", record=record_for(sandbox_id, time.time(), alias=f"box-{number}"))
        client.call("journal.begin", id=sandbox_id, step="prepare", index=number)
        if number % 2:
            client.call("journal.done", id=sandbox_id, step="prepare")
            client.call("sandbox.update", id=sandbox_id, changes={"state": "failed", "reason": f"n{number}"})
        expected[sandbox_id] = ("failed" if number % 2 else "creating", number)
        client.close()
        daemon.kill()
    client = daemon.connect()
    records = {record["id"]: record for record in client.call("sandbox.list")}
    assert {key: record["state"] for key, record in records.items()} == {
        key: state for key, (state, _) in expected.items()
    }
    assert [record["number"] for record in records.values()] == [1, 2, 3, 4, 5, 6]
    for sandbox_id, (_, number) in expected.items():
        steps = client.call("journal.list", id=sandbox_id)
        assert steps == [{"step": "prepare", "index": number, "state": "done" if number % 2 else "begun"}]
        client.call("audit.checkpoint", id=sandbox_id)
        key = public_key((daemon.config.home / "checkpoint.key").read_bytes())
        report = verify_dir(daemon.config.audit_dir(sandbox_id), key)
        assert report.ok, report
