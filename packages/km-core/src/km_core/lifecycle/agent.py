"""Running one turn of an agent inside a sandbox: the same way in as every command, its output read along."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import sys
import termios
import threading
from typing import TYPE_CHECKING, Any

from attrs import frozen

from km_core.errors import GuardError, UsageError
from km_core.lifecycle.workload import workload_env
from km_core.plugins.calls import brief, call
from km_core.types import AgentResult, SandboxState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from km_core.lifecycle.session import Session
    from km_core.types import Agent, AgentRequest, SandboxRecord

KEPT_BYTES = 8 * 1024 * 1024
"""How much of the end of a turn's output is kept for reading its outcome."""
MAX_PROMPT_BYTES = 128 * 1024 - 1
"""Longest prompt; the kernel's limit for one argument (``MAX_ARG_STRLEN`` less the final NUL)."""
_NOT_FOUND = 127


@frozen
class Turn:
    """
    What a turn came to.

    Attributes:
        result: as the agent's plugin read it.
        code: exit code of the program.
        cut: whether the output was longer than `KEPT_BYTES`, so that only its end was read.
    """

    result: AgentResult
    code: int
    cut: bool


def run_turn(
    session: Session, record: SandboxRecord, agent: Agent, request: AgentRequest, *, out: int
) -> Turn:
    """
    Run one turn; the program's standard output is copied to descriptor *out* as it comes.

    Raises:
        GuardError: the sandbox does not run.
        UsageError: the prompt cannot be an argument.
        PluginError: the plugin gives no usable command, or cannot read the outcome.
    """
    if record.state is not SandboxState.RUNNING:
        raise GuardError(
            f"the sandbox is {record.state}" + (f" ({record.reason})" if record.reason else ""),
            where=record.id,
            hint=f"km resume {record.alias or record.id}",
        )
    argv = _argv(session, agent, request)
    box = session.box(record)
    with _tee(out) as tail:
        code = session.substrate(record.substrate).exec(
            box,
            argv,
            env={**dict(agent.env), **workload_env(box)},
            cwd=box.plan.workload.working_dir,
            root=False,
            tty=False,
        )
    output = bytes(tail.data)
    plugin = session.plugins.owners("km_agents").get(agent.name, "")
    outcome = call(lambda: agent.result(output, code), what="agent result", plugin=plugin)
    why = brief(outcome.error) if outcome.error is not None else _complaint(outcome.value)
    if why:
        raise session.plugins.error(plugin, f"the outcome of the agent {agent.name} cannot be read: {why}")
    if code == _NOT_FOUND:
        sys.stderr.write(f"note: {agent.program} was not found inside; is it on the sandbox's PATH?\n")
    return Turn(outcome.value, code, tail.cut)


def _argv(session: Session, agent: Agent, request: AgentRequest) -> list[str]:
    given = (request.prompt, request.session, *request.arguments)
    if not request.prompt or any("\0" in text for text in given):
        raise UsageError("a prompt and arguments must be text without NUL, and the prompt not empty")
    try:
        longest = max(len(text.encode()) for text in given)
    except UnicodeEncodeError as error:
        # A substrate could pass it on only changed.
        raise UsageError("a prompt and arguments must be valid UTF-8") from error
    if longest > MAX_PROMPT_BYTES:
        raise UsageError(
            f"a prompt or argument has {longest} bytes, of {MAX_PROMPT_BYTES}",
            hint="put the text into a file in the sandbox and name that in the prompt",
        )
    plugin = session.plugins.owners("km_agents").get(agent.name, "")
    outcome = call(lambda: agent.argv(request), what="agent argv", plugin=plugin)
    argv: Any = outcome.value
    problem = ""
    if outcome.error is not None:
        problem = brief(outcome.error)
    elif not isinstance(argv, tuple) or not argv or not all(isinstance(text, str) for text in argv):
        problem = "it is no tuple of texts"
    elif any("\0" in text for text in argv):
        problem = "an argument holds a NUL"
    elif request.prompt not in argv[1:]:
        problem = "the prompt is not one of its arguments"
    if problem:
        raise session.plugins.error(plugin, f"the command of the agent {agent.name} is unusable: {problem}")
    return list(argv)


def _complaint(result: Any) -> str:
    """Return what is wrong with an outcome, or nothing."""
    if not isinstance(result, AgentResult):
        return "it is no AgentResult"
    ok: Any = result.ok
    if not isinstance(ok, bool) or not all(isinstance(text, str) for text in (result.text, result.session)):
        return "its fields are not what AgentResult says"
    cost: Any = result.cost_nusd
    if cost is not None and (type(cost) is not int or cost < 0):
        return "its cost is no number of nano-dollars"
    return ""


class _Tail:
    """The end of what passed."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.cut = False

    def add(self, piece: bytes) -> None:
        self.data += piece
        if len(self.data) > 2 * KEPT_BYTES:
            self.trim()

    def trim(self) -> None:
        if len(self.data) > KEPT_BYTES:
            del self.data[:-KEPT_BYTES]
            self.cut = True


@contextlib.contextmanager
def _tee(out: int) -> Iterator[_Tail]:
    """
    Give what runs in the block no input, and a copy of its output to *out* and to the tail.

    At the end of the block what is in the pipe is still passed on, however slowly *out* takes it.  What
    the program left running inside may hold the pipe for ever: it gets an error when it writes later.
    """
    sys.stdout.flush()
    tail = _Tail()
    with contextlib.ExitStack() as stack:

        def opened(descriptor: int) -> int:
            stack.callback(os.close, descriptor)
            return descriptor

        kept_in, kept_out = opened(os.dup(0)), opened(os.dup(1))
        nothing = opened(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        ended = opened(os.eventfd(0, os.EFD_CLOEXEC))
        # The reader's own: it may outlive this block when a signal cuts the wait below, and must then
        # never meet a number that belongs to somebody else by now.
        copy = os.dup(kept_out if out == 1 else out)
        reading, writing = os.pipe()
        reader = threading.Thread(target=_copy, args=(reading, copy, os.dup(ended), tail.add), daemon=True)
        os.dup2(nothing, 0)
        os.dup2(writing, 1)
        os.close(writing)
        reader.start()
        try:
            yield tail
        finally:
            os.dup2(kept_in, 0)
            os.dup2(kept_out, 1)
            os.eventfd_write(ended, 1)
            reader.join()
    tail.trim()


def _copy(reading: int, copy: int, ended: int, add: Callable[[bytes], None]) -> None:
    """Pass on what comes from *reading* until its end, or what it holds once *ended* can be read."""
    waiting = select.poll()
    waiting.register(reading, select.POLLIN)
    waiting.register(ended, select.POLLIN)
    left: int | None = None
    try:
        while left is None or left > 0:
            if left is None and any(number == ended for number, _ in waiting.poll()):
                left = int.from_bytes(fcntl.ioctl(reading, termios.FIONREAD, bytes(4)), sys.byteorder)
                continue
            piece = os.read(reading, 65536 if left is None else min(left, 65536))
            if not piece:
                break
            left = left if left is None else left - len(piece)
            add(piece)
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(copy, rest) :]
    except OSError:
        # Nobody takes the output any more.
        return
    finally:
        for descriptor in (reading, copy, ended):
            os.close(descriptor)
