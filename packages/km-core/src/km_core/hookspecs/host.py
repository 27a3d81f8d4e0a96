"""Host family: control planes, checks, claims, egress groups, agents, services of the inside API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pluggy import HookspecMarker

if TYPE_CHECKING:
    from collections.abc import Iterable

    from km_core.control.protocols import ControlPlaneOffer
    from km_core.types import Agent, Claim, DoctorCheck, EgressGroup, InsideService

hookspec = HookspecMarker("km")


@hookspec
def km_control_planes() -> Iterable[ControlPlaneOffer]:
    """
    Offer control planes (``control_plane`` in the configuration).

    Run `km_core.testing.control.ControlPlaneContract` on it.

    Shape: offer.
    Called: once per process, when a command needs state.
    Runs in: the operator's ``km`` and the processes that act for it.
    Order: irrelevant; names must be unique across all plugins.
    Failure: this plugin is disabled with a warning; commands that need its control plane are refused
        with the failure as the reason.

    Returns:
        Offers; *connect* starts what must run and returns a connection with the operator's rights.

    Example:
        from typing import Any

        from km_core import hookimpl
        from km_core.config import Config
        from km_core.control.protocols import Control, ControlPlaneOffer
        from km_core.errors import ControlUnavailableError

        KM_PLUGIN_API = 1

        class Away:
            def call(self, op: str, /, **args: Any) -> Any:
                raise ControlUnavailableError("there is nobody here", where=op)

            def close(self) -> None:
                return

        def connect(config: Config) -> Control:
            return Away()

        @hookimpl
        def km_control_planes() -> list[ControlPlaneOffer]:
            return [ControlPlaneOffer("away", "answers nothing", connect)]
    """


@hookspec
def km_field_claims() -> Iterable[Claim]:
    """
    Claim profile fields: who acts on them, on which substrates.

    A field that a profile writes and nobody claims for its substrate is refused.  A claim is a promise
    that the field acts, that it is harmless there, or that it is refused: claim what the plugin does.

    Shape: collect.
    Called: once per process, when claims are checked: ``km validate --substrate``, ``compile``,
        ``create``, ``km plugins claims``.
    Runs in: the operator's ``km``.
    Order: irrelevant; the claim with the longest path counts, and of equals the strictest answer.
    Failure: an error that names the plugin; the operation ends.

    Returns:
        Claims on fields of the model or of the plugin's own sections.

    Example:
        from km_core import hookimpl
        from km_core.types import Answer, Claim

        KM_PLUGIN_API = 1

        @hookimpl
        def km_field_claims() -> list[Claim]:
            return [
                Claim("spec.ticket", ("*",), Answer.ENFORCED, "km-ticket"),
                Claim("spec.ticket.queue", ("ecs",), Answer.REFUSED, "km-ticket", note="no way out"),
            ]
    """


@hookspec
def km_egress_groups() -> Iterable[EgressGroup]:
    """
    Offer named host groups for ``allowedHosts: ["@name"]``.

    Shape: offer.
    Called: once per process, before compilation, only when a profile names a group.  *resolve* is called
        for the groups that the profile names; its outcome becomes part of the plan.
    Runs in: the operator's ``km``.
    Order: irrelevant; a name may be offered once.
    Failure: this plugin is disabled with a warning; a profile that names its group is refused.

    Returns:
        Groups; the *name* begins with ``@``.

    Example:
        from km_core import hookimpl
        from km_core.types import EgressGroup, GroupResolution

        KM_PLUGIN_API = 1

        def resolve() -> GroupResolution:
            return GroupResolution("@our-mirror", ("mirror.example:443",), source="our handbook")

        @hookimpl
        def km_egress_groups() -> list[EgressGroup]:
            return [EgressGroup("@our-mirror", "our own mirror", resolve)]
    """


@hookspec
def km_doctor_checks() -> Iterable[DoctorCheck]:
    """
    Offer health checks.

    Shape: offer.
    Called: once per process by ``km doctor`` and by set-up.
    Runs in: the operator's ``km``; *run* changes nothing.
    Order: checks are shown by name.
    Failure: this plugin is disabled with a warning; an exception of *run* becomes a failed check.

    Returns:
        Checks with unique names.

    Example:
        import shutil

        from km_core import hookimpl
        from km_core.types import CheckResult, DoctorCheck

        KM_PLUGIN_API = 1

        def run() -> CheckResult:
            if shutil.which("git"):
                return CheckResult("OK", "git is installed")
            return CheckResult("ERROR", "git is not installed", "install git")

        @hookimpl
        def km_doctor_checks() -> list[DoctorCheck]:
            return [DoctorCheck("git", run)]
    """


@hookspec
def km_agents() -> Iterable[Agent]:
    """
    Offer agent programs for ``km agent run``.

    Run `km_core.testing.agent.AgentContract` on it.

    Shape: offer.
    Called: once per process, by ``km agent list`` and ``km agent run``.
    Runs in: the operator's ``km``.  Only the command that *argv* returns runs inside the sandbox.
    Order: irrelevant; names must be unique across all plugins.
    Failure: this plugin is disabled with a warning; commands that name one of its agents fail.

    Returns:
        Agents; *name* is the word on the command line.

    Example:
        from km_core import hookimpl
        from km_core.types import Agent, AgentRequest, AgentResult

        KM_PLUGIN_API = 1

        def argv(request: AgentRequest) -> tuple[str, ...]:
            return ("echo-agent", *request.arguments, "--", request.prompt)

        def result(output: bytes, code: int) -> AgentResult:
            return AgentResult(ok=code == 0, text=output.decode(errors="replace"))

        @hookimpl
        def km_agents() -> list[Agent]:
            return [Agent("echo", "repeats what it is told", "echo-agent", argv, result)]
    """


@hookspec
def km_inside_services() -> Iterable[InsideService]:
    """
    Offer services of the inside API at ``http://km.internal/NAME``.

    What a service may do is what its `Relay` does: a few operations for the gate's own sandbox.  What it
    is asked comes from inside and is not to be trusted.

    Shape: offer.
    Called: once by the gate at start.
    Runs in: the gate.  *target* is imported there with the first request and called in a thread of its
        own for each, 8 of a service at a time; a request has 10 seconds and at most 1 MiB, an answer likewise.
    Order: irrelevant; a name may be offered once, and never one that the gate has itself.
    Failure: this plugin is disabled and its services do not exist; a clash of names keeps the gate from
        starting.  A service that raises, hangs or answers with something else is 503 for that request.

    Returns:
        Services; *name* is the first segment of the path.

    Example:
        from km_core import hookimpl
        from km_core.types import InsideRequest, InsideResponse, InsideService, Relay

        KM_PLUGIN_API = 1

        def answer(request: InsideRequest, relay: Relay) -> InsideResponse:
            spent = relay("budget.get")["ai"]["spent_nusd"]
            return InsideResponse({"sandbox": request.sandbox_id, "spent_usd": spent / 1e9})

        @hookimpl
        def km_inside_services() -> list[InsideService]:
            return [InsideService("thrift", "km_thrift.service:answer", "what was spent")]
    """
