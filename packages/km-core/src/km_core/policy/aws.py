"""
AWS hosts, and whether one signed request to them is the operator's.

One suffix such as ``.amazonaws.com`` opens every account's buckets and queues.  What tells them apart is
in the request: the scope of its signature (Signature Version 4: access key, date, region, service) and,
for S3, the bucket.  Host forms are those of the "AWS service endpoints" and "Amazon S3 virtual hosting"
pages of the vendor's reference.
"""

from __future__ import annotations

import base64
import binascii
import functools
import re
from typing import TYPE_CHECKING

from attrs import frozen

from km_core.policy.github import GIT_HOSTS
from km_core.types import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from km_core.plan import HostRule
    from km_core.secrets import AwsAccess

SUFFIXES = ("amazonaws.com", "amazonaws.com.cn", "api.aws", "api.amazonwebservices.com.cn")

_REGION = re.compile(r"[a-z]{2,4}(?:-[a-z]+){1,3}-[0-9]{1,2}\Z")
_S3 = re.compile(r"s3(?:-[a-z0-9-]+|express-[a-z0-9-]+)?\Z")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}\Z")
_KEY = re.compile(r"A[A-Z]{3}[A-Z2-7]{12,124}\Z")
_ACCOUNT_MASK = 0x7FFFFFFFFF80
# Words below which the label before is one customer's own endpoint, not a service that all share.
_TENANTS = frozenset(
    {
        "execute-api",
        "elb",
        "rds",
        "ecr",
        "cache",
        "es",
        "aoss",
        "eks",
        "redshift",
        "docdb",
        "compute",
        "elasticbeanstalk",
    }
    | {
        "neptune",
        "memorydb",
        "dax",
        "mq",
        "kafka",
        "transfer",
        "appsync-api",
        "elasticloadbalancing",
        "awsapprunner",
    }
)


@frozen
class AwsEndpoint:
    """
    What an AWS host name says.

    Attributes:
        region: the region in the name; empty when it has none.
        s3: whether it is a form of S3's.
        bucket: what stands before S3's label (bucket, access point, account); empty in path style.
        tenant: the name belongs to one customer (a bucket, a load balancer, a database).
        known: the form is one that can be judged; interface endpoints of a VPC are not.
    """

    region: str
    s3: bool
    bucket: str
    tenant: bool
    known: bool = True


@functools.lru_cache(maxsize=1024)
def aws_endpoint(name: str) -> AwsEndpoint | None:
    """Return what a canonical name says when it is below an AWS suffix, else None."""
    suffix = next((s for s in SUFFIXES if name.endswith("." + s)), None)
    if suffix is None:
        return None
    labels = name[: -len(suffix) - 1].split(".")
    region = next((label for label in reversed(labels) if _REGION.match(label)), "")
    if labels[-1] == "vpce":
        return AwsEndpoint(region, s3=False, bucket="", tenant=False, known=False)
    at = next((i for i in reversed(range(len(labels))) if _S3.match(labels[i])), None)
    # After S3's label only words of the endpoint follow; otherwise it is part of some other name.
    if at is not None and all(part == "dualstack" or _REGION.match(part) for part in labels[at + 1 :]):
        bucket = ".".join(labels[:at])
        legacy = labels[at].removeprefix("s3-").removeprefix("website-")
        return AwsEndpoint(
            region or (legacy if _REGION.match(legacy) else ""), s3=True, bucket=bucket, tenant=bool(bucket)
        )
    return AwsEndpoint(region, s3=False, bucket="", tenant=not _TENANTS.isdisjoint(labels[1:]))


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
    access: AwsAccess, endpoint: AwsEndpoint, scope: CredentialScope, method: str, path: str
) -> Verdict:
    """
    Say whether a signed request is the operator's.

    Args:
        access: what is allowed.
        endpoint: what the host's name says.
        scope: of the request's signature.
        method: of the request.
        path: request target in origin form, with its query.
    """
    key = scope.access_key_id
    if key not in access.access_key_ids and (account_of(key) or "?") not in access.accounts:
        return _denied(
            "builtin:aws-key", "the request is signed with an access key that is not the operator's"
        )
    if not endpoint.known:
        return _denied("builtin:aws-scope", "requests to an interface endpoint of a VPC cannot be judged")
    if scope.service not in access.services:
        return _denied(
            "builtin:aws-scope", f"service {scope.service} is not in aws.services of the configuration"
        )
    for region in {scope.region, endpoint.region} - {""}:
        if region not in access.regions:
            return _denied("builtin:aws-scope", f"region {region} is not in aws.regions of the configuration")
    if endpoint.s3 is not scope.service.startswith("s3"):
        return _denied("builtin:aws-scope", f"service {scope.service} does not belong to this host")
    return _judge_bucket(access, endpoint, method, path) if endpoint.s3 else _ALLOWED


def _judge_bucket(access: AwsAccess, endpoint: AwsEndpoint, method: str, path: str) -> Verdict:
    if "*" in access.buckets:
        return _ALLOWED
    bucket = endpoint.bucket
    if not bucket:
        bucket = path.partition("?")[0].lstrip("/").partition("/")[0]
        if not bucket and path.partition("?")[0] == "/" and method in ("GET", "HEAD"):
            return _ALLOWED  # the list of the account's own buckets
        if not path.startswith("/") or path.startswith("//") or not _BUCKET.match(bucket):
            return _denied("builtin:aws-bucket", "the path does not name one bucket")
    if bucket in access.buckets:
        return _ALLOWED
    return _denied("builtin:aws-bucket", f"bucket {bucket[:80]} is not in aws.buckets of the configuration")


class AwsGuard:
    """
    Which names are judged by signature, and by what.

    Judged is every AWS host that the profile names by suffix, and those named exactly that all customers
    share (``sqs.eu-west-1.amazonaws.com``).  A host named exactly that is one customer's own (a bucket, a
    load balancer) is the profile's choice.  A profile that allows every name is not asked.

    Args:
        hosts: the plan's rules.
        access: what is allowed.
        git: repository rules are in force, which judge GitHub's hosts at AWS.
    """

    def __init__(self, hosts: Iterable[HostRule], access: AwsAccess, *, git: bool = False) -> None:
        self.access = access
        self._git = git
        self._exact: set[str] = set()
        suffixes: set[str] = set()
        for rule in hosts:
            if rule.kind == "exact":
                self._exact.add(rule.pattern)
            elif rule.kind in ("suffix", "subdomains") and _below_aws(rule.pattern):
                suffixes.add(rule.pattern)
        self._suffixes = tuple(sorted(suffixes))
        self._covered = functools.lru_cache(maxsize=1024)(self._covers)

    @property
    def subtrees(self) -> tuple[str, ...]:
        """Names that certificates are needed for, themselves and what is below them."""
        return (*self._suffixes, *sorted(name for name in self._exact if self.covers(name)))

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


def unsigned(reason: str) -> Verdict:
    """Return the denial of a request whose signature has no scope that can be judged."""
    return _denied("builtin:aws-unsigned", reason)


def _below_aws(pattern: str) -> bool:
    return any(pattern == suffix or pattern.endswith("." + suffix) for suffix in SUFFIXES)


def _denied(rule: str, reason: str) -> Verdict:
    return Verdict(False, rule, "aws", reason)


_ALLOWED = Verdict(True, "aws", "aws", "signed with the operator's key for an allowed service and region")
