"""What every agent program's descriptor promises; subclass `AgentContract`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from km_core.errors import KmError
from km_core.testing.probes import canary, impure, must_override, sealed
from km_core.types import Agent, AgentRequest, AgentResult

if TYPE_CHECKING:
    from collections.abc import Sequence

PROMPTS = (
    "say hello",
    "--help",
    "-x",
    "--",
    "-",
    "two\nlines\n",
    'it\'s "quoted" `cmd` $(reboot) $HOME ; rm -rf / | & > < * ? ~ \\',
    "tab\tand\rreturn",
    " leading and trailing ",
    "@/etc/passwd",
    "ünïcødé 世界 🜁",
)
"""Prompts that a shell, an option parser or a template would change."""

_NAME = re.compile(r"[a-z][a-z0-9-]*\Z")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL")
_CREDENTIALS = (
    "ANTHROPIC_API_KEY",
    "OPENAI_API_KEY",
    "GITHUB_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "KM_SAFE_PHRASE",
)
_TRIES = settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


class AgentContract:
    """
    Promises A1 to A8.

    Must override: `agent`.  May override: `outputs`.

    Attributes:
        supports_sessions: whether a session of an earlier turn can be gone on with.
        prompt_option: the option whose value the prompt is (``-m``); empty for a program that takes the
            prompt as an argument, which then needs ``--`` somewhere before it.
    """

    supports_sessions = True
    prompt_option = ""

    @pytest.fixture(autouse=True)
    def credentials(self, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
        """Values of the operator's credentials, planted before `agent` is made."""
        planted = {name: canary() for name in _CREDENTIALS}
        for name, value in planted.items():
            monkeypatch.setenv(name, value)
        return tuple(planted.values())

    @pytest.fixture
    def agent(self) -> Agent:
        """The descriptor."""
        must_override("agent", "return the Agent that your plugin offers")

    @pytest.fixture
    def outputs(self) -> Sequence[tuple[bytes, int, AgentResult]]:
        """Outputs with exit code and the result they stand for; may be overridden."""
        return ()

    def test_a1_the_descriptor_can_be_shown_and_found(self, agent: Agent) -> None:
        """A1: name, program and summary are what the command line can use."""
        assert _NAME.match(agent.name), agent.name
        assert agent.summary, "no summary"
        assert agent.summary == agent.summary.strip()
        assert "\n" not in agent.summary
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", agent.program), "the program is a name on PATH"
        assert argv(agent, AgentRequest("x"))[0] == agent.program

    def test_a2_the_prompt_is_one_argument_and_unchanged(self, agent: Agent) -> None:
        """A2: the prompt is exactly one argument, through no shell, and never read as an option."""

        def check(prompt: str) -> None:
            words = argv(agent, AgentRequest(prompt))
            assert words.count(prompt) >= 1, f"the prompt {prompt!r} is not an argument of {words!r}"
            place = len(words) - 1 - words[::-1].index(prompt)
            assert not _is_shell(words), f"the command goes through a shell: {words!r}"
            if prompt.startswith("-"):
                guarded = (
                    words[place - 1] == self.prompt_option if self.prompt_option else "--" in words[1:place]
                )
                assert guarded, f"{prompt!r} can be read as an option in {words!r}"

        for prompt in PROMPTS:
            check(prompt)
        _TRIES(given(st.text(min_size=1).filter(lambda text: "\0" not in text))(check))()

    def test_a3_the_operators_arguments_come_along_unchanged(self, agent: Agent) -> None:
        """A3: further arguments of the operator stand in the command, in order and unchanged."""
        extra = ("--verbose", "a b", "$(x)", "", "-n", "1")
        rest = list(argv(agent, AgentRequest("hello", arguments=extra)))
        for argument in extra:
            assert argument in rest, f"{argument!r} is missing or out of order"
            del rest[: rest.index(argument) + 1]

    def test_a4_the_command_is_pure(self, agent: Agent) -> None:
        """A4: making the command reads and writes nothing, and gives the same every time."""
        request = AgentRequest("hello", arguments=("-v",))
        first = argv(agent, request)
        with sealed(impure) as touched:
            assert argv(agent, request) == first
            agent.result(b"{}", 0)
        assert touched == []

    def test_a5_any_output_is_read_without_an_exception(self, agent: Agent) -> None:
        """A5: whatever bytes the program printed, there is a result; a failed program is a failed turn."""

        @_TRIES
        @given(output=st.binary(max_size=300), code=st.integers(-64, 255))
        @example(output=b"", code=0)
        @example(output=b"\xff\xfe\x00", code=0)
        @example(
            output=b'{"result": 1, "is_error": "no", "session_id": [], "total_cost_usd": "1e999"}', code=0
        )
        @example(output=b"[" * 100_000, code=0)
        @example(output=b"null", code=0)
        def check(output: bytes, code: int) -> None:
            result = agent.result(output, code)
            _check_result(result)
            assert not (result.ok and code != 0), f"exit code {code} was read as success"

        check()

    def test_a6_no_secret_is_in_environment_or_command(
        self, agent: Agent, credentials: tuple[str, ...]
    ) -> None:
        """A6: neither variables nor arguments hold a credential of the operator."""
        shown = repr((agent.env, argv(agent, AgentRequest("hello"))))
        for value in credentials:
            assert value not in shown, "a credential of the operator is handed in"
        for name, value in agent.env:
            assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name), name
            if _SECRET.search(name):
                assert "placeholder" in value.lower() or not value, (
                    f"{name} must say that it is a placeholder"
                )

    def test_a7_a_session_goes_on(self, agent: Agent) -> None:
        """A7: the id of an earlier session stands in the command as one argument."""
        if not self.supports_sessions:
            pytest.skip("supports_sessions = False")
        words = argv(agent, AgentRequest("hello", session="ses-0123"))
        assert any(word == "ses-0123" or word.endswith("=ses-0123") for word in words), words

    def test_a8_restricted_tools_are_restricted_or_refused(self, agent: Agent) -> None:
        """A8: a program that cannot be held to the allowed tools is not started with them."""
        free = argv(agent, AgentRequest("hello"))
        for tools in (("Read",), ()):
            try:
                held = argv(agent, AgentRequest("hello", allowed_tools=tools))
            except KmError:
                continue
            assert held != free, f"allowed_tools={tools!r} changes nothing: the restriction is lost"

    def test_a9_known_outputs_are_read_as_they_are_meant(
        self, agent: Agent, outputs: Sequence[tuple[bytes, int, AgentResult]]
    ) -> None:
        """A9: outputs the author knows give the result they stand for."""
        if not outputs:
            pytest.skip("no `outputs` fixture: no known outputs were given")
        for output, code, meant in outputs:
            assert agent.result(output, code) == meant


def argv(agent: Agent, request: AgentRequest) -> tuple[str, ...]:
    """Return the command of a turn, checked to be a tuple of texts that a system call can take."""
    words: Any = agent.argv(request)
    assert isinstance(words, tuple), f"argv returned {type(words).__name__}, not a tuple"
    assert words
    for word in words:
        assert isinstance(word, str), f"{word!r} is not text"
        assert "\0" not in word
    return words


def _is_shell(words: Sequence[str]) -> bool:
    return words[0].rpartition("/")[2] in {"sh", "bash", "dash", "zsh", "ash", "ksh"} and "-c" in words[1:3]


def _check_result(result: Any) -> None:
    assert isinstance(result, AgentResult), result
    assert isinstance(result.ok, bool), result
    assert isinstance(result.text, str), result
    assert isinstance(result.session, str), result
    cost: Any = result.cost_nusd
    assert cost is None or (isinstance(cost, int) and not isinstance(cost, bool) and cost >= 0), result
