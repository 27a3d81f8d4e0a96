"""
Hypothesis strategies for profiles.

They walk the declarations of `km_core.profile.model`, so that a new field is drawn, and broken, from the
day it is declared.  What the rules between fields forbid is set right after drawing, never filtered out.
"""

from __future__ import annotations

import copy
import string
from typing import TYPE_CHECKING, Any

from attrs import frozen
from hypothesis import strategies as st

from km_core.profile import SandboxProfile, fields_of, parse_duration
from km_core.profile.kinds import Choice, Flag, Listing, Number, Section, Table, Text, join

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hypothesis.strategies import SearchStrategy

    from km_core.profile.kinds import Kind

_NOT_DRAWN = {"extends"}
"""Parents are files of their own."""

_LABEL = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=8)
# The last label is of letters: 0.0 and 1.0x7f would be addresses in disguise.
_NAME = st.tuples(st.lists(_LABEL, min_size=1, max_size=3), st.sampled_from(["org", "example", "test"])).map(
    lambda parts: ".".join([*parts[0], parts[1]])
)
_PREFIXED = st.tuples(st.sampled_from(["", ".", "*."]), _NAME).map("".join)
_ADDRESS = st.sampled_from(["203.0.113.7", "203.0.113.0/24", "198.51.100.9/32", "2001:db8::/32"])
_DURATIONS = ["1m", "900s", "30m", "1h", "4h", "12h", "1d", "30d"]
_VARIABLE = st.text(string.ascii_uppercase + "_", min_size=1, max_size=8)
_PATHS = ["src", "a/b", "*.log", ".config/tool", "Dokumente/Brief"]
_SENTENCE = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=20)

_TEXTS: dict[str, SearchStrategy[str]] = {
    "apiVersion": st.just("klankermaker.ai/v1alpha1"),
    "metadata.name": st.tuples(_LABEL, st.sampled_from(["", "-x", ".v1", "_2"])).map("".join),
    "metadata.prefix": st.sampled_from(["sb", "a", "goose", "z9"]),
    "spec.lifecycle.ttl": st.sampled_from([*_DURATIONS, "0"]),
    "spec.lifecycle.idleTimeout": st.sampled_from(_DURATIONS),
    "spec.lifecycle.maxLifetime": st.sampled_from(_DURATIONS),
    "spec.runtime.instanceType": st.sampled_from(["t3.medium", "m6i.xlarge", "c7g-flex.large"]),
    "spec.runtime.region": st.sampled_from(["us-east-1", "eu-central-1", "us-gov-west-1"]),
    "spec.runtime.additionalVolume.mountPoint": st.sampled_from(["/data", "/workspace", "/mnt/disk"]),
    "spec.runtime.efsMountPoint": st.sampled_from(["/shared", "/mnt/efs"]),
    "spec.execution.shell": st.sampled_from(["/bin/bash", "/bin/sh"]),
    "spec.execution.workingDir": st.sampled_from(["/workspace", "/home/sandbox/a b", "/"]),
    "spec.execution.initScripts": st.sampled_from(_PATHS),
    "spec.execution.rsync": _LABEL,
    "spec.execution.rsyncPaths": st.sampled_from(_PATHS),
    "spec.sourceAccess.github.allowedRepos": st.sampled_from(["*", "o/*", "my-org/api", "github.com/o/n-*"]),
    "spec.sourceAccess.github.allowedRefs": st.sampled_from(["*", "main", "feature/*", "refs/tags/v1.0"]),
    "spec.network.egress.allowedDNSSuffixes": st.one_of(_PREFIXED, st.sampled_from(["*", "@npm-packages"])),
    "spec.network.egress.allowedHosts": st.one_of(_PREFIXED, _ADDRESS, st.sampled_from(["*", "@a-group"])),
    "spec.identity.roleSessionDuration": st.sampled_from(["15m", "900s", "1h", "12h"]),
    "spec.identity.allowedRegions": st.sampled_from(["us-east-1", "eu-west-1", "ap-southeast-2"]),
    "spec.identity.allowedSecretPaths": st.sampled_from(["/team/api-key", "/a", "/x/y/z_1"]),
    "spec.otp.secrets": st.sampled_from(["/once/seed", "/b", "/x/token_2"]),
    "spec.agent.taskTimeout": st.sampled_from(["30m", "1h", "90s"]),
    "spec.artifacts.paths": st.sampled_from(["/workspace", "/var/log/*.log"]),
    "spec.artifacts.replicationRegion": st.just("eu-west-1"),
    "spec.email.alias": st.sampled_from(["build.frontend", "a.b-c"]),
    "spec.email.allowedSenders": st.sampled_from(
        ["self", "*", "build.*", "ops@example.com", "*@example.org"]
    ),
    "spec.cli.notificationEmailAddress": st.just("ops@example.com"),
    "spec.cli.notifySlackChannelOverride": st.just("C0123456789"),
}
_KEYS: dict[str, SearchStrategy[str]] = {
    "metadata.labels": st.sampled_from(["tier", "team/x", "a.b_c-d", "9"]),
    "spec.execution.env": _VARIABLE.filter(lambda name: name != "SANDBOX_ID" and not name.startswith("KM_")),
    "spec.execution.configFiles": st.sampled_from(["/home/sandbox/.x", "/etc/tool.conf", "/srv/ä"]),
}


