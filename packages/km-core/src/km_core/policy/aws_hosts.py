"""
AWS hosts: what their names say of region, service, bucket and owner.

Forms are those of the "AWS service endpoints" and "Amazon S3 virtual hosting" pages of the vendor's
reference; names of services were compared with the vendor's published endpoint data.
"""

from __future__ import annotations

import functools
import re

from attrs import frozen

SUFFIXES = (
    "amazonaws.com",
    "amazonaws.com.cn",
    "amazonaws.eu",
    "api.aws",
    "on.aws",
    "api.amazonwebservices.com.cn",
    "api.amazonwebservices.eu",
    "c2s.ic.gov",
    "sc2s.sgov.gov",
    "cloud.adc-e.uk",
    "csp.hci.ic.gov",
    "api.aws.ic.gov",
    "api.aws.scloud",
    "api.cloud-aws.adc-e.uk",
    "api.aws.hci.ic.gov",
)
"""Names below which the vendor's services are, in every partition; below ``on.aws`` only customers' own."""

_REGION = re.compile(r"[a-z]{2,4}(?:-[a-z]+){1,3}-[0-9]{1,2}\Z")
_S3 = re.compile(r"s3(?:-[a-z0-9-]+|express-[a-z0-9-]+)?\Z")
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
        "compute-1",
        "elasticbeanstalk",
        "lambda-url",
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

# First words of shared hosts with two (``api.ecr``); what else stands there is a customer's.
_WORDS = frozenset(
    [
        "admin",
        "agreement",
        "api",
        "catalog",
        "control",
        "controlplane",
        "cp",
        "data",
        "data-ats",
        "dataplane",
        "deployment",
        "discovery",
        "dp",
        "edge",
        "entitlement",
        "featurestore-runtime",
        "geofencing",
        "global",
        "ingest",
        "maps",
        "management",
        "metadata",
        "metering",
        "metrics",
        "models",
        "participant",
        "places",
        "portal",
        "query",
        "reporting",
        "routes",
        "runtime",
        "streaming",
        "streams",
        "subscribe",
        "tracking",
    ]
)
# Words of hosts whose signing name is another one.
_SIGNED_AS: dict[str, str] = {
    "appconfigdata": "appconfig",
    "appstream2": "appstream",
    "agreement-marketplace": "aws-marketplace",
    "agreement.marketplace": "aws-marketplace",
    "bedrock-agent": "bedrock",
    "bedrock-agent-runtime": "bedrock",
    "bedrock-agentcore-control": "bedrock-agentcore",
    "bedrock-data-automation": "bedrock",
    "bedrock-data-automation-runtime": "bedrock",
    "bedrock-runtime": "bedrock",
    "catalog.marketplace": "aws-marketplace",
    "cloudhsmv2": "cloudhsm",
    "data-ats.iot": "iotdata",
    "data.iot": "iotdata",
    "efs": "elasticfilesystem",
    "email": "ses",
    "entitlement.marketplace": "aws-marketplace",
    "eventsv2": "events",
    "git-codecommit": "codecommit",
    "identity-chime": "chime",
    "ivsrealtime": "ivs",
    "kafka-api": "kafka",
    "mail-manager": "ses",
    "maps.geo": "geo-maps",
    "media-pipelines-chime": "chime",
    "meetings-chime": "chime",
    "memory-db": "memorydb",
    "messaging-chime": "chime",
    "metering.marketplace": "aws-marketplace",
    "models-v2-lex": "lex",
    "personalize-events": "personalize",
    "personalize-runtime": "personalize",
    "pinpoint": "mobiletargeting",
    "places.geo": "geo-places",
    "queue": "sqs",
    "routes.geo": "geo-routes",
    "runtime-v2-lex": "lex",
    "servicecatalog-appregistry": "servicecatalog",
    "sync-states": "states",
    "transcribestreaming": "transcribe",
    "voice-chime": "chime",
}
_ACCOUNTS = {"ddb": "dynamodb", "streams-ddb": "dynamodb", "eventsv2": "events"}
"""Words of hosts that begin with an account's number."""


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
        service: signing name of a shared host other than S3's; empty for forms that are not known.
        account: the account that the name begins with; empty when it has none.
    """

    region: str
    s3: bool
    bucket: str
    tenant: bool
    known: bool = True
    service: str = ""
    account: str = ""


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
    if suffix == "on.aws" or not _TENANTS.isdisjoint(labels[1:]):
        service = "ecr" if labels[:2] == ["api", "ecr"] else ""
        return AwsEndpoint(region, s3=False, bucket="", tenant=not service, service=service)
    service, account = _shared(labels)
    return AwsEndpoint(region, s3=False, bucket="", tenant=False, service=service, account=account)


def _shared(labels: list[str]) -> tuple[str, str]:
    """Return the signing name of a shared host, and the account in it; both empty for another form."""
    if len(labels) > 1 and (_REGION.match(labels[-1]) or labels[-1] == "global"):
        labels = labels[:-1]
    elif len(labels) == 2 and _REGION.match(labels[0]):
        labels = labels[1:]  # the oldest form: eu-west-1.queue
    words = [
        word.removesuffix("-fips").removeprefix("fips-")
        for word in labels
        if word not in ("fips", "dualstack")
    ]
    if len(words) == 2 and words[1] in _ACCOUNTS and re.fullmatch("[0-9]{12}", words[0]):
        return _ACCOUNTS[words[1]], words[0]
    if len(words) == 1 or (len(words) == 2 and words[0] in _WORDS):
        return _SIGNED_AS.get(".".join(words), words[-1]), ""
    return "", ""
