"""
``km explain egress`` and ``km explain git``: what a profile says to one question, from the wire's functions.

The network's verdict is `km_core.policy`'s.  On a host that a meter owns the gate also looks into requests;
what it would say to the path is added here from the meter itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import evolve, field, frozen

from km_core.policy import explain_egress
from km_core.policy.ai_paths import store_denied, stored_at
from km_core.policy.aws import explain_aws
from km_core.policy.explain import parse_target
from km_core.policy.github import GIT_HOSTS, classify
from km_core.policy.refs import ref_allowed
from km_core.policy.repos import canonical_repo, repo_allowed
from km_core.types import EndpointKind, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from km_core.policy import NetworkPolicy
    from km_core.policy.aws import AwsGuard
    from km_core.policy.explain import Target
    from km_core.policy.repos import GitPolicy
    from km_core.types import GroupResolution, Meter

_METHODS = ("GET", "POST")
_INSECURE = frozenset({"http", "ws"})
_UPGRADES = frozenset({"ws", "wss"})


@frozen
class EgressRules:
    """
    What decides about egress in a sandbox of one profile.

    Attributes:
        policy: the policy that the gate compiles from the plan.
        groups: what the profile's groups resolved to.
        meters: the installed meters.
        ai_limit_nusd: the ceiling on model spend in nano-dollars; None when there is none.
        aws: judges requests to AWS by their signature.
        credentials: secrets that the operator's rules put on requests, by host.
    """

    policy: NetworkPolicy
    groups: Sequence[GroupResolution] = ()
    meters: Sequence[Meter] = ()
    ai_limit_nusd: int | None = None
    aws: AwsGuard | None = None
    credentials: Mapping[str, str] = field(factory=dict)


def explain_target(rules: EgressRules, text: str, *, method: str = "") -> Verdict:
    """
    Say what the gate would answer to a client that wants *text*.

    Args:
        rules: those of the profile.
        text: a URL, or ``HOST[:PORT]``.
        method: HTTP method for a URL with a path; empty judges the usual ones and allows when one passes.

    Raises:
        ValueError: *method* is no HTTP method.
    """
    if method and not (method.isascii() and method.isalpha()):
        raise ValueError(f"{method!r} is no HTTP method")
    verdict = explain_egress(rules.policy, text)
    if not verdict.allow:
        return verdict
    if verdict.rule.startswith("@"):
        verdict = _with_group(verdict, rules.groups)
    target = parse_target(text)
    meter = next((meter for meter in rules.meters if target.authority.host in meter.hosts), None)
    if meter is None and rules.policy.git is not None and target.authority.host in GIT_HOSTS:
        return _git_host(verdict, rules.policy.git, target, method.upper())
    if meter is None and rules.aws is not None and rules.aws.covers(target.authority.host):
        return _aws_host(verdict, rules.aws, target, method.upper())
    if meter is None and (secret := rules.credentials.get(target.authority.host)) is not None:
        return _with_credential(verdict, target, secret)
    if meter is None:
        return verdict
    return _metered(verdict, rules, target, meter, method.upper())


def _with_group(verdict: Verdict, groups: Sequence[GroupResolution]) -> Verdict:
    name = verdict.rule.partition(" ")[0]
    group = next((group for group in groups if group.name == name), None)
    if group is None:
        return verdict
    source = f" from {group.source}" if group.source else ""
    return evolve(
        verdict, reason=f"allowed by the profile: {name} resolved to {', '.join(group.hosts)}{source}"
    )


def _upgrade() -> Verdict:
    reason = "what a WebSocket carries is neither metered nor judged by repository"
    return Verdict(False, "builtin:upgrade", "http", reason)


def _metered(verdict: Verdict, rules: EgressRules, target: Target, meter: Meter, method: str) -> Verdict:
    """Judge a request to a host whose TLS the gate opens."""
    if target.scheme in _UPGRADES:
        return _upgrade()
    if target.scheme in _INSECURE:
        return Verdict(False, "builtin:intercepted-host", "http", "this host is reached over https only")
    ceiling = rules.ai_limit_nusd
    counted = "its model calls are counted" if ceiling is None else "its model calls count against budget.ai"
    verdict = evolve(verdict, reason=f"{verdict.reason}; {counted}")
    if not target.path.lstrip("/"):
        return verdict
    answers = [_request(verdict, meter, each, target.path, ceiling) for each in _methods(method)]
    return next((answer for answer in answers if answer.allow), answers[-1])


def _git_host(verdict: Verdict, git: GitPolicy, target: Target, method: str) -> Verdict:
    """Judge a request to a GitHub host by its repository, as far as that stands in the URL."""
    if target.scheme in _UPGRADES:
        return _upgrade()
    if target.scheme in _INSECURE:
        return Verdict(False, "builtin:intercepted-host", "http", "this host is reached over https only")
    if not target.path.lstrip("/"):
        return evolve(verdict, reason=f"{verdict.reason}; each request there is judged by its repository")
    answers = []
    for each in _methods(method):
        route = classify(target.authority.host, each, target.path)
        answers.append(route if isinstance(route, Verdict) else git.route(route))
    return next((answer for answer in answers if answer.allow), answers[0])


def _aws_host(verdict: Verdict, guard: AwsGuard, target: Target, method: str) -> Verdict:
    """Judge what a well signed request to an AWS host would be answered."""
    if target.scheme in _INSECURE:
        return Verdict(False, "builtin:intercepted-host", "http", "this host is reached over https only")
    found = explain_aws(guard, target.authority.host, method or "GET", target.path)
    if not found.allow:
        return found
    return evolve(verdict, reason=f"{verdict.reason}; each request there is judged by its signature")


def _with_credential(verdict: Verdict, target: Target, secret: str) -> Verdict:
    if target.scheme in _INSECURE:
        return Verdict(False, "builtin:intercepted-host", "http", "this host is reached over https only")
    return evolve(verdict, reason=f"{verdict.reason}; the gate puts the secret {secret} on requests there")


def _methods(method: str) -> tuple[str, ...]:
    return (method,) if method else _METHODS


def _request(verdict: Verdict, meter: Meter, method: str, path: str, ceiling: int | None) -> Verdict:
    endpoint = meter.endpoint(method, path, {})
    if (kept := stored_at(path, method)) is not None:
        return Verdict(False, "builtin:ai_path_stores_data", "budget", store_denied(kept))
    if ceiling is None:
        return verdict
    if endpoint.kind is EndpointKind.REFUSED:
        reason = endpoint.reason or "this endpoint bills without saying how much, and a ceiling is set"
        return Verdict(False, "builtin:ai_endpoint_not_metered", "budget", reason)
    if endpoint.kind is EndpointKind.METERED and ceiling == 0:
        reason = "the ceiling on model spend is $0, so no call can be paid for"
        return Verdict(False, "builtin:ai_budget_exhausted", "budget", reason)
    return verdict


def explain_git(access: Mapping[str, Any], operation: str, repo: str, ref: str | None = None) -> Verdict:
    """
    Say whether a repository may be fetched from, or a ref pushed.

    Args:
        access: `spec.sourceAccess` of the profile.
        operation: ``fetch`` or ``push``.
        repo: ``owner/name``, or its URL.
        ref: what would be pushed, short (a branch) or from ``refs/`` on; without it *push* is allowed when
            some ref may be pushed.

    Raises:
        ValueError: *repo* names no repository, or *ref* cannot be a ref.
    """
    name = canonical_repo(repo)
    if ref is not None and (not ref or any(char.isspace() or not char.isprintable() for char in ref)):
        raise ValueError(f"{ref!r} is no ref")
    github = access.get("github") or {}
    if access.get("mode") == "none":
        return Verdict(False, "sourceAccess.mode none", "git", "the profile allows no repository")
    verdict = repo_allowed(github.get("allowedRepos") or (), name)
    if not verdict.allow or operation == "fetch":
        return verdict
    refs = github.get("allowedRefs")
    if ref is not None:
        return ref_allowed(refs, ref)
    if refs is None:
        return evolve(verdict, reason=f"{verdict.reason}, and every ref may be pushed")
    if not refs:
        return Verdict(False, "default-deny", "git", "allowedRefs is empty, so no ref may be pushed")
    return evolve(verdict, reason=f"{verdict.reason}; refs that may be pushed: {', '.join(refs)}")


def filters_git(access: Mapping[str, Any]) -> bool:
    """Say whether `spec.sourceAccess` names repositories, so that GitHub is judged by them."""
    return access.get("mode") != "none" and bool((access.get("github") or {}).get("allowedRepos"))


def as_plain_host(verdict: Verdict, policy: NetworkPolicy) -> Verdict:
    """
    Correct the verdict on a repository of a profile that names none: what the network lets through is reached.

    Without repositories nothing looks into what goes to GitHub (spec/network.md section 5); a profile that
    lists it among its hosts opens it as a whole.
    """
    reached = policy.connect("github.com", 443, "tls")
    if verdict.allow or not reached.allow:
        return verdict
    reason = "github.com is allowed as a plain host, and no repository rule applies there"
    return evolve(reached, reason=reason)
