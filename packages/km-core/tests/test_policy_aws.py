"""AWS hosts and signature scopes: whose request it is, and what it asks for."""

from __future__ import annotations

import base64

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from km_core.compile.draft import network_plan
from km_core.plan import HostRule, SandboxPlan
from km_core.policy.ai_hosts import ai_vendor
from km_core.policy.aws import AwsGuard, CredentialScope, account_of, judge_aws, judge_call
from km_core.policy.aws_hosts import SUFFIXES, AwsEndpoint, aws_endpoint
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


@pytest.mark.parametrize(
    ("name", "service"),
    [
        ("sqs.eu-west-1.amazonaws.com", "sqs"),
        ("sts.amazonaws.com", "sts"),
        ("sts-fips.us-east-1.amazonaws.com", "sts"),
        ("fips.batch.us-east-1.amazonaws.com", "batch"),
        ("runtime-fips.sagemaker.us-east-1.amazonaws.com", "sagemaker"),
        ("eu-west-1.queue.amazonaws.com", "sqs"),
        ("queue.amazonaws.com", "sqs"),
        ("email.eu-west-1.amazonaws.com", "ses"),
        ("api.ecr.eu-west-1.amazonaws.com", "ecr"),
        ("streams.dynamodb.eu-west-1.amazonaws.com", "dynamodb"),
        ("dynamodb.eu-west-1.api.aws", "dynamodb"),
        ("iam.global.api.aws", "iam"),
        ("sqs.eusc-de-east-1.amazonaws.eu", "sqs"),
        ("sqs.cn-north-1.amazonaws.com.cn", "sqs"),
        ("evil.execute-api.eu-west-1.amazonaws.com", ""),
        ("evil.sqs.eu-west-1.amazonaws.com", ""),
        ("a1b2.iot.eu-west-1.amazonaws.com", ""),
        ("api.execute-api.eu-west-1.amazonaws.com", ""),
        ("ec2-192-0-2-1.compute-1.amazonaws.com", ""),
        ("ec2-192-0-2-1.eu-west-1.compute.amazonaws.com", ""),
        ("evil.lambda-url.eu-west-1.on.aws", ""),
        ("sqs.eu-west-1.on.aws", ""),
    ],
)
def test_a_shared_host_is_its_own_service_and_every_other_form_is_none(name, service):
    found = aws_endpoint(name)
    assert found is not None
    assert found.service == service


@pytest.mark.parametrize(
    "host",
    [
        f"evil.execute-api.{REGION}.amazonaws.com",
        f"web-1.{REGION}.elb.amazonaws.com",
        f"ec2-192-0-2-1.{REGION}.compute.amazonaws.com",
        "ec2-192-0-2-1.compute-1.amazonaws.com",
        f"evil.lambda-url.{REGION}.on.aws",
        f"evil.appsync-api.{REGION}.amazonaws.com",
        f"evil.sqs.{REGION}.amazonaws.com",
        f"evil.anything.{REGION}.amazonaws.com",
        f"data.jobs.iot.{REGION}.amazonaws.com",
    ],
)
def test_a_host_that_checks_no_signature_is_not_reached_with_a_claimed_one(host):
    for service in ("sqs", "execute-api", "lambda", "iot", "compute"):
        access = evolve(ACCESS, services=(service,))
        assert judged(host, evolve(SCOPE, service=service), access) in ("tenant", "scope")


def test_a_signature_for_another_service_does_not_pass():
    access = evolve(ACCESS, services=("sqs", "sns", "sts", "cognito-idp", "ses"))
    for service, expected in (("sqs", "allow"), ("sns", "scope"), ("sts", "scope")):
        assert judged(f"sqs.{REGION}.amazonaws.com", evolve(SCOPE, service=service), access) == expected
    assert judged(f"email.{REGION}.amazonaws.com", evolve(SCOPE, service="ses"), access) == "allow"
    # Whoever asks may sign up there.
    cognito = evolve(SCOPE, service="cognito-idp")
    assert judged(f"cognito-idp.{REGION}.amazonaws.com", cognito, access) == "unsigned"


def test_an_exactly_named_host_of_an_unknown_form_is_judged_by_its_signature():
    host = f"data.jobs.sqs.{REGION}.amazonaws.com"
    sqs = evolve(SCOPE, service="sqs")
    assert judged(host, sqs) == "scope"
    assert judged(host, sqs, named=True) == "allow"
    assert judged(host, evolve(sqs, access_key_id="AKIAQ3EGRMNSEXAMPLEY"), named=True) == "key"


def test_a_host_that_begins_with_an_account_is_the_operators():
    access = evolve(ACCESS, services=("dynamodb",), accounts=("123456789012",))
    scope = evolve(SCOPE, service="dynamodb")
    assert judged(f"123456789012.ddb.{REGION}.amazonaws.com", scope, access) == "allow"
    assert judged(f"123456789013.ddb.{REGION}.amazonaws.com", scope, access) == "key"


