"""Rules on lifetimes, machines and what a substrate can do (X1 to X5, X10 to X13 and section 4.16)."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from km_core.compile.check import DEFAULT_DOMAIN, Rules
from km_core.profile.duration import parse_duration
from km_core.profile.grammar import AMI_PATTERN, INSTANCE_TYPE_PATTERN
from km_core.profile.kinds import join, shown

if TYPE_CHECKING:
    from km_core.compile.check import Facts
    from km_core.compile.convert import Report

RUNTIME_RULES = Rules()
_CLAUDE_SETTINGS = "/home/sandbox/.claude/settings.json"

# GiB per vCPU of the common families and vCPUs per size (EC2 instance type tables, 2026-05); burstable
# and odd sizes by name.  A type that is not here is not judged.
_GIB_PER_VCPU = {"c": 2, "m": 4, "r": 8}
_VCPUS = {"medium": 1, "large": 2, "xlarge": 4}
_BURSTABLE_GIB = {"nano": 0.5, "micro": 1, "small": 2, "medium": 4, "large": 8, "xlarge": 16, "2xlarge": 32}


@RUNTIME_RULES.reads("apiVersion")
def _group(facts: Facts, report: Report) -> None:
    value = facts.get("apiVersion")
    if isinstance(value, str):
        group = value.rpartition("/")[0]
        allowed = dict.fromkeys((DEFAULT_DOMAIN, facts.domain))
        if group not in allowed:
            words = " or ".join(f"{name}/v1alpha1" for name in allowed)
            report.add("apiVersion", f"{shown(value)} has an unknown group", f"write {words}")


@RUNTIME_RULES.reads("spec.lifecycle.ttl", "spec.lifecycle.idleTimeout")
def _x1_ttl_covers_idle(facts: Facts, report: Report) -> None:
    ttl, idle = facts.get("spec.lifecycle.ttl"), facts.get("spec.lifecycle.idleTimeout")
    if ttl and idle and ttl != "0" and parse_duration(ttl) < parse_duration(idle):
        report.add("spec.lifecycle.ttl", f"{ttl} is shorter than idleTimeout {idle}")


@RUNTIME_RULES.reads("spec.lifecycle.ttl", "spec.lifecycle.maxLifetime")
def _x2_max_lifetime_covers_ttl(facts: Facts, report: Report) -> None:
    ttl, longest = facts.get("spec.lifecycle.ttl"), facts.get("spec.lifecycle.maxLifetime")
    if ttl and longest and ttl != "0" and parse_duration(longest) < parse_duration(ttl):
        report.add("spec.lifecycle.maxLifetime", f"{longest} is shorter than ttl {ttl}")


@RUNTIME_RULES.reads("spec.network.enforcement", "spec.runtime.substrate")
def _x3_enforcement_needs_a_kernel(facts: Facts, report: Report) -> None:
    mode = facts.get("spec.network.enforcement")
    if facts.substrate == "ecs" and mode in {"ebpf", "both"}:
        message = f"{mode} is not possible on ecs, whose tasks cannot load kernel programs"
        report.add("spec.network.enforcement", message, "use proxy")


@RUNTIME_RULES.reads("spec.runtime.hibernation", "spec.runtime.spot")
def _x4_hibernation_is_on_demand(facts: Facts, report: Report) -> None:
    if facts.get("spec.runtime.hibernation") is True and facts.get("spec.runtime.spot") is True:
        report.add(
            "spec.runtime.hibernation",
            "is not possible together with spot: true",
            "set spot: false, or create with --on-demand",
        )


@RUNTIME_RULES.reads("spec.runtime.hibernation", "spec.runtime.substrate")
def _x5_hibernation(facts: Facts, report: Report) -> None:
    if facts.substrate not in {"", "ec2"} and facts.get("spec.runtime.hibernation") is True:
        report.add("spec.runtime.hibernation", f"is not possible on {facts.substrate}, only on ec2")


@RUNTIME_RULES.reads("spec.runtime.additionalVolume", "spec.runtime.substrate")
def _x5_additional_volume(facts: Facts, report: Report) -> None:
    if facts.substrate not in {"", "ec2"} and facts.get("spec.runtime.additionalVolume") is not None:
        report.add("spec.runtime.additionalVolume", f"is not possible on {facts.substrate}, only on ec2")


@RUNTIME_RULES.reads("spec.runtime.mountEFS", "spec.runtime.substrate")
def _x5_mount_efs(facts: Facts, report: Report) -> None:
    if facts.substrate == "ecs" and facts.get("spec.runtime.mountEFS") is True:
        report.add("spec.runtime.mountEFS", "is not possible on ecs")


@RUNTIME_RULES.reads("spec.runtime", "spec.cli.vscodeEnabled")
def _x5_harmless(facts: Facts, report: Report) -> None:
    if facts.substrate in {"", "ec2"}:
        return
    for path in ("spec.runtime.ami", "spec.runtime.rootVolumeSize", "spec.cli.vscodeEnabled"):
        if facts.readable(path) and facts.get(path):
            report.warn(path, f"has no effect on {facts.substrate}")


@RUNTIME_RULES.reads("spec.observability", "spec.network.enforcement", "spec.runtime.substrate")
def _x5_kernel_observation(facts: Facts, report: Report) -> None:
    mode = facts.get("spec.network.enforcement")
    for path, on in (
        ("spec.observability.tlsCapture", facts.get("spec.observability.tlsCapture.enabled")),
        ("spec.observability.learnMode", facts.get("spec.observability.learnMode")),
    ):
        if on is not True or not facts.readable(path) or not facts.substrate:
            continue
        if facts.substrate != "ec2":
            report.warn(path, f"has no effect on {facts.substrate}")
        elif mode == "proxy":
            report.warn(path, "has no effect with enforcement proxy", "use enforcement both or ebpf")


@RUNTIME_RULES.reads("spec.runtime.instanceType", "spec.runtime.substrate")
def _instance_type(facts: Facts, report: Report) -> None:
    value = facts.get("spec.runtime.instanceType")
    if facts.substrate == "ec2" and isinstance(value, str) and not re.fullmatch(INSTANCE_TYPE_PATTERN, value):
        report.add(
            "spec.runtime.instanceType", f"{shown(value)} is no instance type", "for example t3.medium"
        )


@RUNTIME_RULES.reads(
    "spec.runtime.rootVolumeSize",
    "spec.runtime.hibernation",
    "spec.runtime.instanceType",
    "spec.runtime.substrate",
)
def _x10_memory_fits_the_root_volume(facts: Facts, report: Report) -> None:
    size, kind = facts.get("spec.runtime.rootVolumeSize"), facts.get("spec.runtime.instanceType")
    if facts.substrate not in {"", "ec2"} or facts.get("spec.runtime.hibernation") is not True or not size:
        return
    memory = _memory_gib(kind) if isinstance(kind, str) else None
    if memory is not None and size <= memory:
        report.add(
            "spec.runtime.rootVolumeSize",
            f"{size} GiB cannot hold the {memory:g} GiB of memory that {kind} hibernates",
            f"write {int(memory) + 8} or more, or 0",
        )


def _memory_gib(instance_type: str) -> float | None:
    family, _, size = instance_type.partition(".")
    if re.fullmatch(r"t(?:2|3|3a|4g)", family):
        return _BURSTABLE_GIB.get(size)
    match = re.fullmatch(r"([cmr])[4-8][a-z]*", family)
    count = re.fullmatch(r"([1-9][0-9]?)xlarge", size)
    vcpus = int(count[1]) * 4 if count is not None else _VCPUS.get(size)
    return None if match is None or vcpus is None else float(_GIB_PER_VCPU[match[1]] * vcpus)


@RUNTIME_RULES.reads(
    "spec.runtime.efsMountPoint", "spec.runtime.mountEFS", "spec.runtime.additionalVolume.mountPoint"
)
def _x11_mount_points_are_apart(facts: Facts, report: Report) -> None:
    shared = facts.get("spec.runtime.efsMountPoint")
    volume = facts.get("spec.runtime.additionalVolume.mountPoint")
    used = facts.get("spec.runtime.mountEFS") is True or "spec.runtime.efsMountPoint" in facts.written
    if not used or not isinstance(shared, str) or not isinstance(volume, str):
        return
    if shared == volume or shared.startswith(f"{volume}/") or volume.startswith(f"{shared}/"):
        report.add("spec.runtime.efsMountPoint", f"{shared} and additionalVolume.mountPoint {volume} overlap")


@RUNTIME_RULES.reads("spec.runtime.hibernation", "spec.runtime.ami")
def _x12_raw_image(facts: Facts, report: Report) -> None:
    image = facts.get("spec.runtime.ami")
    raw = isinstance(image, str) and re.fullmatch(AMI_PATTERN, image) is not None
    if raw and facts.get("spec.runtime.hibernation") is True:
        report.warn("spec.runtime.hibernation", f"needs the root volume of {image} to be encrypted")


@RUNTIME_RULES.reads("spec.identity.allowedRegions", "spec.runtime.region")
def _x13_own_region(facts: Facts, report: Report) -> None:
    regions, region = facts.get("spec.identity.allowedRegions"), facts.get("spec.runtime.region")
    if isinstance(regions, list) and isinstance(region, str) and region not in regions:
        report.warn("spec.identity.allowedRegions", f"lacks runtime.region {region}")


@RUNTIME_RULES.reads("spec.execution.configFiles")
def _claude_settings(facts: Facts, report: Report) -> None:
    files = facts.get("spec.execution.configFiles")
    path = join("spec.execution.configFiles", _CLAUDE_SETTINGS)
    text = files.get(_CLAUDE_SETTINGS) if isinstance(files, dict) else None
    if not isinstance(text, str) or not facts.readable(path):
        return
    try:
        valid = isinstance(json.loads(text), dict)
        why = "" if valid else "it is not an object"
    except ValueError as error:
        valid, why = False, str(error)
    except RecursionError:
        valid, why = False, "it is nested too deeply"
    if not valid:
        report.add(path, f"must be a JSON object: {why}")
