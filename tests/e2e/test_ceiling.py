"""The dollar ceiling: exact under concurrency, kept when clients drop, refused in the provider's shape."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from demo.ai import Reply
from standins.world import KEYS, new_world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from standins.world import Sandbox, World

MODEL = "claude-sonnet-4-6"
INPUT_NUSD, OUTPUT_NUSD = 3_000, 15_000  # nano-dollars per token (spec/metering-budget.md section 4)
pytestmark = pytest.mark.timeout(180)

CALL = """
import concurrent.futures, json, socket, ssl, sys, urllib.error, urllib.request
count, limit, stream, drop = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "stream", sys.argv[4] == "drop"
context = ssl.create_default_context()
body = json.dumps({"model": "MODEL", "max_tokens": limit, "stream": stream,
                   "messages": [{"role": "user", "content": "hello"}]}).encode()
def one(_):
    request = urllib.request.Request("https://api.anthropic.com/v1/messages", body, {
        "content-type": "application/json", "x-api-key": "the-clients-own", "anthropic-version": "2023-06-01"})
    try:
        with urllib.request.urlopen(request, timeout=60, context=context) as answer:
            if drop:
                answer.read1(200)
                return {"status": answer.status, "dropped": True}
            data = answer.read()
            return {"status": answer.status, "bytes": len(data), "clamped": answer.headers.get("x-km-clamped")}
    except urllib.error.HTTPError as error:
        return {"status": error.code, "body": json.loads(error.read()), "headers": dict(error.headers)}
with concurrent.futures.ThreadPoolExecutor(count) as pool:
    for result in pool.map(one, range(count)):
        print(json.dumps(result), flush=True)
""".replace("MODEL", MODEL)


@pytest.fixture(scope="module")
def world(network: bool) -> Iterator[World]:
    """A provider that streams slowly and reports 900 tokens, or as many as it was asked for."""

    def reply(_api: str, _request: dict[str, Any]) -> Reply:
        return Reply(text="word " * 200, output_tokens=900, chunks=10, pause_s=0.05)

    with new_world(reply) as world:
        for name, value in KEYS.items():
            world.km("secrets", "set", name, stdin=value).assert_ok()
        yield world


def calls(
    box: Sandbox, count: int, limit: int = 1000, kind: str = "stream", ending: str = "whole"
) -> list[Any]:
    outcome = box.python(CALL, str(count), str(limit), kind, ending, timeout_s=120).assert_ok()
    return outcome.json_lines()


def ai(box: Sandbox) -> dict[str, Any]:
    data: dict[str, Any] = box.status()["budget"]["ai"]
    return data


def settled(box: Sandbox) -> dict[str, Any]:
    status = box.wait("settlement", lambda s: not s["budget"]["ai"]["reserved_usd"], timeout_s=90)
    data: dict[str, Any] = status["budget"]["ai"]
    return data


def billed(world: World, since: int = 0) -> int:
    """What the provider would bill, in nano-dollars."""
    return sum(
        call.input_tokens * INPUT_NUSD + call.reply.output_tokens * OUTPUT_NUSD
        for call in world.ai.calls[since:]
    )


def test_fifty_parallel_streams_never_pass_the_ceiling(fresh: Callable[..., Sandbox], world: World) -> None:
    box = fresh(ai=0.1)
    since = len(world.ai.calls)
    results = calls(box, 50)
    granted = [r for r in results if r["status"] == 200]
    refused = [r for r in results if r["status"] == 403]
    assert len(granted) + len(refused) == 50, results
    assert granted
    assert refused
    ledger = settled(box)
    assert len(world.ai.calls) - since == len(granted)
    assert ledger["spent_nusd"] == billed(world, since)
    assert ledger["spent_nusd"] <= 100_000_000


def test_a_dropped_stream_is_still_charged(fresh: Callable[..., Sandbox], world: World) -> None:
    box = fresh(ai=1)
    since = len(world.ai.calls)
    assert {r["status"] for r in calls(box, 5, ending="drop")} == {200}
    ledger = settled(box)
    assert len(world.ai.calls) - since == 5
    assert ledger["spent_nusd"] >= billed(world, since) > 0
    assert ledger["spent_nusd"] <= 1_000_000_000


def test_the_refusal_is_the_providers_shape_and_says_how_to_go_on(
    fresh: Callable[..., Sandbox], world: World
) -> None:
    box = fresh(ai=0)
    (result,) = calls(box, 1, kind="plain")
    assert result["status"] == 403
    assert result["body"]["type"] == "error"
    assert result["body"]["error"]["type"] == "permission_error"
    assert {"code", "pool", "spent", "limit", "model", "top_up"} <= set(result["body"]["km"])
    headers = {name.lower(): value for name, value in result["headers"].items()}
    assert headers["x-km-budget"] == "exhausted"
    assert headers["x-should-retry"] == "false"


def test_a_top_up_lets_calls_through_again(fresh: Callable[..., Sandbox], world: World) -> None:
    box = fresh(ai=0)
    assert calls(box, 1, kind="plain")[0]["status"] == 403
    world.km("budget", "add", box.id, "--ai", "0.05").assert_ok()
    assert calls(box, 1, kind="plain")[0]["status"] == 200
    assert 0 < settled(box)["spent_nusd"] <= 50_000_000


def test_a_call_that_does_not_fit_is_clamped_not_refused(fresh: Callable[..., Sandbox], world: World) -> None:
    """$0.02 buys 1333 output tokens at most; 4000 are asked for."""
    box = fresh(ai=0.02)
    since = len(world.ai.calls)
    (result,) = calls(box, 1, limit=4000, kind="plain")
    assert result["status"] == 200, result
    assert result["clamped"]
    assert 512 <= world.ai.calls[since].request["max_tokens"] < 1333
    assert settled(box)["spent_nusd"] <= 20_000_000


def test_without_a_ceiling_spend_is_still_counted(fresh: Callable[..., Sandbox], world: World) -> None:
    box = fresh()
    since = len(world.ai.calls)
    assert calls(box, 1)[0]["status"] == 200
    assert settled(box)["spent_nusd"] == billed(world, since)


def test_the_clients_own_key_is_replaced_by_the_operators(
    fresh: Callable[..., Sandbox], world: World
) -> None:
    box = fresh(ai=1)
    calls(box, 1, kind="plain")
    call = world.ai.calls[-1]
    assert call.credential == KEYS["anthropic-api-key"]
    assert "the-clients-own" not in json.dumps(call.arrival.headers)
    inside = box.run(
        "sh", "-c", "env; cat /proc/[0-9]*/environ; ls -aR / 2>/dev/null | head -2000", timeout_s=60
    )
    assert not [value for value in KEYS.values() if value in inside.stdout]


def test_the_gate_killed_during_a_stream_loses_no_spend(fresh: Callable[..., Sandbox], world: World) -> None:
    import os
    import signal

    box = fresh(ai=1)
    since = len(world.ai.calls)
    box.put("call.py", CALL)
    process = box.start("python3", "call.py", "5", "1000", "stream", "whole")
    deadline = time.monotonic() + 20
    while len(world.ai.calls) - since < 5:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(int(box.status()["runtime"]["gate"]["pid"]), signal.SIGKILL)
    process.communicate(timeout=60)
    box.wait("a new gate", lambda s: (s["runtime"].get("gate") or {}).get("lease") == "valid")
    data = ai(box)
    held = data["spent_nusd"] + round((data["reserved_usd"] or 0) * 1e9)
    assert held >= billed(world, since), "spend was lost with the gate"
