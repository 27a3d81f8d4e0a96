"""Rules on notifications, secrets, budgets and settings without effect (X6, X7 and sections 4.7 to 4.15)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from km_core.compile.check import Rules
from km_core.profile.grammar import secret_variable

if TYPE_CHECKING:
    from km_core.compile.check import Facts
    from km_core.compile.convert import Report

OPERATOR_RULES = Rules()
_ON = "spec.cli.notifySlackEnabled"
_OWN = "spec.cli.notifySlackPerSandbox"
_FIXED = "spec.cli.notifySlackChannelOverride"


@OPERATOR_RULES.reads(_OWN, _FIXED)
def _x6_one_channel(facts: Facts, report: Report) -> None:
    if facts.get(_OWN) is True and facts.get(_FIXED):
        report.add(
            "spec.cli", "has both notifySlackPerSandbox and notifySlackChannelOverride", "keep one of them"
        )


@OPERATOR_RULES.reads(
    _ON, _OWN, _FIXED, "spec.cli.notifySlackInboundEnabled", "spec.cli.notifySlackTranscriptEnabled"
)
def _x7_needs_its_own_channel(facts: Facts, report: Report) -> None:
    for key in ("notifySlackInboundEnabled", "notifySlackTranscriptEnabled"):
        path = f"spec.cli.{key}"
        if facts.get(path) is not True:
            continue
        if facts.get(_ON) is not True:
            report.add(path, "needs notifySlackEnabled: true")
        if facts.get(_OWN) is not True:
            report.add(path, "needs notifySlackPerSandbox: true")
        if facts.get(_FIXED):
            report.add(path, "is not possible with notifySlackChannelOverride")


@OPERATOR_RULES.reads(_ON, _OWN)
def _x7c_channel_without_slack(facts: Facts, report: Report) -> None:
    if facts.get(_OWN) is True and facts.get(_ON) is not True:
        state = "false" if facts.get(_ON) is False else "not set"
        report.warn(_OWN, f"has no effect while notifySlackEnabled is {state}")


@OPERATOR_RULES.reads(_OWN, "spec.cli.slackArchiveOnDestroy")
def _x7d_archive_without_channel(facts: Facts, report: Report) -> None:
    if facts.get("spec.cli.slackArchiveOnDestroy") is not None and facts.get(_OWN) is not True:
        report.warn("spec.cli.slackArchiveOnDestroy", "has no effect without notifySlackPerSandbox: true")


@OPERATOR_RULES.reads(_ON, "spec.cli.notifyEmailEnabled")
def _x7e_no_channel_left(facts: Facts, report: Report) -> None:
    if facts.get("spec.cli.notifyEmailEnabled") is False and facts.get(_ON) is not True:
        report.warn("spec.cli", "leaves no channel for notifications: mail is off and Slack is not on")


@OPERATOR_RULES.reads("spec.budget")
def _empty_budget(facts: Facts, report: Report) -> None:
    budget = facts.get("spec.budget")
    if isinstance(budget, dict) and "compute" not in budget and "ai" not in budget:
        report.warn("spec.budget", "has neither compute nor ai, so it limits nothing")


@OPERATOR_RULES.reads("spec.identity.sessionPolicy")
def _session_policy(facts: Facts, report: Report) -> None:
    policy = facts.get("spec.identity.sessionPolicy")
    if policy in {"standard", "elevated"}:
        report.warn("spec.identity.sessionPolicy", f"{policy} has no effect: minimal is what is implemented")


@OPERATOR_RULES.reads("spec.observability.tlsCapture")
def _tls_libraries(facts: Facts, report: Report) -> None:
    if facts.get("spec.observability.tlsCapture.enabled") is not True:
        return
    for place, library in facts.items("spec.observability.tlsCapture.libraries"):
        if library not in {"openssl", "all"}:
            report.warn(place, f"{library} has no effect: only openssl is observed")


@OPERATOR_RULES.reads("spec.identity.allowedSecretPaths")
def _secrets(facts: Facts, report: Report) -> None:
    _unique_variables(facts, report, "spec.identity.allowedSecretPaths")


@OPERATOR_RULES.reads("spec.otp.secrets")
def _otp(facts: Facts, report: Report) -> None:
    _unique_variables(facts, report, "spec.otp.secrets")


def _unique_variables(facts: Facts, report: Report, path: str) -> None:
    first: dict[str, str] = {}
    for place, secret in facts.items(path):
        variable = secret_variable(secret)
        if first.setdefault(variable, place) != place:
            report.add(place, f"becomes the variable {variable}, as does {first[variable]}")
    if first:
        report.warn(path, "puts secrets inside the sandbox, where everything that runs there can read them")
