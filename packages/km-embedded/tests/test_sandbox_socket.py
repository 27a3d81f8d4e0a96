"""A sandbox's credential touches its own sandbox only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from km_core.control.ops import Peer
from km_core.control.rpc import ControlClient
from km_core.errors import GuardError, KmError, PolicyDenied, UsageError
from km_embedded.operator_ops import operator_ops
from km_embedded.sandbox_ops import KMD_ONLY, sandbox_ops

A, B = "sb-0000000a", "sb-0000000b"
ARGS = {
    "lease": {"holder": "gate"},
    "policy.current": {},
    "ledger.reserve": {"call_id": "c", "model": "m", "provider": "p", "amount_nusd": 5},
    "ledger.settle": {"call_id": "c", "cost_nusd": 5, "usage": {}},
    "ledger.release": {"call_id": "c"},
    "budget.get": {},
    "secret.for": {"names": ["a"]},
    "secret.stamp": {"name": "a", "host": "h.example"},
    "audit.head": {"writer": "gate", "seq": 1, "hash": "0" * 64},
    "event": {"kind": "gate_restarted", "detail": {}},
    "activity": {"at": 1.0},
    "state": {"state": "failed", "reason": "x", "resources": {}},
}
NAMES = ("id", "sandbox_id", "sandbox", "ref", "record")


@pytest.fixture
def two(daemon, record_for):
    """A's connection and B's, to a real kmd, and the operator's."""
    import time

    operator = daemon.connect()
    clients = {}
    for sandbox_id in (A, B):
        operator.call("sandbox.create", record=record_for(sandbox_id, time.time()))
        operator.call("budget.set", id=sandbox_id, ai_limit_nusd=1000, compute_limit_nusd=1000)
        answer = operator.call("sandbox.open", id=sandbox_id)
        clients[sandbox_id] = ControlClient(Path(answer["socket"]), token=answer["token"])
    yield operator, clients, answer["token"]
    for client in clients.values():
        client.close()


def test_this_file_knows_every_operation_of_the_socket(bench):
    bench.create(A)
    assert set(sandbox_ops(bench.service, A)) == set(ARGS)


@pytest.mark.parametrize("op", sorted(ARGS))
def test_no_operation_takes_another_sandboxs_id(two, op):
    operator, clients, _ = two
    before = operator.call("sandbox.get", id=B), operator.call("budget.get", id=B)
    for name in NAMES:
        with pytest.raises(UsageError, match="unknown argument"):
            clients[A].call(op, **ARGS[op], **{name: B})
    try:
        clients[A].call(op, **ARGS[op])
    except KmError as error:
        assert op in {"secret.for", "secret.stamp", "state", "policy.current"}, error
    assert (operator.call("sandbox.get", id=B), operator.call("budget.get", id=B)) == before


def test_one_sandboxs_calls_mean_nothing_to_another(two):
    operator, clients, _ = two
    clients[B].call("ledger.reserve", call_id="c", model="m", provider="p", amount_nusd=700)
    clients[A].call("ledger.release", call_id="c")
    clients[A].call("ledger.settle", call_id="c", cost_nusd=1, usage={})
    assert operator.call("budget.get", id=B)["ai"]["reserved_nusd"] == 700
    assert operator.call("budget.get", id=B)["ai"]["spent_nusd"] == 0


def test_one_sandboxs_token_does_not_open_anothers_socket_or_the_operators(two, daemon):
    _, _, token_of_b = two
    runtime = daemon.config.runtime_dir
    for path in (runtime / A / "kmd.sock", runtime / "kmd.sock"):
        with ControlClient(path, token=token_of_b) as client, pytest.raises(KmError) as caught:
            client.call("budget.get")
        assert caught.value.code in {"policy-denied", "usage"}
    with ControlClient(runtime / A / "kmd.sock") as client, pytest.raises(PolicyDenied):
        client.call("budget.get")


def test_no_operation_of_the_operator_is_on_a_sandboxs_socket(two, bench):
    _, clients, _ = two
    for op in sorted(set(operator_ops(bench.service)) - set(ARGS)):
        with pytest.raises(UsageError, match="unknown operation"):
            clients[A].call(op, id=A)