def profiles() -> SearchStrategy[dict[str, Any]]:
    """Draw valid profiles as plain data: what YAML would hold, with optional fields here and there."""
    return _section(SandboxProfile, "").map(_reconciled)


@frozen
class Broken:
    """
    A profile with one planted defect.

    Attributes:
        data: the profile.
        path: where it is wrong: the one path at which it is to be refused.
        how: ``missing``, ``type``, ``unknown`` or ``range``.
    """

    data: dict[str, Any]
    path: str
    how: str


@st.composite
def broken_profiles(draw: Callable[[SearchStrategy[Any]], Any]) -> Broken:
    """Draw a valid profile and break it in one place."""
    data = draw(profiles())
    how = draw(st.sampled_from(["missing", "type", "unknown", "range"]))
    keys, path, value = draw(
        st.sampled_from([defect for kind, *defect in _defects(SandboxProfile, data, (), "") if kind == how])
    )
    node = data
    for key in keys[:-1]:
        node = node[key]
    if how == "missing":
        del node[keys[-1]]
    else:
        node[keys[-1]] = value
    return Broken(data, path, how)


def _section(model: type, path: str) -> SearchStrategy[dict[str, Any]]:
    needed: dict[str, SearchStrategy[Any]] = {}
    other: dict[str, SearchStrategy[Any]] = {}
    for key, info in fields_of(model).items():
        below = join(path, key)
        if below in _NOT_DRAWN:
            continue
        (needed if info.required else other)[key] = _value(info.kind, below)
    return st.fixed_dictionaries(needed, optional=other)


def _value(kind: Kind, path: str) -> SearchStrategy[Any]:
    if isinstance(kind, Section):
        return _section(kind.model, path)
    if isinstance(kind, Listing):
        # Distinct items: some lists want them, and two secrets must not become one variable.
        return st.lists(_value(kind.item, path), min_size=kind.min_items, max_size=3, unique=True)
    if isinstance(kind, Table):
        keys = _KEYS.get(path, _LABEL)
        return st.dictionaries(keys, _SENTENCE, max_size=3)
    if isinstance(kind, Flag):
        return st.booleans()
    if isinstance(kind, Choice):
        return st.sampled_from(kind.values)
    if isinstance(kind, Number):
        whole = st.integers(kind.minimum, kind.maximum)
        if kind.whole:
            return whole
        return st.one_of(whole, st.floats(kind.minimum, kind.maximum, allow_subnormal=False))
    known = _TEXTS.get(path)
    if known is not None:
        return known
    if kind.pattern or kind.rule is not None:
        # A field that this table does not know yet: its own example is right.
        return st.just(kind.example)
    return _SENTENCE.filter(lambda value: len(value) >= kind.min_length)


def _reconciled(data: dict[str, Any]) -> dict[str, Any]:
    """Set right what the rules between fields forbid (spec/profile.md section 6)."""
    spec = data["spec"]
    _durations(spec["lifecycle"])
    _machine(spec["runtime"])
    _enforcement(spec)
    _channels(spec.get("cli", {}))
    return data


