"""What a profile allows is reached, what it does not is refused, and both can be explained."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from standins.world import DENIED, ORIGIN, REBIND, WEB

if TYPE_CHECKING:
    from standins.world import Sandbox, World


@pytest.fixture(scope="module")
def box(box: Sandbox, world: World) -> Sandbox:
    box.put("origin-ca.pem", world.authority.ca_pem.decode())
    return box


def test_an_allowed_host_answers_over_tls(box: Sandbox) -> None:
    outcome = box.run("curl", "-sS", "--cacert", "origin-ca.pem", f"https://{ORIGIN}/hello").assert_ok()
    assert outcome.stdout == "hello from the stand-in origin\n"


def test_a_large_body_streams_through_whole(box: Sandbox) -> None:
    size = 32 * 1024 * 1024
    outcome = box.run(
        "sh", "-c", f"curl -sS --cacert origin-ca.pem https://{ORIGIN}/bytes/{size} | wc -c"
    ).assert_ok()
    assert int(outcome.stdout) == size


def test_a_denied_name_does_not_resolve(box: Sandbox, world: World) -> None:
    outcome = box.run("curl", "-sS", f"https://{DENIED}/")
    assert outcome.code == 6, outcome  # curl: could not resolve host
    assert world.names.queries[DENIED] == 0


def test_a_raw_address_is_refused(box: Sandbox) -> None:
    outcome = box.run("curl", "-sSk", "-m", "10", "https://203.0.113.77/")
    assert outcome.code != 0, outcome
    assert [r for r in box.decisions() if r.get("address") == "203.0.113.77"]


def test_a_rebinding_name_is_refused(box: Sandbox) -> None:
    assert box.run("curl", "-sSk", "-m", "10", f"https://{REBIND}/").code != 0
    assert [r for r in box.decisions() if r.get("name") == REBIND]


def test_explain_says_what_the_wire_does(box: Sandbox, world: World) -> None:
    profile = world.profile("explained")
    for url, verdict in {
        f"https://{ORIGIN}/": "allow",
        f"https://{DENIED}/": "deny",
        "https://203.0.113.77/": "deny",
        "http://169.254.169.254/": "deny",
    }.items():
        answer = world.km("explain", "egress", str(profile), url, "--json").json()
        assert answer["verdict"] == verdict, (url, answer)
        assert answer["rule"], (url, answer)


def test_logs_show_refusals_with_their_rule(box: Sandbox, world: World) -> None:
    box.run("curl", "-sS", f"https://shown.{DENIED}/")
    lines = world.km("logs", box.id, "--denied").assert_ok().stdout.splitlines()
    shown = [line for line in lines if f"shown.{DENIED}" in line]
    assert shown, lines
    assert "[" in shown[0]


def test_the_audit_chain_verifies(box: Sandbox, world: World) -> None:
    assert world.km("audit", "verify", box.id, "--json").json()["ok"] is True


def test_a_changed_audit_record_is_found(box: Sandbox, world: World) -> None:
    chain = world.home / "audit" / box.id / "gate.jsonl"
    original = chain.read_bytes()
    assert b'"deny"' in original
    try:
        chain.write_bytes(original.replace(b'"deny"', b'"allow"', 1))
        world.km("audit", "verify", box.id).assert_failed(1)
    finally:
        chain.write_bytes(original)


def test_exec_passes_streams_and_the_exit_code(box: Sandbox) -> None:
    outcome = box.run("sh", "-c", "cat; echo to-stderr >&2; exit 7", stdin="from-stdin")
    assert outcome.code == 7, outcome
    assert outcome.stdout == "from-stdin"
    assert "to-stderr" in outcome.stderr


def test_the_workspace_is_writable_and_the_host_is_not_visible(box: Sandbox, world: World) -> None:
    box.run("sh", "-c", "touch /workspace/mine && test -O /workspace/mine").assert_ok()
    assert box.run("test", "-e", str(world.home)).code == 1
    homes = box.run("sh", "-c", "find /root /home -mindepth 1 2>/dev/null | grep -v ^/home/sandbox").stdout
    assert homes == ""


def test_the_gate_serves_the_budget_inside(box: Sandbox) -> None:
    outcome = box.run("curl", "-sS", "http://km.internal/budget").assert_ok()
    assert "ai" in outcome.stdout


def test_stop_and_resume_keep_files_and_enforcement(box: Sandbox, world: World) -> None:
    box.put("kept.txt", "kept")
    world.km("stop", box.id).assert_ok()
    world.km("exec", box.id, "--", "true").assert_failed(4)
    world.km("resume", box.id).assert_ok()
    assert box.run("cat", "kept.txt").assert_ok().stdout == "kept"
    assert box.run("curl", "-sS", "-m", "10", "-o", "/dev/null", f"http://{WEB}/").code == 0
    assert box.run("curl", "-sS", f"https://{DENIED}/").code == 6


def test_a_sandbox_ends_at_its_time_to_live(world: World, substrate: str) -> None:
    short = world.create(world.profile("short"), substrate, "--ttl", "4s", "--idle", "3s")
    deadline = time.monotonic() + 25
    while world.km("status", short.id).code == 0:
        assert time.monotonic() < deadline, short.status()
        time.sleep(0.5)
    assert world.km("status", short.id).code == 5


def test_a_sandbox_knows_its_own_name_without_asking_the_gate(box: Sandbox) -> None:
    found = box.run("sh", "-c", 'getent hosts "$(hostname)"').assert_ok()

    assert found.stdout.split()[0] in {"127.0.0.1", "::1"}
    assert [record for record in box.decisions() if record.get("name") == box.id] == []
