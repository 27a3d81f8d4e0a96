"""AI clients and coding agents, unchanged, against scripted models."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
from standins.clients import AI_HOSTS, archive_of, fetched, unpack
from standins.distributions import installed
from standins.world import KEYS

if TYPE_CHECKING:
    from standins.world import Sandbox, World

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]
LOCAL_ONLY = pytest.mark.parametrize(
    "substrate", [pytest.param("local", marks=pytest.mark.namespaces)], indirect=True, scope="module"
)


def spent(box: Sandbox) -> int:
    status = box.wait("settlement", lambda s: not s["budget"]["ai"]["reserved_usd"])
    return int(status["budget"]["ai"]["spent_nusd"])


@pytest.fixture(scope="module")
def sdks(box: Sandbox) -> Sandbox:
    version = (
        box.run("python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
        .assert_ok()
        .stdout.strip()
    )
    if version != f"{sys.version_info.major}.{sys.version_info.minor}":
        pytest.skip(f"the clients are installed for another Python than the sandbox's {version}")
    unpack(box, installed("anthropic", "openai"))
    return box


def test_the_anthropic_client_works_unchanged(sdks: Sandbox, world: World) -> None:
    before = spent(sdks)
    source = """
import sys; sys.path.insert(0, "site")
import anthropic
client = anthropic.Anthropic()
ask = dict(model="claude-sonnet-4-6", max_tokens=100, messages=[{"role": "user", "content": "ping"}])
print(client.messages.create(**ask).content[0].text)
with client.messages.stream(**ask) as stream:
    print(stream.get_final_message().usage.output_tokens)
"""
    assert sdks.python(source).assert_ok().stdout == "pong\n37\n"
    assert spent(sdks) - before == sum(cost(call) for call in world.ai.calls[-2:])
    assert {call.credential for call in world.ai.calls[-2:]} == {KEYS["anthropic-api-key"]}


def test_the_openai_client_works_unchanged(sdks: Sandbox, world: World) -> None:
    before = len(world.ai.calls)
    source = """
import sys; sys.path.insert(0, "site")
import openai
client = openai.OpenAI()
ask = dict(model="gpt-4o", messages=[{"role": "user", "content": "ping"}])
print(client.chat.completions.create(**ask).choices[0].message.content)
print("".join(c.choices[0].delta.content or "" for c in client.chat.completions.create(stream=True, **ask) if c.choices))
print(client.responses.create(model="gpt-4o", input="ping").output_text)
print([e.type for e in client.responses.create(model="gpt-4o", input="ping", stream=True)][-1])
"""
    assert sdks.python(source).assert_ok().stdout == "pong\npong\npong\nresponse.completed\n"
    assert [call.credential for call in world.ai.calls[before:]] == [KEYS["openai-api-key"]] * 4
    models = {m["model"]: m for m in sdks.status()["budget"]["ai"]["models"]}
    assert models["gpt-4o"]["output_tokens"] == 4 * 37


def test_a_client_of_an_exhausted_budget_gets_one_clear_error(world: World, substrate: str) -> None:
    box = world.create(world.profile("empty", hosts=list(AI_HOSTS), ai=0), substrate)
    unpack(box, installed("anthropic"))
    source = """
import sys; sys.path.insert(0, "site")
import anthropic
try:
    anthropic.Anthropic().messages.create(model="claude-sonnet-4-6", max_tokens=100,
                                          messages=[{"role": "user", "content": "ping"}])
except anthropic.PermissionDeniedError as error:
    print(error.status_code, sorted(error.body["km"]))
"""
    before = len(world.ai.calls)
    assert box.python(source).assert_ok().stdout.startswith("403 [")
    assert len(world.ai.calls) == before
    box.destroy()


@LOCAL_ONLY
def test_claude_code_runs_a_scripted_turn_and_its_cost_is_the_ledgers(box: Sandbox, world: World) -> None:
    program = fetched("node_modules/@anthropic-ai/claude-code-*/claude")
    unpack(box, archive_of(program, "claude"))
    before = len(world.ai.calls)
    ledger = spent(box)
    outcome = box.run(
        "./claude",
        "--print",
        "--output-format=json",
        "--model=claude-sonnet-4-5-20250929",
        "--allowedTools=Bash",
        "write the file, then say pong",
        timeout_s=120,
    )
    result = outcome.json()
    assert result["result"] == "pong", outcome
    assert box.run("cat", "made.txt").stdout == "made-by-the-agent\n"
    calls = world.ai.calls[before:]
    assert len(calls) >= 2
    assert {call.credential for call in calls} == {KEYS["anthropic-api-key"]}
    assert round(result["total_cost_usd"] * 1e9) == spent(box) - ledger


@LOCAL_ONLY
def test_codex_runs_a_scripted_turn_and_its_cost_is_the_ledgers(box: Sandbox, world: World) -> None:
    program = fetched("node_modules/@openai/codex-*/vendor/*/bin/codex")
    unpack(box, archive_of(program, "codex"))
    before, refused = len(world.ai.calls), len(box.decisions())
    ledger = spent(box)
    outcome = box.run(
        "./codex", "exec", "--skip-git-repo-check", "--json", "--model=gpt-4o", "say pong", timeout_s=120
    ).assert_ok()
    events = outcome.json_lines()
    said = [event["item"].get("text") for event in events if event["type"] == "item.completed"]
    assert said[-1] == "pong", outcome
    assert not [event for event in events if event["type"] == "error"], outcome
    calls = world.ai.calls[before:]
    assert {call.credential for call in calls} == {KEYS["openai-api-key"]}
    # It offers searches without a limit with every call: under a ceiling they are left out.
    assert "web_search" not in {tool["type"] for call in calls for tool in call.request["tools"]}
    # It asks once for a WebSocket, which nothing meters, and takes the answer for "then over HTTP".
    ours = [denial for denial in box.decisions()[refused:] if denial["name"] in AI_HOSTS]
    assert [denial["rule"] for denial in ours] == ["builtin:upgrade"]
    usage = events[-1]["usage"]
    assert usage["input_tokens"] * 2_500 + usage["output_tokens"] * 10_000 == spent(box) - ledger


@LOCAL_ONLY
def test_codex_runs_with_the_model_it_chooses_itself(box: Sandbox) -> None:
    """A newer model than the price table's, whose tools come in the middle of the input."""
    unpack(box, archive_of(fetched("node_modules/@openai/codex-*/vendor/*/bin/codex"), "codex"))
    outcome = box.run("./codex", "exec", "--skip-git-repo-check", "--json", "say pong", timeout_s=120)
    events = outcome.assert_ok().json_lines()
    assert not [event for event in events if event["type"] == "error"], outcome
    assert events[-2]["item"]["text"] == "pong", outcome


def cost(call: Any) -> int:
    """Nano-dollars of an Anthropic call by the published rates of Sonnet (spec/metering-budget.md section 4)."""
    reply = call.reply
    return int(
        call.input_tokens * 3_000
        + reply.output_tokens * 15_000
        + reply.cache_read * 300
        + reply.cache_write * 3_750
    )