def test_a_fresh_token_puts_the_old_one_out_and_its_connections_too(two):
    operator, clients, _ = two
    old = clients[A]
    assert old.call("budget.get")
    answer = operator.call("sandbox.open", id=A)
    with pytest.raises(KmError):
        old.call("budget.get")
    with pytest.raises(PolicyDenied):
        old.call("budget.get")
    with ControlClient(Path(answer["socket"]), token=answer["token"]) as fresh:
        assert fresh.call("budget.get")
    assert clients[B].call("budget.get")


def test_sockets_and_tokens_survive_a_kill_of_kmd(two, daemon):
    _, clients, _ = two
    for client in clients.values():
        assert client.call("lease", holder="gate")
    daemon.kill()
    daemon.connect()
    for client in clients.values():
        with pytest.raises(KmError):
            client.call("lease", holder="gate")
        assert client.call("lease", holder="gate")["valid_s"] == 60


def test_the_token_itself_is_stored_nowhere(two, daemon):
    _, _, token = two
    for path in daemon.config.home.rglob("*"):
        if path.is_file():
            assert token.encode() not in path.read_bytes(), path


def test_a_socket_is_private_until_a_gate_in_a_container_shares_it(bench):
    bench.create(A)
    bench.operator("sandbox.open", id=A)
    directory = bench.config.sandbox_runtime_dir(A)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "kmd.sock").stat().st_mode & 0o777 == 0o600
    (directory / "gate").mkdir()
    bench.tick()
    assert (directory / "gate" / "kmd.sock").samefile(directory / "kmd.sock")
    before = (directory / "kmd.sock").stat().st_ino
    bench.restart()
    bench.run(bench.service.sockets.open_known())
    assert (directory / "gate" / "kmd.sock").samefile(directory / "kmd.sock")
    assert (directory / "kmd.sock").stat().st_ino != before
    (directory / "kmd.sock").unlink()
    bench.tick()
    assert (directory / "gate" / "kmd.sock").samefile(directory / "kmd.sock")


def test_a_planted_link_instead_of_the_gates_directory_is_not_followed(bench, tmp_path):
    bench.create(A)
    bench.operator("sandbox.open", id=A)
    (bench.config.sandbox_runtime_dir(A) / "gate").symlink_to(tmp_path)
    bench.tick()
    assert list(tmp_path.iterdir()) == []


def test_a_lease_names_the_deadline_and_the_policy(bench):
    bench.running(A, expires_at=bench.clock.now + 100, max_expires_at=bench.clock.now + 90, plan_digest="d1")
    assert bench.sandbox(A, "lease", holder="gate") == {
        "valid_s": 60,
        "deadline": bench.clock.now + 90,
        "state": "running",
        "policy_version": "d1",
        "grants": [],
    }


def test_a_sandbox_at_rest_gets_a_lease_only_with_a_token_made_since(bench):
    bench.running(A)
    bench.operator("sandbox.open", id=A)
    for state in ("stopped", "failed", "frozen"):
        bench.operator("sandbox.update", id=A, changes={"state": state})
        with pytest.raises(GuardError, match="no lease"):
            bench.sandbox(A, "lease", holder="gate")
        assert bench.sandbox(A, "lease", holder="pod")["state"] == state
        bench.operator("sandbox.open", id=A)
        assert bench.sandbox(A, "lease", holder="gate")["valid_s"] == 60
    bench.operator("sandbox.update", id=A, changes={"state": "destroying"})
    bench.operator("sandbox.open", id=A)
    with pytest.raises(GuardError):
        bench.sandbox(A, "lease", holder="gate")


def test_a_supervisor_reports_what_it_sees_but_does_not_finish_a_create(bench):
    bench.create(A)
    bench.sandbox(A, "state", state="running", resources={"pid": 7})
    assert (str(bench.get().state), bench.get().resources) == ("creating", {"pid": 7})
    bench.operator("sandbox.update", id=A, changes={"state": "running"}, expect={"state": "creating"})
    bench.sandbox(A, "state", state="frozen", reason="the gate died three times")
    assert (str(bench.get().state), bench.get().reason) == ("frozen", "the gate died three times")
    assert "enforcement_lost" in bench.kinds(A)
    bench.operator("sandbox.update", id=A, changes={"state": "destroying"})
    bench.sandbox(A, "state", state="running")
    assert str(bench.get().state) == "destroying"
    with pytest.raises(UsageError):
        bench.sandbox(A, "state", state="creating")