@pytest.mark.parametrize("name", ["com", "amazonaws.com", "com.cn", "aws", "on.aws", "eu", "ic.gov"])
def test_a_suffix_above_aws_opens_no_more_of_it(name):
    guard = AwsGuard([HostRule(name, "suffix", source=f".{name}")], ACCESS)
    below = [s for s in SUFFIXES if s == name or s.endswith(f".{name}")]
    assert below
    assert set(below) <= set(guard.subtrees)
    assert all(guard.covers(f"x.execute-api.{REGION}.{suffix}") for suffix in below)
    assert not guard.covers("example.com")


def test_models_of_every_partition_are_counted():
    assert ai_vendor("bedrock-runtime.eusc-de-east-1.amazonaws.eu") == "bedrock"


@pytest.mark.parametrize(
    ("path", "body", "allowed"),
    [
        ("/", b"Action=GetCallerIdentity&Version=2011-06-15", True),
        ("/", b"Action=AssumeRole&RoleArn=arn", True),
        ("/", b"Action=AssumeRoleWithWebIdentity&RoleArn=arn", False),
        ("/", b"action=assumerolewithsaml", False),
        ("/", b"Action=Assume%52oleWithWebIdentity", False),
        ("/?Action=AssumeRoleWithWebIdentity", b"", False),
        ("/?Action=AssumeRoleWithSAML", b"Action=GetCallerIdentity", False),
        ("/", b'--x\r\ncontent-disposition: form-data; name="Action"\r\n\r\nAssumeRoleWithSAML', False),
    ],
)
def test_calls_that_need_no_signature_do_not_pass_with_a_claimed_one(path, body, allowed):
    assert judge_call(path, body).allow is allowed


@pytest.mark.parametrize(
    ("source", "verdict"),
    [
        ("ours/key", "allow"),
        ("/ours/key?versionId=1", "allow"),
        ("%2Fours%2Fkey", "allow"),
        ("theirs/key", "bucket"),
        ("/theirs/key", "bucket"),
        ("//theirs/key", "bucket"),
        ("arn:aws:s3:eu-west-1:1:accesspoint/x/object/ours", "bucket"),
        ("", "bucket"),
    ],
)
def test_a_copy_reads_from_a_listed_bucket_only(source, verdict):
    assert judged(f"ours.s3.{REGION}.amazonaws.com", copied=[source]) == verdict
    assert judged(f"ours.s3.{REGION}.amazonaws.com", copied=["ours/key", source]) == verdict


def judged(host, scope=SCOPE, access=ACCESS, method="PUT", path="/key", **rest):
    endpoint = aws_endpoint(host)
    assert endpoint is not None
    verdict = judge_aws(access, endpoint, scope, method, path, **rest)
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
        ("PUT", "/ours/../theirs/key", "bucket"),
        ("PUT", "/ours/a/%2e%2e/../..%2ftheirs/key", "bucket"),
        ("PUT", "/ours/a/../key", "allow"),
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
    assert not AwsGuard([HostRule("*", "any")], ACCESS).covers("s3.amazonaws.com")


def test_githubs_bucket_is_judged_by_repository_where_repositories_are_listed():
    rules = [HostRule("amazonaws.com", "subdomains")]
    name = "github-cloud.s3.amazonaws.com"
    assert AwsGuard(rules, ACCESS).covers(name)
    assert not AwsGuard(rules, ACCESS, git=True).covers(name)


@pytest.mark.parametrize(
    ("hosts", "suffixes", "bound"),
    [
        (["sts.amazonaws.com"], [], True),
        ([], [".amazonaws.com"], True),
        ([], [".com"], True),
        (["example.org"], [".example.org"], False),
        (["*"], [], False),
    ],
)
def test_the_profiles_regions_are_in_the_plan_where_it_names_aws(hosts, suffixes, bound):
    section = {"egress": {"allowedHosts": hosts, "allowedDNSSuffixes": suffixes}}
    network = network_plan(section, (), {"allowedRegions": [REGION]})
    assert network.aws_regions == ((REGION,) if bound else ())
    plan = SandboxPlan("p", "0", "sb", "local", network=network)
    data = plan.to_data()
    assert ("aws_regions" in data["network"]) is bound
    assert SandboxPlan.from_data(data) == plan


def test_the_profiles_regions_bound_the_operators():
    host, sqs = f"sqs.{REGION}.amazonaws.com", evolve(SCOPE, service="sqs")
    assert judged(host, sqs, regions=[REGION]) == "allow"
    assert judged(host, sqs, regions=["us-east-1"]) == "scope"
