"""`km attack` finds no way out of a sandbox, tries all of them, and leaves nothing behind."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from standins.world import REBIND

if TYPE_CHECKING:
    from standins.world import Sandbox, World

NOT_EVERYWHERE = {"io-uring", "mptcp", "udplite", "ipv6"}
"""Cases whose control arrives only on kernels and hosts that have the means."""


@pytest.fixture(scope="module")
def report(box: Sandbox, world: World) -> dict[str, Any]:
    """One run of the whole matrix; the world's own canary makes room for the command's."""
    world.canary.close()
    done = world.km("attack", box.id, "--rebind", REBIND, "--json", timeout_s=600)
    assert done.code in {0, 1}, done
    document: dict[str, Any] = json.loads(done.stdout)
    return document | {"code": done.code}


@pytest.mark.timeout(600)
def test_no_case_of_the_matrix_gets_out(report: dict[str, Any]) -> None:
    failed = [
        (r["row"], r["name"], r["user"], r["detail"]) for r in report["results"] if r["result"] == "fail"
    ]
    assert failed == []
    assert report["ok"]
    assert report["code"] == 0


@pytest.mark.timeout(600)
def test_every_case_is_tried_where_the_host_has_the_means(
    report: dict[str, Any], network: bool, world: World
) -> None:
    if not network:
        pytest.skip("on a machine's own network its services hold the ports")
    skipped = {r["name"]: r["detail"] for r in report["results"] if r["result"] == "skipped"}
    assert {name: why for name, why in skipped.items() if name not in NOT_EVERYWHERE} == {}
    rows = {r["row"] for r in report["results"]} | set(report["elsewhere"])
    assert rows == {f"B-{number:02}" for number in range(1, 59)}
    tokens = [name for name in world.names.queries if "km-attack" in name]
    assert tokens == [], "a name that nothing allows was asked for upstream"


@pytest.mark.timeout(600)
def test_nothing_is_left_in_the_sandbox(report: dict[str, Any], box: Sandbox) -> None:
    assert report["counts"]["pass"]
    found = box.run("sh", "-c", "find /tmp /workspace /home/sandbox -name 'km-attack*' 2>/dev/null")
    assert found.stdout == ""


def test_a_row_can_be_tried_alone_and_is_told_line_by_line(box: Sandbox, world: World) -> None:
    done = world.km("attack", box.id, "--row", "B-44 ipv4", "--row", "B-56").assert_ok()

    lines = [line.split()[:3] for line in done.stdout.splitlines() if " B-" in line]
    assert ["pass", "B-44", "ipv4"] in lines
    assert ["pass", "B-56", "enforcement-in-force"] in lines
    assert {line[1] for line in lines} == {"B-44", "B-56"}


def test_a_sandbox_that_does_not_run_cannot_be_tried(fresh: Any, world: World) -> None:
    box = fresh()
    world.km("stop", box.id).assert_ok()
    world.km("attack", box.id).assert_failed(4, "stopped", "km resume")


def test_a_host_that_the_profile_does_not_allow_is_no_allowed_host(box: Sandbox, world: World) -> None:
    world.km("attack", box.id, "--allowed", "other.test").assert_failed(2, "does not allow other.test")
