"""
AWS hosts, and whether one signed request to them is the operator's.

One suffix such as ``.amazonaws.com`` opens every account's buckets and queues.  What tells them apart is
in the request: the scope of its signature (Signature Version 4: access key, date, region, service) and,
for S3, the bucket.  A host that does not check signatures (one customer's API, function, machine) would
take any claim, so below a suffix only the vendor's own shared hosts pass, each for its own service.
"""

from __future__ import annotations

import base64
import binascii
import functools
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

from attrs import frozen

from km_core.policy.aws_hosts import SUFFIXES, AwsEndpoint, aws_endpoint
from km_core.policy.github import GIT_HOSTS
from km_core.types import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from km_core.plan import HostRule
    from km_core.secrets import AwsAccess

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}\Z")
_KEY = re.compile(r"A[A-Z]{3}[A-Z2-7]{12,124}\Z")
_ACCOUNT_MASK = 0x7FFFFFFFFF80
_ANSWERS_UNSIGNED = frozenset(
    {"cognito-identity", "cognito-idp", "signin", "sso", "awsssoportal", "sso-oauth", "oidc"}
)
"""Services that work for whoever asks, so that a signature need not be true."""
_UNSIGNED_CALL = "assumerolewith"
"""How the calls of the service ``sts`` begin that need no signature."""


@frozen
class CredentialScope:
    """The scope of a signature: ``KEY/DATE/REGION/SERVICE/aws4_request``."""

    access_key_id: str
    date: str
    region: str
    service: str


def account_of(access_key_id: str) -> str:
    """
    Return the 12 digits of the account that an access key id was made in; empty when it does not say.

    Keys made since 2019 carry the account in base32 after their first four letters; older ones (fifth
    letter I or J) do not.
    """
    if not _KEY.match(access_key_id) or access_key_id[4] in "IJ" or len(access_key_id) < 20:
        return ""
    try:
        head = base64.b32decode(access_key_id[4:20])[:6]
    except binascii.Error:
        return ""
    return f"{(int.from_bytes(head, 'big') & _ACCOUNT_MASK) >> 7:012d}"


def judge_aws(
    access: AwsAccess,
    endpoint: AwsEndpoint,
    scope: CredentialScope,
    method: str,
    path: str,
    *,
    copied: Sequence[str] = (),
    named: bool = False,
    regions: Sequence[str] = (),
) -> Verdict:
    """
    Say whether a signed request is the operator's.

    Args:
        access: what is allowed.
        endpoint: what the host's name says.
        scope: of the request's signature.
        method: of the request.
        path: request target in origin form, with its query.
        copied: values of ``x-amz-copy-source``: what S3 is asked to read.
        named: the profile names the host exactly.
        regions: the profile's, which bound the operator's; empty for none of its own.
    """
    key = scope.access_key_id
    if key not in access.access_key_ids and (account_of(key) or "?") not in access.accounts:
        return _denied(
            "builtin:aws-key", "the request is signed with an access key that is not the operator's"
        )
    verdict = _judge_scope(access, endpoint, scope, named=named, regions=regions)
    if not verdict.allow:
        return verdict
    if endpoint.account and endpoint.account not in (*access.accounts, account_of(key)):
        return _denied("builtin:aws-key", "the host belongs to an account that is not the operator's")
    return _judge_bucket(access, endpoint, method, path, copied) if endpoint.s3 else _ALLOWED


def _judge_scope(
    access: AwsAccess,
    endpoint: AwsEndpoint,
    scope: CredentialScope,
    *,
    named: bool,
    regions: Sequence[str],
) -> Verdict:
    """Judge service and region, and that the host is that service's: otherwise nobody may check the signature."""
    if not endpoint.known:
        return _denied("builtin:aws-scope", "requests to an interface endpoint of a VPC cannot be judged")
    if endpoint.tenant and not endpoint.s3:
        return _denied(
            "builtin:aws-tenant",
            "the host is one customer's own, where a signature proves nothing; the profile has to name it exactly",
        )
    if not endpoint.s3 and not endpoint.service and not named:
        return _denied(
            "builtin:aws-scope",
            "the host is no known form of a shared service; the profile has to name it exactly",
        )
    if scope.service not in access.services:
        return _denied(
            "builtin:aws-scope", f"service {scope.service} is not in aws.services of the configuration"
        )
    for region in {scope.region, endpoint.region} - {""}:
        if region not in access.regions:
            return _denied("builtin:aws-scope", f"region {region} is not in aws.regions of the configuration")
        if regions and region not in regions:
            reason = f"region {region} is not in identity.allowedRegions of the profile"
            return _denied("builtin:aws-scope", reason)
    if endpoint.s3 != scope.service.startswith("s3") or endpoint.service not in ("", scope.service):
        return _denied("builtin:aws-scope", f"service {scope.service} does not belong to this host")
    if scope.service in _ANSWERS_UNSIGNED:
        return _denied("builtin:aws-unsigned", f"service {scope.service} answers without checking signatures")
    return _ALLOWED


def reads_body(endpoint: AwsEndpoint, scope: CredentialScope) -> bool:
    """Say whether `judge_call` has to see the request's body."""
    return scope.service == "sts" and not endpoint.s3


def judge_call(path: str, body: bytes) -> Verdict:
    """
    Say whether a request to the service ``sts`` is a call that is checked by its signature.

    Args:
        path: request target in origin form, with its query.
        body: the whole body, without content coding.
    """
    for text in (path, body.decode("latin-1")):
        # Wherever it stands: parameters come in the query, in a form, in parts.
        if _UNSIGNED_CALL in unquote(text).lower():
            return unsigned("a call for a web identity or SAML is answered without a signature")
    return _ALLOWED


