"""The policy of a living sandbox changes without a restart, and comes back after one."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest
from standins.world import ORIGIN, WEB

if TYPE_CHECKING:
    from collections.abc import Callable

    from standins.world import Sandbox, World


@pytest.fixture
def box(fresh: Callable[..., Sandbox], world: World) -> Sandbox:
    made = fresh(hosts=[ORIGIN])
    made.put("origin-ca.pem", world.authority.ca_pem.decode())
    return made


def reaches(box: Sandbox, name: str) -> bool:
    return box.run("curl", "-sS", "-m", "10", "--cacert", "origin-ca.pem", f"https://{name}/hello").code == 0


def changes(box: Sandbox, world: World) -> list[tuple[str, str, str]]:
    records = world.km("audit", "show", box.id, "--json").json()
    return [
        (record["writer"], record["policy_before"], record["policy_after"])
        for record in records
        if record["kind"] == "policy_changed"
    ]


def test_an_applied_policy_counts_at_once_and_after_the_gate_and_the_sandbox_start_again(
    box: Sandbox, world: World
) -> None:
    assert (reaches(box, ORIGIN), reaches(box, WEB)) == (True, False)
    wanted = world.profile("fresh0", hosts=[WEB])

    dry = world.km("policy", "apply", box.id, str(wanted), "--dry-run", "--json").json()
    assert [change["kind"] for change in dry["loosened"]] == ["host"]
    assert (reaches(box, ORIGIN), reaches(box, WEB)) == (True, False)

    done = world.km("policy", "apply", box.id, str(wanted), "--json").json()
    assert done["in_force"]
    assert done["policy_after"] == dry["policy_after"]
    assert (reaches(box, ORIGIN), reaches(box, WEB)) == (False, True)
    again = world.km("policy", "apply", box.id, str(wanted), "--json").json()
    assert again["policy_before"] == again["policy_after"]

    first = int(box.status()["runtime"]["gate"]["pid"])
    os.kill(first, signal.SIGKILL)
    box.wait("another gate", lambda s: s["runtime"]["gate"].get("pid") not in {None, 0, first})
    box.wait("a valid lease", lambda s: s["runtime"]["gate"].get("lease") == "valid")
    assert (reaches(box, ORIGIN), reaches(box, WEB)) == (False, True)
    world.km("stop", box.id).assert_ok()
    world.km("resume", box.id).assert_ok()
    assert (reaches(box, ORIGIN), reaches(box, WEB)) == (False, True)

    pair = (done["policy_before"], done["policy_after"])
    assert ("kmd", *pair) in changes(box, world)
    assert ("gate", *pair) in changes(box, world)
    world.km("audit", "verify", box.id).assert_ok()


def test_a_profile_that_changes_more_is_refused_unless_its_policy_alone_is_wanted(
    box: Sandbox, world: World
) -> None:
    execution = {"shell": "/bin/bash", "workingDir": "/workspace", "env": {"ANOTHER": "1"}}
    wanted = world.profile("more", hosts=[WEB], execution=execution)

    world.km("policy", "apply", box.id, str(wanted)).assert_failed(
        4, "changes more than the policy", "ANOTHER"
    )
    assert (reaches(box, ORIGIN), reaches(box, WEB)) == (True, False)
    world.km("policy", "apply", box.id, str(wanted), "--policy-only").assert_ok()
    assert (reaches(box, ORIGIN), reaches(box, WEB)) == (False, True)
    assert box.run("sh", "-c", "echo $ANOTHER").stdout == "\n"


def test_a_host_that_would_have_to_be_opened_is_refused_before_anything_changes(
    box: Sandbox, world: World
) -> None:
    wanted = world.profile("model", hosts=[WEB, "api.anthropic.com"])
    outcome = world.km("policy", "apply", box.id, str(wanted), "--policy-only")
    outcome.assert_failed(4, "CA was not made for", "api.anthropic.com")
    world.km("allow", box.id, "api.anthropic.com", "--for", "5m").assert_failed(4, "CA was not made for")
    assert (reaches(box, ORIGIN), reaches(box, WEB)) == (True, False)
    assert changes(box, world) == []

    world.km("stop", box.id).assert_ok()
    done = world.km("policy", "apply", box.id, str(wanted), "--policy-only", "--json").json()
    assert not done["in_force"]
    world.km("resume", box.id).assert_ok()
    assert (reaches(box, ORIGIN), reaches(box, WEB)) == (False, True)
    # Without a CA file of its own: by the one that the sandbox trusts now.
    box.run("curl", "-sS", "-m", "10", "https://api.anthropic.com/v1/models").assert_ok()


def test_a_host_is_open_for_a_time_and_until_it_is_taken_back(box: Sandbox, world: World) -> None:
    world.km("allow", box.id, "web.test:443", "--for", "30m").assert_ok()
    assert reaches(box, WEB)
    listed = world.km("allow", box.id, "--list", "--json").json()["grants"]
    assert [grant["entry"] for grant in listed] == ["web.test:443"]
    assert world.km("deny", box.id, "WEB.test:443", "--json").json()["grants"] == []
    assert not reaches(box, WEB)
    world.km("deny", box.id, ORIGIN).assert_failed(5, "was not granted", "km policy apply")

    world.km("allow", box.id, WEB, "--for", "5s").assert_ok()
    assert reaches(box, WEB)
    end = time.monotonic() + 15
    while reaches(box, WEB):
        assert time.monotonic() < end
        time.sleep(0.2)
    assert reaches(box, ORIGIN)


def test_what_cannot_be_granted_is_a_usage_error(box: Sandbox, world: World) -> None:
    for words in (
        ["--for", "30m"],
        [WEB],
        [WEB, "--list"],
        [WEB, "--for", "soon"],
        [WEB, "--for", "8d"],
        ["*", "--for", "1m"],
        ["127.0.0.1", "--for", "1m"],
        ["http://web.test/", "--for", "1m"],
    ):
        world.km("allow", box.id, *words).assert_failed(2)
    assert world.km("allow", box.id, "--list", "--json").json()["grants"] == []


def test_gates_and_kmd_that_are_killed_over_changes_leave_the_last_policy_in_force(
    box: Sandbox, world: World
) -> None:
    both = [world.profile(f"kills{number}", hosts=[host]) for number, host in enumerate((ORIGIN, WEB))]
    for number in range(6):
        victims = world.pid("kmd"), int(box.status()["runtime"]["gate"]["pid"])
        applying = world.start(
            "policy", "apply", box.id, str(both[(number + 1) % 2]), "--policy-only", "--json"
        )
        time.sleep(0.15 * number)
        os.kill(victims[number % 2], signal.SIGKILL)
        out, _ = applying.communicate(timeout=60)
        shown = world.km("policy", "show", box.id, "--json").json()
        if applying.returncode == 0:
            assert json.loads(out)["policy_after"] == shown["policy_version"]
        box.wait("a valid lease", lambda s: s["runtime"]["gate"].get("lease") == "valid")
        rules = [rule["rule"] for rule in shown["rules"]]
        end = time.monotonic() + 15
        while (reaches(box, ORIGIN), reaches(box, WEB)) != (ORIGIN in str(rules), WEB in str(rules)):
            assert time.monotonic() < end, rules
    world.km("audit", "verify", box.id).assert_ok()


def test_a_paused_sandboxs_policy_and_grants_change_and_end_while_it_sleeps(
    box: Sandbox, world: World
) -> None:
    paused = world.km("pause", box.id)
    if paused.code:
        pytest.skip(f"this machine cannot pause: {paused.stderr.strip()}")
    wanted = world.profile("paused", hosts=[WEB])
    assert world.km("policy", "apply", box.id, str(wanted), "--policy-only", "--json").json()["in_force"]
    world.km("allow", box.id, ORIGIN, "--for", "2s").assert_ok()
    time.sleep(2.5)
    world.km("resume", box.id).assert_ok()
    assert (reaches(box, ORIGIN), reaches(box, WEB)) == (False, True)
