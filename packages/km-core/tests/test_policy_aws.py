"""AWS hosts and signature scopes: whose request it is, and what it asks for."""

from __future__ import annotations

import base64

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from km_core.plan import HostRule
from km_core.policy.aws import AwsEndpoint, AwsGuard, CredentialScope, account_of, aws_endpoint, judge_aws
from km_core.secrets import AwsAccess

OURS = "AKIAQ3EGRMNSEXAMPLEX"
REGION = "eu-west-1"
ACCESS = AwsAccess((OURS,), (), ("s3", "sqs"), (REGION,), ("ours", "ours.dotted"))
SCOPE = CredentialScope(OURS, "20260102", REGION, "s3")


def key_of(account: int, kind: str = "ASIA") -> str:
    """Return an access key id that carries an account, as they have been made since 2019."""
    head = ((account << 7) | 0x800000000000).to_bytes(6, "big")
    return kind + base64.b32encode(head + b"\x05\x06\x07\x08").decode()


@pytest.mark.parametrize(
    ("name", "region", "bucket"),
    [
        ("s3.amazonaws.com", "", ""),
        ("s3.eu-west-1.amazonaws.com", REGION, ""),
        ("s3-eu-west-1.amazonaws.com", REGION, ""),
        ("s3.dualstack.eu-west-1.amazonaws.com", REGION, ""),
        ("s3-fips.eu-west-1.amazonaws.com", REGION, ""),
        ("s3-fips.dualstack.us-gov-west-1.amazonaws.com", "us-gov-west-1", ""),
        ("ours.s3.amazonaws.com", "", "ours"),
        ("ours.s3.eu-west-1.amazonaws.com", REGION, "ours"),
        ("ours.dotted.s3.dualstack.eu-west-1.amazonaws.com", REGION, "ours.dotted"),
        ("ours.s3-eu-west-1.amazonaws.com", REGION, "ours"),
        ("ours.s3-fips.dualstack.eu-west-1.amazonaws.com", REGION, "ours"),
        ("ours.s3-accelerate.amazonaws.com", "", "ours"),
        ("ours.s3-accelerate.dualstack.amazonaws.com", "", "ours"),
        ("s3.ours.s3.eu-west-1.amazonaws.com", REGION, "s3.ours"),
        ("ours.s3.cn-north-1.amazonaws.com.cn", "cn-north-1", "ours"),
        ("ap-123456789012.s3-accesspoint.eu-west-1.amazonaws.com", REGION, "ap-123456789012"),
        ("ours--euw1-az1--x-s3.s3express-euw1-az1.eu-west-1.amazonaws.com", REGION, "ours--euw1-az1--x-s3"),
    ],
)
def test_every_form_of_an_s3_host_says_region_and_bucket(name, region, bucket):
    assert aws_endpoint(name) == AwsEndpoint(region, s3=True, bucket=bucket, tenant=bool(bucket))


@pytest.mark.parametrize(
    ("name", "tenant", "known"),
    [
        ("sqs.eu-west-1.amazonaws.com", False, True),
        ("sts.amazonaws.com", False, True),
        ("sqs.eu-west-1.api.aws", False, True),
        ("abc.execute-api.eu-west-1.amazonaws.com", True, True),
        ("web-1.eu-west-1.elb.amazonaws.com", True, True),
        ("123456789012.dkr.ecr.eu-west-1.amazonaws.com", True, True),
        ("s3-x.eu-west-1.elb.amazonaws.com", True, True),
        ("ours.bucket.vpce-1a2b.s3.eu-west-1.vpce.amazonaws.com", False, False),
    ],
)
def test_other_hosts_are_shared_services_or_one_customers_own(name, tenant, known):
    found = aws_endpoint(name)
    assert found is not None
    assert (found.s3, found.tenant, found.known) == (False, tenant, known)


@pytest.mark.parametrize("name", ["amazonaws.com", "xamazonaws.com", "s3.amazonaws.com.evil.example", "aws"])
def test_a_name_that_only_looks_like_aws_is_none(name):
    assert aws_endpoint(name) is None
    assert not AwsGuard([HostRule(name, "suffix")], ACCESS).covers("s3.amazonaws.com.evil.example")


@given(st.integers(0, 10**12 - 1), st.sampled_from(["AKIA", "ASIA"]))
def test_the_account_in_a_key_id_is_read(account, kind):
    key = key_of(account, kind)
    assert account_of(key) == ("" if key[4] in "IJ" else f"{account:012d}")