def _judge_bucket(
    access: AwsAccess, endpoint: AwsEndpoint, method: str, path: str, copied: Sequence[str]
) -> Verdict:
    if "*" in access.buckets:
        return _ALLOWED
    for source in copied:
        bucket = unquote(source).removeprefix("/").partition("/")[0]
        if bucket not in access.buckets:
            return _not_listed(bucket)
    bucket = endpoint.bucket
    if not bucket:
        bucket = path.partition("?")[0].lstrip("/").partition("/")[0]
        if not bucket and path.partition("?")[0] == "/" and method in ("GET", "HEAD"):
            return _ALLOWED  # the list of the account's own buckets
        if not path.startswith("/") or path.startswith("//") or not _BUCKET.match(bucket) or _climbs(path):
            return _denied("builtin:aws-bucket", "the path does not name one bucket")
    return _ALLOWED if bucket in access.buckets else _not_listed(bucket)


def _climbs(path: str) -> bool:
    """Say whether dot segments lead out of the first segment of a path."""
    depth = 0
    for segment in unquote(path.partition("?")[0]).strip("/").split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(segment, 1)
        if depth < 1:
            return True
    return False


class AwsGuard:
    """
    Which names are judged by signature, and by what.

    Judged is every AWS host that the profile names by suffix, and those named exactly that all customers
    share (``sqs.eu-west-1.amazonaws.com``).  A host named exactly that is one customer's own (a bucket, a
    load balancer) is the profile's choice.  A suffix above AWS (``.com``) counts; a profile that allows
    every name (``*``) is not asked.

    Args:
        hosts: the plan's rules.
        access: what is allowed.
        git: repository rules are in force, which judge GitHub's hosts at AWS.
        regions: the profile's ``identity.allowedRegions``; empty for no bound of its own.
    """

    def __init__(
        self,
        hosts: Iterable[HostRule],
        access: AwsAccess,
        *,
        git: bool = False,
        regions: Sequence[str] = (),
    ) -> None:
        self.access = access
        self.regions = tuple(regions)
        self._git = git
        self._exact: set[str] = set()
        suffixes: set[str] = set()
        for rule in hosts:
            if rule.kind == "exact":
                self._exact.add(rule.pattern)
            elif rule.kind in ("suffix", "subdomains"):
                suffixes |= _aws_part(rule.pattern)
        self._suffixes = tuple(sorted(suffixes))
        self._covered = functools.lru_cache(maxsize=1024)(self._covers)

    @property
    def subtrees(self) -> tuple[str, ...]:
        """Names that certificates are needed for, themselves and what is below them."""
        return (*self._suffixes, *sorted(name for name in self._exact if self.covers(name)))

    def named(self, name: str) -> bool:
        """Say whether the profile names a host exactly."""
        return name in self._exact

    def covers(self, name: str) -> bool:
        """Say whether requests to a canonical name are judged by their signature."""
        return name.endswith(SUFFIXES) and self._covered(name)

    def _covers(self, name: str) -> bool:
        endpoint = aws_endpoint(name)
        if endpoint is None or (self._git and name in GIT_HOSTS):
            return False
        if name in self._exact:
            return not endpoint.tenant
        return any(name == suffix or name.endswith("." + suffix) for suffix in self._suffixes)


def names_aws(hosts: Iterable[HostRule]) -> bool:
    """Say whether rules other than ``*`` open a host of AWS."""
    return any(
        aws_endpoint(rule.pattern) is not None
        if rule.kind == "exact"
        else rule.kind != "any" and bool(_aws_part(rule.pattern))
        for rule in hosts
    )


def explain_aws(guard: AwsGuard, name: str, method: str, path: str) -> Verdict:
    """
    Say what a well signed request to a host that *guard* covers would be answered.

    Args:
        guard: covers the name.
        name: canonical.
        method: of the request.
        path: in origin form; empty when it is not known, and then S3's bucket may be any.
    """
    access, endpoint = guard.access, aws_endpoint(name)
    if endpoint is None or not (access.access_key_ids or access.accounts):
        reason = "the configuration's section aws names no access key, so no request to this host passes"
        return _denied("builtin:aws-key", reason)
    service = "s3" if endpoint.s3 else endpoint.service or next(iter(access.services), "none")
    region = endpoint.region or next((r for r in access.regions if r in (guard.regions or (r,))), "none")
    accounts = {*access.accounts, *(account_of(key) for key in access.access_key_ids)}
    verdict = _judge_scope(
        access,
        endpoint,
        CredentialScope("", "", region, service),
        named=guard.named(name),
        regions=guard.regions,
    )
    if verdict.allow and endpoint.account and endpoint.account not in accounts:
        return _denied("builtin:aws-key", "the host belongs to an account that is not the operator's")
    if verdict.allow and endpoint.s3 and (path or endpoint.bucket):
        return _judge_bucket(access, endpoint, method, path, ())
    return verdict


def unsigned(reason: str) -> Verdict:
    """Return the denial of a request whose signature has no scope that can be judged."""
    return _denied("builtin:aws-unsigned", reason)


def _aws_part(pattern: str) -> set[str]:
    """Return what a suffix opens of AWS: itself, or the names below it that AWS has."""
    if any(pattern == suffix or pattern.endswith("." + suffix) for suffix in SUFFIXES):
        return {pattern}
    return {suffix for suffix in SUFFIXES if suffix.endswith("." + pattern)}


def _not_listed(bucket: str) -> Verdict:
    return _denied("builtin:aws-bucket", f"bucket {bucket[:80]} is not in aws.buckets of the configuration")


def _denied(rule: str, reason: str) -> Verdict:
    return Verdict(False, rule, "aws", reason)


_ALLOWED = Verdict(True, "aws", "aws", "signed with the operator's key for an allowed service and region")
