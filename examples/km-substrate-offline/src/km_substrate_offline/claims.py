"""What becomes of each profile field on this substrate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from km_core.types import Answer, Claim

if TYPE_CHECKING:
    from collections.abc import Iterator

SUBSTRATE = "offline"
DISTRIBUTION = "km-substrate-offline"

_EMPTY = ((),)
_NO_NETWORK = "there is no network"
_SIDECARS = ("dnsProxy", "httpProxy", "auditLog", "tracing")


def claims() -> Iterator[Claim]:
    """Yield the claims; a field that is not named here is refused, since nobody claims it."""
    yield from _enforced("km-core", *(f"spec.lifecycle.{name}" for name in _LIFECYCLE))
    yield from _enforced("km-core", *(f"spec.execution.{name}" for name in _EXECUTION))
    yield from _enforced(DISTRIBUTION, "spec.execution.privileged", values=(False,))
    yield from _refused("the sandbox's user gets no further rights", "spec.execution.privileged")
    yield from _network()
    yield from _refused("no model can be reached, so nothing would be spent", "spec.budget.ai")
    yield from _refused("nothing here meters compute", "spec.budget.compute")
    yield from _inert("it limits nothing", "spec.budget", values=_EMPTY)
    yield from _inert("there is no ceiling to warn of", "spec.budget.warningThreshold")
    yield from _inert("there is no machine to choose", *(f"spec.runtime.{name}" for name in _MACHINE))
    yield from _inert("no cloud identity is handed out", *(f"spec.identity.{name}" for name in _IDENTITY))
    yield from _refused("there is no parameter store", "spec.identity.allowedSecretPaths")
    yield from _inert("it asks for nothing", "spec.identity.allowedSecretPaths", values=_EMPTY)
    yield from _observability()


_LIFECYCLE = ("ttl", "idleTimeout", "teardownPolicy", "maxLifetime")
_EXECUTION = ("shell", "workingDir", "env", "initCommands", "configFiles")
_MACHINE = ("instanceType", "region", "spot", "ami", "rootVolumeSize")
_IDENTITY = ("roleSessionDuration", "allowedRegions", "sessionPolicy")


def _network() -> Iterator[Claim]:
    """Without a network every mode's promise is kept, and only empty lists can be."""
    yield from _enforced(DISTRIBUTION, "spec.network.enforcement", "spec.network.httpsOnly")
    github = "spec.sourceAccess.github"
    lists = ("spec.network.egress.allowedDNSSuffixes", "spec.network.egress.allowedHosts")
    yield from _enforced(DISTRIBUTION, *lists, values=_EMPTY)
    yield from _refused(_NO_NETWORK, *lists)
    yield from _enforced(DISTRIBUTION, "spec.sourceAccess.mode")
    yield from _enforced(DISTRIBUTION, f"{github}.allowedRepos", f"{github}.allowedRefs", values=_EMPTY)
    yield from _refused(_NO_NETWORK, f"{github}.allowedRepos", f"{github}.allowedRefs")


def _observability() -> Iterator[Claim]:
    enabled = [f"spec.sidecars.{name}.enabled" for name in _SIDECARS]
    yield from _inert("there is no traffic to filter, to log or to trace", *enabled)
    yield from _inert(
        "sidecars are not containers of their own", *(f"spec.sidecars.{name}.image" for name in _SIDECARS)
    )
    yield from _inert("it names no sidecar", "spec.sidecars", values=_EMPTY)
    logs = ("spec.observability.commandLog", "spec.observability.networkLog")
    yield from _inert("there is no log to send", *(f"{log}.destination" for log in logs), values=("stdout",))
    yield from _refused("there is no log to send", *(f"{log}.destination" for log in logs))
    yield from _inert("it names a place in the cloud's log store", *(f"{log}.logGroup" for log in logs))
    yield from _inert("it asks for nothing", "spec.observability", values=_EMPTY)


def _enforced(by: str, *paths: str, values: tuple[Any, ...] = ()) -> Iterator[Claim]:
    return (Claim(path, (SUBSTRATE,), Answer.ENFORCED, by, values=values) for path in paths)


def _inert(note: str, *paths: str, values: tuple[Any, ...] = ()) -> Iterator[Claim]:
    return (Claim(path, (SUBSTRATE,), Answer.INERT, DISTRIBUTION, note, values) for path in paths)


def _refused(note: str, *paths: str) -> Iterator[Claim]:
    return (Claim(path, (SUBSTRATE,), Answer.REFUSED, DISTRIBUTION, note) for path in paths)