@pytest.mark.parametrize(
    "key", ["AKIAIOSFODNN7EXAMPLE", "AKIAJ" + "A" * 15, "AKIA", "akia" + "Q" * 16, "AKIA" + "1" * 16, ""]
)
def test_a_key_id_that_does_not_say_its_account_has_none(key):
    assert account_of(key) == ""


def judged(host, scope=SCOPE, access=ACCESS, method="PUT", path="/key"):
    endpoint = aws_endpoint(host)
    assert endpoint is not None
    verdict = judge_aws(access, endpoint, scope, method, path)
    return "allow" if verdict.allow else verdict.rule.removeprefix("builtin:aws-")


def test_only_the_operators_key_service_region_and_bucket_pass():
    host = f"ours.s3.{REGION}.amazonaws.com"
    assert judged(host) == "allow"
    assert judged(host, evolve(SCOPE, access_key_id="AKIAQ3EGRMNSEXAMPLEY")) == "key"
    assert judged(host, evolve(SCOPE, service="ec2")) == "scope"
    assert judged(host, evolve(SCOPE, service="sqs")) == "scope"
    assert judged(host, evolve(SCOPE, region="us-east-1")) == "scope"
    assert judged("ours.s3.us-east-1.amazonaws.com") == "scope"
    assert judged(f"theirs.s3.{REGION}.amazonaws.com") == "bucket"
    assert judged(f"sqs.{REGION}.amazonaws.com") == "scope"
    assert judged(f"sqs.{REGION}.amazonaws.com", evolve(SCOPE, service="sqs")) == "allow"
    assert judged(f"vpce-1.s3.{REGION}.vpce.amazonaws.com") == "scope"


@pytest.mark.parametrize(
    ("method", "path", "verdict"),
    [
        ("PUT", "/ours/key", "allow"),
        ("GET", "/ours?list-type=2", "allow"),
        ("PUT", "/theirs/key", "bucket"),
        ("PUT", "/theirs/../ours/key", "bucket"),
        ("PUT", "//ours/key", "bucket"),
        ("PUT", "/%6furs/key", "bucket"),
        ("PUT", "/", "bucket"),
        ("GET", "/?x-id=ListBuckets", "allow"),
        ("OPTIONS", "*", "bucket"),
    ],
)
def test_in_path_style_the_first_segment_is_the_bucket(method, path, verdict):
    assert judged(f"s3.{REGION}.amazonaws.com", method=method, path=path) == verdict


def test_a_key_of_an_allowed_account_passes_and_every_other_accounts_does_not():
    access = evolve(ACCESS, access_key_ids=(), accounts=("123456789012",))
    host = f"ours.s3.{REGION}.amazonaws.com"
    assert judged(host, evolve(SCOPE, access_key_id=key_of(123456789012)), access) == "allow"
    assert judged(host, evolve(SCOPE, access_key_id=key_of(123456789013)), access) == "key"
    assert judged(host, evolve(SCOPE, access_key_id="AKIAIOSFODNN7EXAMPLE"), access) == "key"


def test_without_a_configuration_nothing_passes():
    assert judged(f"ours.s3.{REGION}.amazonaws.com", access=AwsAccess()) == "key"


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {"keys": []},
        {"accounts": [123456789012]},
        {"accounts": ["123"]},
        {"services": "s3"},
        {"buckets": [""]},
    ],
)
def test_an_access_that_is_none_is_refused(data):
    with pytest.raises(ValueError, match="aws"):
        AwsAccess.from_data(data)


def test_a_profile_that_names_aws_is_judged_and_one_that_allows_everything_is_not():
    rules = [HostRule("amazonaws.com", "subdomains"), HostRule("mine.s3.amazonaws.com", "exact")]
    guard = AwsGuard([*rules, HostRule("sqs.eu-west-1.api.aws", "exact")], ACCESS)
    assert guard.covers("s3.amazonaws.com")
    assert guard.covers("theirs.s3.amazonaws.com")
    assert guard.covers("sqs.eu-west-1.api.aws")
    assert not guard.covers("mine.s3.amazonaws.com")
    assert not guard.covers("sns.eu-west-1.api.aws")
    assert set(guard.subtrees) == {"amazonaws.com", "sqs.eu-west-1.api.aws"}
    assert not AwsGuard([HostRule("*", "any"), HostRule("com", "suffix")], ACCESS).covers("s3.amazonaws.com")


def test_githubs_bucket_is_judged_by_repository_where_repositories_are_listed():
    rules = [HostRule("amazonaws.com", "subdomains")]
    name = "github-cloud.s3.amazonaws.com"
    assert AwsGuard(rules, ACCESS).covers(name)
    assert not AwsGuard(rules, ACCESS, git=True).covers(name)