def test_a_running_sandbox_is_known_by_its_boot(bench):
    bench.running(A)
    bench.sandbox(A, "state", state="stopped", reason="its first process ended")
    bench.sandbox(A, "state", state="running")
    assert bench.get().boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert bench.get().last_activity_at == bench.clock.now


def test_a_gate_of_another_user_cannot_report_a_state(bench):
    bench.running(A)
    op = sandbox_ops(bench.service, A)["state"]
    with pytest.raises(PolicyDenied):
        op.run(Peer(1, os.geteuid() + 4242, 0), state="failed")
    assert str(bench.get().state) == "running"


def test_events_of_the_control_plane_cannot_be_forged(bench):
    bench.running(A)
    for kind in sorted(KMD_ONLY):
        with pytest.raises(PolicyDenied):
            bench.sandbox(A, "event", kind=kind)
    bench.sandbox(A, "event", kind="gate_restarted", detail={"restarts": 2, "kind": "created"})
    event = bench.events(A)[-1]
    assert (event["kind"], event["by"], event["detail"]) == (
        "gate_restarted",
        "sandbox",
        {"restarts": 2, "kind": "created"},
    )
    for kind, detail in (("Bad Kind", {}), ("ok", {"a": "x" * 20_000})):
        with pytest.raises(UsageError):
            bench.sandbox(A, "event", kind=kind, detail=detail)


def test_activity_moves_forward_only_and_never_past_now(bench):
    bench.running(A)
    now = bench.clock.now
    bench.clock.now += 100
    bench.sandbox(A, "activity", at=now + 50)
    assert bench.get().last_activity_at == now + 50
    bench.sandbox(A, "activity", at=now + 10)
    assert bench.get().last_activity_at == now + 50
    version = bench.get().version
    bench.sandbox(A, "activity", at=now + 1e6)
    assert bench.get().last_activity_at == bench.clock.now
    assert bench.get().version == version


def test_the_head_of_another_chain_cannot_go_back_or_be_kmds_own(bench):
    bench.running(A)
    bench.sandbox(A, "audit.head", writer="gate", seq=5, hash="a" * 64)
    bench.sandbox(A, "audit.head", writer="gate", seq=5, hash="a" * 64)
    for seq, digest in ((4, "a" * 64), (5, "b" * 64)):
        with pytest.raises(KmError, match="went back"):
            bench.sandbox(A, "audit.head", writer="gate", seq=seq, hash=digest)
    with pytest.raises(PolicyDenied):
        bench.sandbox(A, "audit.head", writer="kmd", seq=9, hash="a" * 64)
    assert bench.operator("audit.checkpoint", id=A)["heads"]["gate"] == {"seq": 5, "hash": "a" * 64}


@pytest.mark.parametrize("state", ["stopped", "frozen", "failed", "destroying"])
def test_money_is_not_reserved_for_a_sandbox_that_may_have_no_traffic(bench, state):
    record = bench.running()
    call = {"model": "m", "provider": "p", "amount_nusd": 1}
    assert bench.sandbox(record["id"], "ledger.reserve", call_id="before", **call)["granted"]
    bench.operator("sandbox.update", id=record["id"], changes={"state": state})

    with pytest.raises(GuardError, match="may not spend"):
        bench.sandbox(record["id"], "ledger.reserve", call_id="after", **call)
    bench.sandbox(record["id"], "ledger.settle", call_id="before", cost_nusd=1)


def test_money_is_not_reserved_past_the_deadline(bench, clock):
    record = bench.running(expires_at=clock.now + 10)
    clock.now += 10

    with pytest.raises(GuardError, match="may not spend"):
        bench.sandbox(record["id"], "ledger.reserve", call_id="late", model="m", provider="p", amount_nusd=1)
