"""Agents with one planted defect each; `Honest` has none."""

from __future__ import annotations

import json
import os

import pytest
from attrs import evolve

from km_core.testing.agent import AgentContract
from km_core.types import Agent, AgentResult


def argv(request):
    tools = () if request.allowed_tools is None else ("--tools", ",".join(request.allowed_tools))
    session = ("--session", request.session) if request.session else ()
    return ("toy", "run", *tools, *session, *request.arguments, "--", request.prompt)


def result(output, code):
    try:
        data = json.loads(output)
        return AgentResult(code == 0 and data["ok"] is True, str(data["text"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return AgentResult(False, output.decode(errors="replace"))


def honest():
    return Agent("toy", "A toy", "toy", argv, result, (("TOY_API_KEY", "placeholder"),))


class Base(AgentContract):
    @pytest.fixture
    def agent(self):
        return self.make(honest())

    def make(self, agent):
        return agent


class TestHonest(Base):
    pass


class TestHasABadName(Base):
    def make(self, agent):
        return evolve(agent, name="Toy Agent")


class TestGoesThroughAShell(Base):
    def make(self, agent):
        return evolve(agent, argv=lambda request: ("toy", "-c", f"toy run '{request.prompt}'"))


class TestStripsThePrompt(Base):
    def make(self, agent):
        return evolve(agent, argv=lambda request: (*argv(request)[:-1], request.prompt.strip()))


class TestReadsThePromptAsAnOption(Base):
    def make(self, agent):
        return evolve(agent, argv=lambda request: tuple(word for word in argv(request) if word != "--"))


class TestDropsArguments(Base):
    def make(self, agent):
        return evolve(agent, argv=lambda request: argv(evolve(request, arguments=())))


class TestReadsAFile(Base):
    def make(self, agent):
        def reading(request):
            with open(os.devnull, encoding="utf-8"):
                return argv(request)

        return evolve(agent, argv=reading)


class TestRaisesOnOddOutput(Base):
    def make(self, agent):
        return evolve(agent, result=lambda output, code: AgentResult(code == 0, output.decode()))


class TestReadsFailureAsSuccess(Base):
    def make(self, agent):
        return evolve(agent, result=lambda output, code: AgentResult(True, ""))


class TestHandsASecretIn(Base):
    def make(self, agent):
        return evolve(agent, env=(("TOY", os.environ["ANTHROPIC_API_KEY"]),))


class TestLosesTheSession(Base):
    def make(self, agent):
        return evolve(agent, argv=lambda request: argv(evolve(request, session="")))


class TestIgnoresAllowedTools(Base):
    def make(self, agent):
        return evolve(agent, argv=lambda request: argv(evolve(request, allowed_tools=None)))
