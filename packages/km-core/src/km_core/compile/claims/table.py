"""
Core's table: what km-core and the distributions it is set up with do on each substrate.

``local`` and ``docker`` field by field.  For ``ec2`` and ``ecs`` nothing is installed with km-core, so the
table names, section by section, what would provide them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import evolve

from km_core.types import Answer, Claim

if TYPE_CHECKING:
    from collections.abc import Iterable

_HERE = ("local", "docker")
_GATE = "km-net-proxy"
_EMPTY = ((),)


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
    """Return the whole table."""
    return [
        *_document_claims(),
        *_execution_claims(),
        *_network_claims(),
        *_observability_claims(),
        *_absent_claims(),
        *_cli_claims(),
        *_cloud_claims(),
    ]


def claims_as_on(model: str, substrate: str, *, gate: bool, but: Iterable[Claim] = ()) -> tuple[Claim, ...]:
    """
    Return core's claims for *model*, made for another substrate, except where *but* says otherwise.

    For the plugin of a substrate that works like ``local`` or ``docker``: return the result from
    ``km_field_claims``.  A claim of *but* replaces what core says of its field and of everything below it.

    Args:
        model: ``local`` or ``docker``.
        substrate: the name the plugin offers.
        gate: whether km-net-proxy's gate stands around the workload there.  If not, the fields that it
            enforces (network, repositories, budgets, sidecars) are left unclaimed, and so refused, until
            *but* says who enforces them.
        but: the differences.

    Raises:
        ValueError: core has no table for *model*.
    """
    if model not in _HERE:
        raise ValueError(f"core has a table for {' and '.join(_HERE)}, not for {model!r}")
    differences = tuple(but)
    replaced = [claim.path for claim in differences]
    return (
        *(
            evolve(claim, substrates=(substrate,))
            for claim in core_claims()
            if model in claim.substrates
            and (gate or claim.by != _GATE)
            and not any(claim.path == path or claim.path.startswith(f"{path}.") for path in replaced)
        ),
        *differences,
    )


def _cloud_claims() -> list[Claim]:
    """Say which distribution would provide what where nothing is installed yet."""
    control = ("spec.lifecycle", "spec.artifacts", "spec.otp", "spec.observability")
    kernel = ("spec.observability.tlsCapture", "spec.observability.learnMode")
    claims = []
    for substrate in ("ec2", "ecs"):
        own = f"km-substrate-{substrate}"
        providers = {
            **dict.fromkeys(("spec.runtime", "spec.execution", "spec.identity", "spec.sidecars"), own),
            **dict.fromkeys(("spec.network", "spec.sourceAccess", "spec.budget", "spec.cli"), own),
            **dict.fromkeys(control, "km-aws"),
            **dict.fromkeys(kernel, "km-net-ebpf" if substrate == "ec2" else own),
            "spec.agent": "",
            "spec.email": "km-mail",
        }
        claims += [Claim(path, (substrate,), Answer.MISSING, by) for path, by in sorted(providers.items())]
    return claims


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
            "spec.identity.sessionPolicy",
        ),
        *_inert(
            f"{cloud}; it bounds requests to AWS hosts that network.egress names",
            "spec.identity.allowedRegions",
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
    github = "spec.sourceAccess.github"
    gate_sidecars = ("spec.sidecars.dnsProxy.enabled", "spec.sidecars.httpProxy.enabled")
    return [
        *_enforced(
            _GATE,
            "spec.network.egress.allowedDNSSuffixes",
            "spec.network.egress.allowedHosts",
            "spec.network.httpsOnly",
        ),
        *_enforced(_GATE, "spec.network.enforcement", values=("proxy",)),
        *_missing("km-net-ebpf", "spec.network.enforcement"),
        *_enforced(
            _GATE,
            "spec.sourceAccess.mode",
            note="no repository; a GitHub host that is allowed by name is a host",
        ),
        *_enforced(_GATE, f"{github}.allowedRepos", f"{github}.allowedRefs"),
        *_enforced(_GATE, "spec.budget.ai.maxSpendUSD", "spec.budget.warningThreshold"),
        # The rate here is 0, so any ceiling holds; saying "enforced" would promise a stop that never comes.
        *_inert("local compute costs nothing", "spec.budget.compute.maxSpendUSD"),
        *_inert("it limits nothing", "spec.budget", values=_EMPTY),
        *_enforced(_GATE, *gate_sidecars, "spec.sidecars.auditLog.enabled", values=(True,)),
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
        *_enforced("km-core", f"{base}.networkLog.destination", values=("stdout",)),
        *_missing("km-aws", f"{base}.networkLog.destination"),
        *_missing(
            "",
            f"{base}.commandLog.destination",
            note="what runs inside is not recorded, only what it reaches",
        ),
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
        *_missing("", "spec.agent", note="`km agent run` does not act on it"),
        *_missing("", "spec.artifacts", note="nothing keeps files when a sandbox ends"),
        *_missing("km-mail", "spec.email"),
        *_missing("", "spec.otp", note="there is no parameter store"),
        *_inert("it asks for nothing", "spec.otp.secrets", values=_EMPTY),
    ]


def _cli_claims() -> list[Claim]:
    base = "spec.cli"
    return [
        *_inert("the direct model API is what is used anyway", f"{base}.noBedrock"),
        *_missing(
            "",
            f"{base}.claudeArgs",
            f"{base}.codexArgs",
            off=_EMPTY,
            note="`km agent run` does not act on it",
        ),
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
