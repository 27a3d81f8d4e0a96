"""
Claims: nothing written in a profile is silently ignored (DESIGN section 4).

Each written field gets the answer of its most specific claim for the substrate.  A field that nobody
claims is an error, so that forgetting one in the table below fails closed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import frozen

from km_core.types import Answer, Claim, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from km_core.compile.profile import LoadedProfile

_HERE = ("local", "docker")
_PROVIDERS = {
    "local": "km-substrate-local",
    "docker": "km-substrate-docker",
    "ec2": "km-substrate-ec2",
    "ecs": "km-substrate-ecs",
}
_STRENGTH = {Answer.REFUSED: 3, Answer.MISSING: 2, Answer.ENFORCED: 1, Answer.INERT: 0}
_EMPTY = ((),)


@frozen
class FieldAnswer:
    """
    The answer for one written field.

    Attributes:
        path: dotted path without list indexes.
        answer: None when nobody claims the field.
        by: the distribution that enforces it, or would.
    """

    path: str
    answer: Answer | None
    by: str = ""
    note: str = ""


def check_claims(loaded: LoadedProfile, substrate: str, claims: Sequence[Claim]) -> list[Problem]:
    """
    Return what the claims say about the written fields, by file, line and column.

    Enforced fields are not mentioned; inert ones are of severity info; everything else is an error.  A
    field that already has an error of its own gets no second one.

    Args:
        loaded: the profile.
        substrate: where it is to run.
        claims: those of core and of all plugins.
    """
    if not any(substrate in claim.substrates for claim in claims):
        hint = f"install {_PROVIDERS[substrate]}" if substrate in _PROVIDERS else "see km plugins list"
        message = f"nothing installed can run a profile on {substrate}"
        return [loaded.placed(Problem("spec.runtime.substrate", message, hint=hint, code="claim-substrate"))]
    known = {problem.path for problem in loaded.problems if problem.severity is Severity.ERROR}
    problems = [
        loaded.placed(problem)
        for answer in claim_matrix(loaded, substrate, claims)
        if (problem := _problem(answer, substrate)) is not None and not _covered(answer.path, known)
    ]
    return sorted(problems, key=lambda p: (p.file, p.line, p.column, p.path))


def claim_matrix(loaded: LoadedProfile, substrate: str, claims: Sequence[Claim]) -> list[FieldAnswer]:
    """Return the answer of every written field, by path."""
    by_path: dict[str, list[Claim]] = {}
    for claim in claims:
        if _speaks_of(claim, substrate):
            by_path.setdefault(claim.path, []).append(claim)
    return [_answer(path, loaded.written_value(path), by_path) for path in sorted(loaded.written)]


def inert_fields(loaded: LoadedProfile, substrate: str, claims: Sequence[Claim]) -> tuple[str, ...]:
    """Return the written fields that have no meaning on *substrate*."""
    matrix = claim_matrix(loaded, substrate, claims)
    return tuple(answer.path for answer in matrix if answer.answer is Answer.INERT)


def _speaks_of(claim: Claim, substrate: str) -> bool:
    return "*" in claim.substrates or substrate in claim.substrates


def _answer(path: str, value: Any, by_path: dict[str, list[Claim]]) -> FieldAnswer:
    candidate = path
    while candidate:
        fitting = [claim for claim in by_path.get(candidate, ()) if not claim.values or _names(claim, value)]
        # A claim that names the value knows more than one that does not.
        chosen = _strongest([claim for claim in fitting if claim.values] or fitting)
        if chosen is not None:
            return FieldAnswer(path, chosen.answer, chosen.by, chosen.note)
        candidate = candidate.rpartition(".")[0]
    return FieldAnswer(path, None)


def _names(claim: Claim, value: Any) -> bool:
    if isinstance(value, (list, dict, tuple)):
        return not value and () in claim.values
    # True == 1 in Python; a profile's true is not its 1.
    return any(
        isinstance(named, bool) is isinstance(value, bool) and named == value for named in claim.values
    )


def _strongest(claims: Sequence[Claim]) -> Claim | None:
    """Return the claim that counts: deny wins, but "missing" ends where its named provider enforces."""
    providers = {claim.by for claim in claims if claim.answer is Answer.ENFORCED}
    left = [claim for claim in claims if claim.answer is not Answer.MISSING or claim.by not in providers]
    return max(left, key=lambda claim: (_STRENGTH[claim.answer], claim.by), default=None)


def _covered(path: str, known: Iterable[str]) -> bool:
    """Say whether *path*, a section around it or an item of it already has an error."""
    return any(
        path == entry or path.startswith(f"{entry}.") or entry.startswith(f"{path}[") for entry in known
    )


def _problem(answer: FieldAnswer, substrate: str) -> Problem | None:
    note = f": {answer.note}" if answer.note else ""
    if answer.answer is Answer.ENFORCED:
        return None
    if answer.answer is Answer.INERT:
        message = f"has no meaning on {substrate}{note}"
        return Problem(answer.path, message, Severity.INFO, code="claim-inert")
    if answer.answer is Answer.REFUSED:
        return Problem(
            answer.path, f"is refused on {substrate}{note}", hint="remove it", code="claim-refused"
        )
    if answer.answer is Answer.MISSING:
        provider = f"{answer.by} would enforce it" if answer.by else "no distribution provides it yet"
        hint = f"remove it, or install {answer.by}" if answer.by else "remove it"
        message = f"is not enforced on {substrate}, {provider}{note}"
        return Problem(answer.path, message, hint=hint, code="claim-missing")
    message = f"no installed plugin enforces this on {substrate}"
    return Problem(answer.path, message, hint="remove it", code="claim-none")


def _enforced(by: str, *paths: str, values: tuple[Any, ...] = (), note: str = "") -> list[Claim]:
    return [Claim(path, _HERE, Answer.ENFORCED, by, note, values) for path in paths]


def _inert(note: str, *paths: str, values: tuple[Any, ...] = ()) -> list[Claim]:
    return [Claim(path, _HERE, Answer.INERT, "km-core", note, values) for path in paths]


def _missing(by: str, *paths: str, off: tuple[Any, ...] = (), note: str = "") -> list[Claim]:
    """Claim *paths* as missing; a value of *off* asks for nothing and is inert."""
    claims = [Claim(path, _HERE, Answer.MISSING, by, note) for path in paths]
    if off:
        claims += _inert("it asks for nothing", *paths, values=off)
    return claims


def _refused(note: str, path: str, *, values: tuple[Any, ...] = ()) -> list[Claim]:
    return [Claim(path, _HERE, Answer.REFUSED, "km-core", note, values)]


def core_claims() -> list[Claim]:
    """Return what km-core and the distributions it is set up with do on ``local`` and ``docker``."""
    return [
        *_document_claims(),
        *_execution_claims(),
        *_network_claims(),
        *_observability_claims(),
        *_absent_claims(),
        *_cli_claims(),
    ]


def _document_claims() -> list[Claim]:
    machine = "there is no machine to choose"
    cloud = "no cloud identity is handed out"
    return [
        *(
            Claim(path, ("*",), Answer.ENFORCED, "km-core")
            for path in ("apiVersion", "kind", "metadata", "extends", "spec.runtime.substrate")
        ),
        *_enforced(
            "km-embedded",
            "spec.lifecycle.ttl",
            "spec.lifecycle.idleTimeout",
            "spec.lifecycle.teardownPolicy",
            "spec.lifecycle.maxLifetime",
        ),
        *_inert(
            machine,
            "spec.runtime.instanceType",
            "spec.runtime.region",
            "spec.runtime.spot",
            "spec.runtime.ami",
            "spec.runtime.rootVolumeSize",
        ),
        *_missing("km-substrate-ec2", "spec.runtime.hibernation", "spec.runtime.mountEFS", off=(False,)),
        *_inert("it only says where mountEFS would mount", "spec.runtime.efsMountPoint"),
        *_missing("km-substrate-ec2", "spec.runtime.additionalVolume"),
        *_inert(
            cloud,
            "spec.identity.roleSessionDuration",
            "spec.identity.allowedRegions",
            "spec.identity.sessionPolicy",
        ),
        *_missing("", "spec.identity.allowedSecretPaths", off=_EMPTY, note="there is no parameter store"),
    ]


def _execution_claims() -> list[Claim]:
    base = "spec.execution"
    return [
        *_enforced(
            "km-core",
            f"{base}.shell",
            f"{base}.workingDir",
            f"{base}.env",
            f"{base}.initCommands",
            f"{base}.configFiles",
        ),
        *_enforced("km-core", f"{base}.privileged", values=(False,)),
        *_refused("the sandbox's user gets no further rights", f"{base}.privileged", values=(True,)),
        *_missing("km-aws", f"{base}.useBedrock", off=(False,)),
        *_missing("", f"{base}.initScripts", f"{base}.rsyncPaths", off=_EMPTY),
        *_missing("", f"{base}.rsync", f"{base}.rsyncFileList"),
    ]


def _network_claims() -> list[Claim]:
    gate = "km-net-proxy"
    github = "spec.sourceAccess.github"
    filter_note = "the gate does not filter git by repository and ref yet"
    gate_sidecars = ("spec.sidecars.dnsProxy.enabled", "spec.sidecars.httpProxy.enabled")
    return [
        *_enforced(
            gate,
            "spec.network.egress.allowedDNSSuffixes",
            "spec.network.egress.allowedHosts",
            "spec.network.httpsOnly",
        ),
        *_enforced(gate, "spec.network.enforcement", values=("proxy",)),
        *_missing("km-net-ebpf", "spec.network.enforcement"),
        *_enforced(gate, "spec.sourceAccess.mode"),
        *_enforced(gate, f"{github}.allowedRepos", f"{github}.allowedRefs", values=_EMPTY),
        *_missing("", f"{github}.allowedRepos", f"{github}.allowedRefs", note=filter_note),
        *_enforced(gate, "spec.budget.ai.maxSpendUSD", "spec.budget.warningThreshold"),
        # The rate here is 0, so any ceiling holds; saying "enforced" would promise a stop that never comes.
        *_inert("local compute costs nothing", "spec.budget.compute.maxSpendUSD"),
        *_inert("it limits nothing", "spec.budget", values=_EMPTY),
        *_enforced(gate, *gate_sidecars, "spec.sidecars.auditLog.enabled", values=(True,)),
        *_refused("the gate always filters", gate_sidecars[0], values=(False,)),
        *_refused("the gate always filters", gate_sidecars[1], values=(False,)),
        *_refused(
            "every decision leaves evidence, without a switch",
            "spec.sidecars.auditLog.enabled",
            values=(False,),
        ),
        *_missing("", "spec.sidecars.tracing.enabled", off=(False,), note="there is no telemetry collector"),
        *_inert(
            "sidecars are not containers of their own", *(f"spec.sidecars.{name}.image" for name in _SIDECARS)
        ),
        *_inert("it names no sidecar", "spec.sidecars", values=_EMPTY),
    ]


_SIDECARS = ("dnsProxy", "httpProxy", "auditLog", "tracing")


def _observability_claims() -> list[Claim]:
    base = "spec.observability"
    logs = (f"{base}.commandLog", f"{base}.networkLog")
    collector = "there is no telemetry collector"
    return [
        *_enforced("km-core", *(f"{log}.destination" for log in logs), values=("stdout",)),
        *_missing("km-aws", *(f"{log}.destination" for log in logs)),
        *_inert("it names a place in the cloud's log store", *(f"{log}.logGroup" for log in logs)),
        *_missing("", f"{base}.claudeTelemetry.enabled", off=(False,), note=collector),
        *_missing(
            "", f"{base}.claudeTelemetry.logPrompts", f"{base}.claudeTelemetry.logToolDetails", off=(False,)
        ),
        *_missing("", f"{base}.claudeTelemetry", note=collector),
        *_missing("km-net-ebpf", f"{base}.tlsCapture.enabled", f"{base}.learnMode", off=(False,)),
        *_inert(
            "it only matters where tlsCapture is enabled",
            f"{base}.tlsCapture.libraries",
            f"{base}.tlsCapture.capturePayloads",
        ),
        *_inert("it asks for nothing", base, values=_EMPTY),
    ]


def _absent_claims() -> list[Claim]:
    return [
        *_missing("", "spec.agent", note="there is no agent runner"),
        *_missing("", "spec.artifacts", note="nothing keeps files when a sandbox ends"),
        *_missing("km-mail", "spec.email"),
        *_missing("", "spec.otp", note="there is no parameter store"),
        *_inert("it asks for nothing", "spec.otp.secrets", values=_EMPTY),
    ]


def _cli_claims() -> list[Claim]:
    base = "spec.cli"
    return [
        *_inert("the direct model API is what is used anyway", f"{base}.noBedrock"),
        *_missing("", f"{base}.claudeArgs", f"{base}.codexArgs", off=_EMPTY, note="there is no agent runner"),
        *_missing(
            "",
            f"{base}.notifyOnPermission",
            f"{base}.notifyOnIdle",
            off=(False,),
            note="there is no notifier",
        ),
        *_missing("", f"{base}.notifyCooldownSeconds", off=(0,), note="there is no notifier"),
        *_missing("km-mail", f"{base}.notificationEmailAddress"),
        *_missing("km-mail", f"{base}.notifyEmailEnabled", off=(False,)),
        *_missing(
            "km-slack",
            f"{base}.notifySlackEnabled",
            f"{base}.notifySlackPerSandbox",
            f"{base}.slackArchiveOnDestroy",
            f"{base}.notifySlackInboundEnabled",
            f"{base}.notifySlackTranscriptEnabled",
            off=(False,),
        ),
        *_missing("km-slack", f"{base}.notifySlackChannelOverride"),
        *_inert("it is a convenience of ec2", f"{base}.vscodeEnabled"),
        *_inert("it asks for nothing", base, values=_EMPTY),
    ]