def _durations(lifecycle: dict[str, Any]) -> None:
    given = [key for key in ("idleTimeout", "ttl", "maxLifetime") if lifecycle.get(key, "0") != "0"]
    ordered = sorted((lifecycle[key] for key in given), key=parse_duration)
    lifecycle.update(zip(given, ordered, strict=True))


def _machine(runtime: dict[str, Any]) -> None:
    if runtime["substrate"] != "ec2":
        runtime.pop("hibernation", None)
        runtime.pop("additionalVolume", None)
    if runtime["substrate"] == "ecs":
        runtime.pop("mountEFS", None)
    if runtime.get("hibernation"):
        runtime.pop("spot", None)
        runtime.pop("rootVolumeSize", None)


def _enforcement(spec: dict[str, Any]) -> None:
    network, access = spec["network"], spec["sourceAccess"]
    if access["mode"] == "none":
        access.pop("github", None)
    repos = access.get("github", {}).get("allowedRepos", [])
    metered = "ai" in spec.get("budget", {})
    if network.get("enforcement") == "ebpf" and (
        metered or repos not in ([], ["*"]) or network.get("httpsOnly")
    ):
        network["enforcement"] = "both"
    if spec["runtime"]["substrate"] == "ecs":
        network.pop("enforcement", None)
    mode = network.get("enforcement", "proxy")
    sidecars = spec.get("sidecars", {})
    if "httpProxy" in sidecars and (mode != "ebpf" or metered or repos):
        sidecars["httpProxy"]["enabled"] = True
    if "dnsProxy" in sidecars and mode == "proxy":
        sidecars["dnsProxy"]["enabled"] = True


def _channels(cli: dict[str, Any]) -> None:
    if cli.get("notifySlackInboundEnabled") or cli.get("notifySlackTranscriptEnabled"):
        cli["notifySlackEnabled"] = cli["notifySlackPerSandbox"] = True
    if cli.get("notifySlackPerSandbox"):
        cli.pop("notifySlackChannelOverride", None)


def _defects(
    model: type, data: dict[str, Any], above: tuple[Any, ...], path: str
) -> Iterator[tuple[str, tuple[Any, ...], str, Any]]:
    """Yield every defect that can be planted: how, the keys down to it, its path, the wrong value."""
    known = fields_of(model)
    for key in known:
        if key in data:
            # No field of the model is another one's name and an x.
            yield "unknown", (*above, f"{key}x"), join(path, f"{key}x"), copy.deepcopy(data[key])
    for key, value in data.items():
        info, keys, below = known[key], (*above, key), join(path, key)
        if info.required:
            yield "missing", keys, below, None
        yield "type", keys, below, _wrong_type(info.kind)
        yield from _wrong_values(info.kind, value, keys, below)
        if isinstance(info.kind, Section):
            yield from _defects(info.kind.model, value, keys, below)


def _wrong_type(kind: Kind) -> Any:
    if isinstance(kind, Number):
        return True
    return {Flag: "yes", Listing: "text", Table: [], Section: 7}.get(type(kind), 7)


def _wrong_values(
    kind: Kind, value: Any, keys: tuple[Any, ...], path: str
) -> Iterator[tuple[str, tuple[Any, ...], str, Any]]:
    if isinstance(kind, Number):
        yield "range", keys, path, kind.maximum + 1
        yield "range", keys, path, kind.minimum - 1
    elif isinstance(kind, Choice):
        yield "range", keys, path, "no such choice"
    elif isinstance(kind, Text):
        yield "range", keys, path, "\x00"
        if kind.min_length or kind.rule is not None:
            yield "range", keys, path, ""
        if not kind.multiline:
            yield "range", keys, path, f"{value}\n"
    elif isinstance(kind, Listing):
        if kind.min_items:
            yield "range", keys, path, []
        for index, item in enumerate(value):
            yield "type", (*keys, index), f"{path}[{index}]", None
            yield from _wrong_values(kind.item, item, (*keys, index), f"{path}[{index}]")
    elif isinstance(kind, Table):
        for key, item in value.items():
            yield "type", (*keys, key), join(path, key), 7
            yield from _wrong_values(kind.value, item, (*keys, key), join(path, key))
