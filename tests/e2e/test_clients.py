"""Programs people use, unchanged and without proxy variables, inside a sandbox."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from demo.ai import Reply
from standins.distributions import Index, installed
from standins.gitserver import GitServer
from standins.world import KEYS, ORIGIN, new_world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from standins.world import Sandbox, World

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]
LOCAL_ONLY = pytest.mark.parametrize(
    "substrate", [pytest.param("local", marks=pytest.mark.namespaces)], indirect=True, scope="module"
)
GIT, INDEX = "git.test", "packages.test"
AI_HOSTS = ("api.anthropic.com", "api.openai.com")


def scripted(api: str, request: dict[str, Any]) -> Reply:
    """One scripted turn: an agent that offers a shell is asked to use it once, then gets its last word."""
    tools = {tool.get("name") for tool in request.get("tools") or []}
    text = json.dumps(request.get("messages") or request.get("input") or "")
    usage = (
        {"output_tokens": 37, "cache_read": 1400, "cache_write": 260}
        if api == "messages"
        else {"output_tokens": 37}
    )
    if "Bash" in tools and "tool_result" not in text:
        command = {"command": "echo made-by-the-agent > made.txt", "description": "write a file"}
        return Reply(text="I will write it.", tool=("Bash", command), **usage)
    return Reply(text="pong", **usage)


@pytest.fixture(scope="module")
def world(network: bool) -> Iterator[World]:
    with new_world(scripted) as world:
        context = world.authority.server_context(GIT, INDEX)
        with GitServer(context, world.directory / "git") as git, Index(context) as index:
            for name, value in KEYS.items():
                world.km("secrets", "set", name, stdin=value).assert_ok()
            ca_file = str(world.authority.ca_file)
            more = {
                host: {"url": server.url, "ca_file": ca_file} for host, server in ((GIT, git), (INDEX, index))
            }
            world.configure(upstreams=world.extra["upstreams"] | more)
            yield world


@pytest.fixture(scope="module")
def box(world: World, substrate: str) -> Sandbox:
    hosts = [ORIGIN, GIT, *AI_HOSTS, "@python-packages"]
    profile = world.profile("clients", hosts=hosts, ai=5)
    # The operator's own pip configuration names the index; nothing else does.
    config = world.directory / "pip.conf"
    config.write_text(f"[global]\nindex-url = https://{INDEX}/simple/\n", encoding="utf-8")
    outcome = world.km(
        "create", str(profile), "--substrate", substrate, "--json", env={"PIP_CONFIG_FILE": str(config)}
    )
    from standins.world import Sandbox

    box = Sandbox(world, outcome.json()["id"], substrate)
    box.put("origin-ca.pem", world.authority.ca_pem.decode())
    box.run("sh", "-c", "cat /etc/ssl/certs/ca-certificates.crt origin-ca.pem > all.pem").assert_ok()
    return box


def spent(box: Sandbox) -> int:
    status = box.wait("settlement", lambda s: not s["budget"]["ai"]["reserved_usd"])
    return int(status["budget"]["ai"]["spent_nusd"])


def unpack(box: Sandbox, archive: bytes) -> None:
    """Send a tar archive through ``km exec`` into ``/workspace``."""
    subprocess.run(
        box.world.argv("exec", box.id, "--", "tar", "-x", "-C", "/workspace"),
        env=box.world.env,
        input=archive,
        check=True,
        capture_output=True,
        timeout=120,
    )


def test_curl_uses_the_systems_trust_for_an_intercepted_host(box: Sandbox) -> None:
    outcome = box.run("curl", "-sS", "https://api.anthropic.com/v1/models").assert_ok()
    assert json.loads(outcome.stdout) == {}


def test_git_clones_over_https(box: Sandbox) -> None:
    # The stand-in's authority is one the sandbox does not know; the variable replaces the sandbox's own.
    outcome = box.run(
        "env", "GIT_SSL_CAINFO=/workspace/all.pem", "git", "clone", "-q", f"https://{GIT}/project.git"
    )
    outcome.assert_ok()
    log = box.run("git", "-C", "project", "log", "--format=%s").assert_ok()
    assert log.stdout == "the stand-in's commit\n"


def test_git_is_refused_where_the_profile_does_not_allow_it(box: Sandbox) -> None:
    outcome = box.run("git", "clone", "-q", "https://denied.test/project.git")
    assert outcome.code == 128, outcome


def test_pip_installs_from_the_operators_index(box: Sandbox) -> None:
    box.run("python3", "-m", "venv", "venv").assert_ok()
    trust = "REQUESTS_CA_BUNDLE=/workspace/all.pem"
    box.run("env", trust, "venv/bin/pip", "install", "-q", "km-greeting").assert_ok()
    outcome = box.run("venv/bin/python", "-c", "import km_greeting; print(km_greeting.TEXT)").assert_ok()
    assert outcome.stdout == "hello from the index\n"


@LOCAL_ONLY
def test_node_fetches_with_the_sandboxs_trust(box: Sandbox) -> None:
    """Node comes from the host's /usr, which only the local substrate shows."""
    if box.run("node", "--version").code != 0:
        pytest.skip("node is not installed in /usr")
    script = "fetch('https://api.openai.com/v1/models').then(r=>r.text()).then(console.log)"
    assert box.run("node", "-e", script).assert_ok().stdout == "{}\n"


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
    program = claude_code()
    unpack(box, program)
    before = len(world.ai.calls)
    ledger = spent(box)
    outcome = box.run(
        "env",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1",
        "DISABLE_AUTOUPDATER=1",
        "./claude/claude",
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


def claude_code() -> bytes:
    """Return the program from the cache as an archive; skips where it was not fetched."""
    import tarfile
    from io import BytesIO

    clients = os.environ.get("KM_TEST_CLIENTS", "")
    found = sorted(Path(clients).glob("node_modules/@anthropic-ai/claude-code-*/claude")) if clients else []
    if not found:
        pytest.skip("Claude Code is not in the cache: scripts/test fetches it with npm")
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(found[0], arcname="claude/claude")
    return buffer.getvalue()


def cost(call: Any) -> int:
    """Nano-dollars of an Anthropic call by the published rates of Sonnet (spec/metering-budget.md section 4)."""
    reply = call.reply
    return int(
        call.input_tokens * 3_000
        + reply.output_tokens * 15_000
        + reply.cache_read * 300
        + reply.cache_write * 3_750
    )
