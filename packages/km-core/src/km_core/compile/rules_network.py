"""Rules on egress, enforcement and source access (X8, X9, X14 and the warnings of section 4.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from km_core.compile.check import Rules
from km_core.compile.hosting import consequence
from km_core.policy.patterns import compile_pattern
from km_core.profile.kinds import shown

if TYPE_CHECKING:
    from km_core.compile.check import Facts
    from km_core.compile.convert import Report

NETWORK_RULES = Rules()
_HOSTS = "spec.network.egress.allowedHosts"
_SUFFIXES = "spec.network.egress.allowedDNSSuffixes"
_REPOS = "spec.sourceAccess.github.allowedRepos"
_MODE = "spec.network.enforcement"


@NETWORK_RULES.reads(_MODE, "spec.budget", _REPOS, "spec.network.httpsOnly")
def _x14_ebpf_sees_no_content(facts: Facts, report: Report) -> None:
    if facts.get(_MODE) != "ebpf":
        return
    reasons = [
        name
        for name, wanted in (
            ("budget.ai", facts.get("spec.budget.ai") is not None),
            ("allowedRepos", any(entry != "*" for _, entry in facts.items(_REPOS))),
            ("httpsOnly", facts.get("spec.network.httpsOnly") is True),
        )
        if wanted
    ]
    if reasons:
        report.add(_MODE, f"ebpf cannot enforce {' and '.join(reasons)}", "use both")


@NETWORK_RULES.reads("spec.sidecars.httpProxy", _MODE, "spec.budget", _REPOS)
def _x8_http_proxy(facts: Facts, report: Report) -> None:
    if facts.get("spec.sidecars.httpProxy.enabled") is not False:
        return
    mode = facts.get(_MODE)
    needs = [
        name
        for name, wanted in (
            (f"enforcement {mode}", mode in {"proxy", "both"}),
            ("budget.ai", facts.get("spec.budget.ai") is not None),
            ("allowedRepos", bool(facts.get(_REPOS))),
        )
        if wanted
    ]
    if needs:
        report.add("spec.sidecars.httpProxy.enabled", f"must be true: {' and '.join(needs)} needs it")


@NETWORK_RULES.reads("spec.sidecars.dnsProxy", _MODE)
def _x8_dns_proxy(facts: Facts, report: Report) -> None:
    if facts.get("spec.sidecars.dnsProxy.enabled") is False and facts.get(_MODE) == "proxy":
        report.add("spec.sidecars.dnsProxy.enabled", "must be true: enforcement proxy needs it")


@NETWORK_RULES.reads("spec.sourceAccess.mode", _REPOS)
def _x9_none_means_none(facts: Facts, report: Report) -> None:
    if facts.get("spec.sourceAccess.mode") == "none" and facts.get(_REPOS):
        report.add(
            "spec.sourceAccess.github",
            "lists repositories, but mode none allows none",
            "set mode: allowlist, or empty allowedRepos",
        )


@NETWORK_RULES.reads("spec.sourceAccess", _HOSTS, _SUFFIXES)
def _repositories_as_plain_hosts(facts: Facts, report: Report) -> None:
    mode = facts.get("spec.sourceAccess.mode")
    if facts.get(_REPOS) or mode is None:
        return
    for path, dns_list in ((_SUFFIXES, True), (_HOSTS, False)):
        for place, entry in facts.items(path):
            if entry == "*" or _covers_github(entry, dns_list=dns_list):
                report.warn(
                    place,
                    "reaches github.com as a plain host: no repository rule applies there",
                    "list repositories in sourceAccess.github.allowedRepos, or leave the host out",
                )


def _covers_github(entry: str, *, dns_list: bool) -> bool:
    if entry.startswith("@"):
        return False
    try:
        rule = compile_pattern(entry, dns_list=dns_list)
    except ValueError:
        return False
    return rule.pattern == "github.com" and rule.kind in {"exact", "suffix"}


@NETWORK_RULES.reads(_HOSTS, _SUFFIXES, "spec.observability.learnMode")
def _wide_entries(facts: Facts, report: Report) -> None:
    learning = facts.get("spec.observability.learnMode") is True
    for path, dns_list in ((_SUFFIXES, True), (_HOSTS, False)):
        entries = list(facts.items(path))
        for place, entry in entries:
            if entry == "*" and len(entries) > 1:
                report.warn(place, "makes the other entries of this list superfluous")
            if entry.startswith("@") or "/" in entry or learning:
                continue
            meaning = consequence(entry, dns_list=dns_list)
            if meaning:
                report.warn(place, f"{shown(entry)} {meaning}", "name the hosts that are needed")


@NETWORK_RULES.reads(_SUFFIXES)
def _bare_suffixes(facts: Facts, report: Report) -> None:
    for place, entry in facts.items(_SUFFIXES):
        if entry != "*" and not entry.startswith((".", "*.", "@")):
            message = f"{shown(entry)} also covers every name below it, unlike in allowedHosts"
            report.warn(place, message, f"write .{entry} to say so, or move it to allowedHosts")
