"""One turn of an agent: what its program gets, what passes to the operator, and what is read from it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import types

import pytest

from km_core import hookimpl
from km_core.errors import GuardError, PluginError, UsageError
from km_core.lifecycle import agent as subject
from km_core.lifecycle.agent import run_turn
from km_core.plan import SandboxPlan, WorkloadPlan
from km_core.plugins import PluginInfo, PluginRegistry, new_manager
from km_core.types import Agent, AgentRequest, AgentResult, SandboxRecord, SandboxState

PLAN = SandboxPlan("p", "", "sb", "paper", workload=WorkloadPlan(working_dir="/", env=(("MINE", "profile"),)))
SHOW = "import os,sys; print(sys.argv[1:], os.environ['MINE'], os.environ['AGENT'], repr(sys.stdin.read()))"


class Direct:
    """A substrate whose inside is here: programs run as they are given."""

    name = "paper"

    def exec(self, box, argv, *, env, cwd, root, tty):
        assert (root, tty) == (False, False)
        return subprocess.run(argv, env=env, cwd=cwd, check=False).returncode


def session(argv=None, result=None):
    offered = Agent(
        "python",
        "runs python",
        "python3",
        argv or (lambda request: (sys.executable, "-c", SHOW, *request.arguments, request.prompt)),
        result or (lambda output, code: AgentResult(code == 0, output.decode(errors="replace"))),
        env=(("AGENT", "yes"), ("MINE", "agent")),
    )
    made = types.ModuleType("kmx_agents")
    made.km_agents = hookimpl(lambda: [offered])
    manager = new_manager()
    manager.register(made, name="kit")
    registry = PluginRegistry(manager, (PluginInfo("kit", "km-kit", "3", "kmx_agents", "ok"),))
    return types.SimpleNamespace(
        plugins=registry,
        substrate=lambda _name: Direct(),
        box=lambda _record: types.SimpleNamespace(plan=PLAN),
    )


def record(state=SandboxState.RUNNING):
    return SandboxRecord("sb-00000000", "p", "paper", state, created_at=0.0)


def turn(prompt="do it", arguments=(), *, out=1, **parts):
    made = session(**parts)
    return run_turn(made, record(), made.plugins.agents()["python"], AgentRequest(prompt, arguments), out=out)


@pytest.mark.parametrize(
    "prompt", ["do it", "--help", "-x", "two\nlines", "'\"; rm -rf $HOME `id`", "ä\u202e"]
)
def test_the_prompt_reaches_the_program_as_one_unchanged_argument_and_nothing_else_does(prompt, capfd):
    done = turn(prompt, ("-m", "model"))

    wanted = f"{['-m', 'model', prompt]} profile yes ''\n"
    assert (True, wanted, 0) == (done.result.ok, done.result.text, done.code)
    assert wanted == capfd.readouterr().out


def test_the_output_goes_where_it_is_asked_to_and_nowhere_else(capfd):
    turn(out=2)

    told = capfd.readouterr()
    assert ("", True) == (told.out, "do it" in told.err)


def test_output_passes_as_it_comes(capfd):
    script = "import time; print('first', flush=True); time.sleep(1.5); print('last')"
    seen = []

    def result(output, code):
        return AgentResult(True, "")

    def watch():
        end = time.monotonic() + 10
        text = ""
        while "first" not in text and time.monotonic() < end:
            text += capfd.readouterr().out
            time.sleep(0.02)
        seen.append(time.monotonic())

    watcher = threading.Thread(target=watch)
    watcher.start()
    turn(argv=lambda request: (sys.executable, "-c", script, request.prompt), result=result)
    finished = time.monotonic()
    watcher.join()
    assert finished - seen[0] > 0.5


def test_the_exit_code_is_that_of_the_program_and_the_end_of_a_long_output_is_read(monkeypatch, capfd):
    monkeypatch.setattr(subject, "KEPT_BYTES", 1000)
    script = "import sys; print('x' * 100000 + 'the end'); sys.exit(3)"

    done = turn(argv=lambda request: (sys.executable, "-c", script, request.prompt))

    assert (3, True, False) == (done.code, done.cut, done.result.ok)
    assert 1000 == len(done.result.text)
    assert done.result.text.endswith("the end\n")
    assert 100008 == len(capfd.readouterr().out)


@pytest.mark.parametrize(
    "argv",
    [
        lambda request: ["a", request.prompt],
        lambda request: (),
        lambda request: ("sh", "-c", f"agent '{request.prompt}'"),
        lambda request: (request.prompt,),
        lambda request: 1 // 0,
    ],
    ids=["list", "empty", "through a shell", "prompt as program", "raises"],
)
def test_a_command_that_is_unusable_is_refused_naming_the_plugin(argv):
    with pytest.raises(
        PluginError, match=r"plugin kit \(km-kit 3\): the command of the agent python is unusable"
    ):
        turn(argv=argv)


@pytest.mark.parametrize(
    "result", [lambda output, code: None, lambda output, code: 1 // 0], ids=["None", "raises"]
)
def test_an_outcome_that_the_plugin_cannot_read_is_an_error_that_names_it(result, capfd):
    with pytest.raises(PluginError, match="the outcome of the agent python cannot be read"):
        turn(result=result)


@pytest.mark.parametrize(("prompt", "arguments"), [("", ()), ("a\0b", ()), ("a", ("\0",))])
def test_what_cannot_be_an_argument_is_a_usage_error(prompt, arguments):
    with pytest.raises(UsageError, match="text without NUL"):
        turn(prompt, arguments)


def test_a_sandbox_that_does_not_run_is_not_entered():
    made = session()

    with pytest.raises(GuardError, match="the sandbox is stopped"):
        run_turn(
            made, record(SandboxState.STOPPED), made.plugins.agents()["python"], AgentRequest("x"), out=1
        )


def test_what_the_program_left_running_can_write_nowhere_later(capfd):
    # Descriptors that are opened after the turn get the numbers it used: nothing from inside may reach them.
    script = (
        "import os,sys,time\n"
        "print('done', flush=True)\n"
        "if os.fork() == 0:\n"
        "    end = time.monotonic() + 4\n"
        "    while time.monotonic() < end:\n"
        "        try: os.write(1, b'late' * 64)\n"
        "        except BrokenPipeError: os._exit(0)\n"
        "        time.sleep(0.01)\n"
        "    os._exit(0)\n"
        "os._exit(0)\n"
    )
    began = time.monotonic()
    done = turn(argv=lambda request: (sys.executable, "-c", script, request.prompt))

    victims = [end for _ in range(8) for end in socket.socketpair()]
    try:
        time.sleep(0.3)
        for victim in victims:
            victim.setblocking(False)
            with pytest.raises(BlockingIOError):
                victim.recv(1)
    finally:
        for victim in victims:
            victim.close()
    assert done.result.text.startswith("done\n")
    assert time.monotonic() - began < 3


def test_the_end_of_the_output_is_not_lost_where_it_is_taken_slowly():
    reading, writing = os.pipe()
    taken = bytearray()

    def slowly():
        time.sleep(2.5)
        while piece := os.read(reading, 4096):
            taken.extend(piece)

    taker = threading.Thread(target=slowly)
    taker.start()
    script = "import sys; sys.stdout.write('x' * 150000 + 'the end')"
    try:
        done = turn(out=writing, argv=lambda request: (sys.executable, "-c", script, request.prompt))
    finally:
        os.close(writing)
        taker.join()
        os.close(reading)
    assert taken.endswith(b"the end")
    assert (150007, 150007) == (len(taken), len(done.result.text))


def test_the_descriptors_of_a_turn_are_all_closed_again(capfd):
    turn()
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(5):
        turn()
    assert before == sorted(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("prompt", ["a" * (128 * 1024), "ä" * (64 * 1024)])
def test_a_prompt_that_no_kernel_passes_on_is_a_usage_error(prompt):
    with pytest.raises(UsageError, match="bytes, of 131071"):
        turn(prompt)


def test_a_prompt_that_is_no_utf_8_is_a_usage_error_not_another_prompt():
    with pytest.raises(UsageError, match="valid UTF-8"):
        turn("caf\udce9")


@pytest.mark.parametrize(
    "result",
    [
        AgentResult("yes", ""),
        AgentResult(True, b"bytes"),
        AgentResult(True, "", None),
        AgentResult(True, "", "", 0.5),
        AgentResult(True, "", "", -1),
    ],
    ids=["ok", "text", "session", "cost", "negative"],
)
def test_an_outcome_with_other_fields_than_promised_is_refused(result, capfd):
    with pytest.raises(PluginError, match="the outcome of the agent python cannot be read"):
        turn(result=lambda output, code: result)


def test_a_command_with_a_nul_is_refused_before_anything_runs():
    with pytest.raises(PluginError, match="holds a NUL"):
        turn(argv=lambda request: ("true", "\0", request.prompt))
