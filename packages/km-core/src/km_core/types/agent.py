"""Agent programs: how one is started inside a sandbox and how its outcome is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Callable


@frozen
class AgentRequest:
    """
    One turn to be run.

    Attributes:
        prompt: what the agent is asked; never empty.
        arguments: further arguments of the operator for the agent's program, after its own.
        session: id of an earlier turn's session to go on with; empty starts a new one.
        allowed_tools: ``spec.agent.allowedTools``; None means no restriction.
    """

    prompt: str
    arguments: tuple[str, ...] = ()
    session: str = ""
    allowed_tools: tuple[str, ...] | None = None


@frozen
class AgentResult:
    """
    What a turn came to, read from what the program printed.

    Attributes:
        ok: the agent says that the turn succeeded.
        text: its answer.
        session: id to go on with; empty when the program has no sessions.
        cost_nusd: what the program itself says the turn cost, in nano-dollars; None when it says
            nothing.  The ledger is what counts.
    """

    ok: bool
    text: str
    session: str = ""
    cost_nusd: int | None = None


@frozen
class Agent:
    """
    An agent program.

    Attributes:
        name: the word on the command line (``claude``).
        summary: one line for ``km plugins info``.
        program: name of the executable that must be on the sandbox's ``PATH``.
        argv: returns the whole command for a turn; pure.  The prompt stands in it as one argument,
            unchanged: nothing passes through a shell.
        result: reads standard output and exit code of a finished turn; pure, never raises on any
            bytes: what it cannot read is a failed turn.
        env: variables the program needs inside; never a secret.
    """

    name: str
    summary: str
    program: str
    argv: Callable[[AgentRequest], tuple[str, ...]]
    result: Callable[[bytes, int], AgentResult]
    env: tuple[tuple[str, str], ...] = ()
