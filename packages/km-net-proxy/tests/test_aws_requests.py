"""Requests to AWS, signed by the vendor's own library, judged by whose key and what service they are for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl

import pytest
from gate_rig import HostRule, Rig, answer, ok, run
from hypothesis import given
from hypothesis import strategies as st

from km_core.policy.aws import CredentialScope
from km_core.secrets import AwsAccess
from km_net_proxy.aws import ScopeError, credential_scope

REGION = "eu-west-1"
S3 = f"s3.{REGION}.amazonaws.com"
SQS = f"sqs.{REGION}.amazonaws.com"
OURS = "AKIAQ3EGRMNSEXAMPLEX"
THEIRS = "AKIAQ3EGRMNSEXAMPLEY"
SECRET = "an-aws-secret-access-key-of-somebody-0000"
ACCESS = AwsAccess((OURS,), (), ("s3", "sqs", "sts"), (REGION,), ("ours",))
SUFFIX = (HostRule("amazonaws.com", "subdomains", source=".amazonaws.com"),)
LISTING = b'<?xml version="1.0"?><ListAllMyBucketsResult><Buckets/></ListAllMyBucketsResult>'


def rig(**options):
    return Rig(hosts=SUFFIX, aws=ACCESS, meter=None, **options)


def client(rig, proxy, service, key=OURS, **options):
    """Return the vendor's client, which knows of the gate only as a proxy and of its CA."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        service,
        region_name=REGION,
        aws_access_key_id=key,
        aws_secret_access_key=SECRET,
        verify=str(rig.ca),
        config=Config(
            proxies={"https": f"http://127.0.0.1:{proxy}"},
            retries={"total_max_attempts": 1},
            **options,
        ),
    )


def refused(call, **arguments):
    """Return the message that the vendor's library shows."""
    from botocore.exceptions import ClientError

    with pytest.raises(ClientError, match="KmPolicyDenied") as caught:
        call(**arguments)
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    return caught.value.response["Error"]["Message"]


def signed(method, url, key=OURS, service="s3", *, query=False):
    """Return a request as the vendor's library signs it."""
    from botocore.auth import S3SigV4QueryAuth, SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    made = AWSRequest(method, url)
    auth = S3SigV4QueryAuth if query else SigV4Auth
    auth(Credentials(key, SECRET), service, REGION).add_auth(made)
    return made.prepare()


def test_the_vendors_client_works_with_the_operators_key_and_bucket_and_no_other():
    async def main():
        async with rig() as r:
            server = await r.serve(S3, ok(LISTING))
            virtual = await r.serve(f"ours.{S3}", ok(b"", b"ETag: x"))
            foreign = await r.serve(f"theirs.{S3}", ok(b""))
            await r.up()
            proxy = r.proxy()

            def work():
                mine = client(r, proxy, "s3", s3={"addressing_style": "virtual"})
                assert mine.list_buckets()["Buckets"] == []
                mine.put_object(Bucket="ours", Key="k", Body=b"x" * 100_000)
                assert "bucket theirs" in refused(mine.put_object, Bucket="theirs", Key="k", Body=b"secret")
                other = client(r, proxy, "s3", THEIRS, s3={"addressing_style": "path"})
                assert "access key" in refused(other.put_object, Bucket="ours", Key="k", Body=b"secret")

            await asyncio.to_thread(work)
            assert len(server.requests) == 1
            assert len(virtual.requests[0][1]) >= 100_000
            assert not foreign.requests
            rules = [(e["rule"], e["name"]) for e in r.events() if e["kind"] == "aws_request"]
            assert ("builtin:aws-bucket", f"theirs.{S3}") in rules
            details = {e["detail"] for e in r.events() if e["kind"] == "aws_request"}
            assert f"PUT key …{OURS[-4:]} {REGION} s3" in details
            assert ("builtin:aws-key", S3) in rules or ("builtin:aws-key", f"ours.{S3}") in rules
            assert SECRET not in json.dumps(r.events())

    run(main)


def test_services_that_are_not_listed_are_refused_with_what_to_change():
    async def main():
        async with rig() as r:
            server = await r.serve(f"sns.{REGION}.amazonaws.com", ok(b""))
            await r.serve(f"kms.{REGION}.amazonaws.com", ok(b"{}"))
            await r.up()
            proxy = r.proxy()

            def work():
                topic = f"arn:aws:sns:{REGION}:999999999999:t"
                said = refused(client(r, proxy, "sns").publish, TopicArn=topic, Message="secret")
                assert "aws.services" in said
                # A service that speaks JSON.
                assert "aws.services" in refused(client(r, proxy, "kms").list_keys)

            await asyncio.to_thread(work)
            assert not server.requests
            event = next(e for e in r.events() if e["kind"] == "aws_request")
            assert (event["rule"], event["verdict"]) == ("builtin:aws-scope", "deny")

    run(main)


@pytest.mark.parametrize(
    ("key", "path", "status"), [(OURS, "/ours/k", 200), (THEIRS, "/ours/k", 403), (OURS, "/theirs/k", 403)]
)
def test_a_presigned_address_is_judged_like_a_signed_request(key, path, status):
    async def main():
        async with rig() as r:
            server = await r.serve(S3, ok(b"content"))
            await r.up()
            url = signed("GET", f"https://{S3}{path}", key, query=True).url
            reader, writer = await r.tls(S3)
            writer.write(f"GET {url.removeprefix('https://' + S3)} HTTP/1.1\r\nHost: {S3}\r\n\r\n".encode())
            assert (await answer(reader))[0] == status
            writer.close()
            assert len(server.requests) == (status == 200)

    run(main)


def test_the_profiles_regions_bound_the_operators():
    async def main():
        async with rig(aws_regions=["eu-north-1"]) as r:
            server = await r.serve(SQS, ok(b"{}"))
            await r.up()
            proxy = r.proxy()
            said = await asyncio.to_thread(lambda: refused(client(r, proxy, "sqs").list_queues))
            assert "identity.allowedRegions" in said
            assert not server.requests

    run(main)


def test_an_unsigned_request_is_refused_before_it_leaves_and_told_why():
    async def main():
        async with rig() as r:
            server = await r.serve(f"ours.{S3}", ok())
            await r.up()
            reader, writer = await r.tls(f"ours.{S3}")
            for extra in ("", "Authorization: Bearer x\r\n", "Authorization: AWS AKIA:sig\r\n"):
                writer.write(f"GET /k HTTP/1.1\r\nHost: ours.{S3}\r\n{extra}\r\n".encode())
                status, _, body = await answer(reader)
                assert status == 403
                assert b"builtin:aws-unsigned" in body
            writer.close()
            assert not server.requests

    run(main)


def test_each_request_of_a_kept_connection_is_judged():
    async def main():
        async with rig() as r:
            server = await r.serve(SQS, ok(b"{}"))
            await r.up()
            reader, writer = await r.tls(SQS)
            for key, expected in ((OURS, 200), (THEIRS, 403), (OURS, 200)):
                made = signed("GET", f"https://{SQS}/?Action=ListQueues", key, "sqs")
                fields = "".join(f"{name}: {value}\r\n" for name, value in made.headers.items())
                writer.write(f"GET /?Action=ListQueues HTTP/1.1\r\nHost: {SQS}\r\n{fields}\r\n".encode())
                assert (await answer(reader))[0] == expected
            writer.close()
            assert len(server.requests) == 2

    run(main)


def test_a_host_of_one_customer_is_not_reached_with_a_claimed_signature():
    async def main():
        async with rig() as r:
            names = [f"evil.execute-api.{REGION}.amazonaws.com", f"web-1.{REGION}.elb.amazonaws.com"]
            servers = [await r.serve(name, ok(b"thanks")) for name in names]
            await r.up()
            for name in names:
                reader, writer = await r.tls(name)
                for service in ("sqs", "sts"):
                    value = HEADER.replace("/s3/", f"/{service}/")
                    writer.write(
                        f"GET /x HTTP/1.1\r\nHost: {name}\r\nAuthorization: {value}\r\n\r\n".encode()
                    )
                    status, _, body = await answer(reader)
                    assert status == 403
                    assert b"builtin:aws-tenant" in body
                writer.close()
            assert not any(server.requests for server in servers)

    run(main)


@pytest.mark.parametrize(
    "option", ["authorization", "close, Authorization", "x-amz-date", "x-amz-security-token"]
)
def test_the_connection_field_cannot_take_the_signature_away_after_it_was_judged(option):
    async def main():
        async with rig() as r:
            server = await r.serve(f"ours.{S3}", ok())
            await r.up()
            reader, writer = await r.tls(f"ours.{S3}")
            writer.write(
                f"GET /k HTTP/1.1\r\nHost: ours.{S3}\r\nAuthorization: {HEADER}\r\nConnection: {option}\r\n\r\n".encode()
            )
            status, _, body = await answer(reader)
            writer.close()
            assert status == 403
            assert b"builtin:aws-unsigned" in body
            assert not server.requests

    run(main)


def test_the_vendors_client_asks_who_it_is_and_a_call_without_signature_is_refused():
    identity = (
        b"<GetCallerIdentityResponse><GetCallerIdentityResult><Account>1</Account>"
        b"</GetCallerIdentityResult></GetCallerIdentityResponse>"
    )

    async def main():
        async with rig() as r:
            server = await r.serve(f"sts.{REGION}.amazonaws.com", ok(identity, b"Content-Type: text/xml"))
            await r.up()
            proxy = r.proxy()

            def work():
                mine = client(r, proxy, "sts")
                assert mine.get_caller_identity()["Account"] == "1"
                # The vendor's client does not sign this call.
                arguments = {"RoleArn": f"arn:aws:iam::{'9' * 12}:role/r", "RoleSessionName": "secret"}
                call = mine.assume_role_with_web_identity
                assert "not signed" in refused(call, WebIdentityToken="x" * 8, **arguments)

            await asyncio.to_thread(work)
            host, body = (
                f"sts.{REGION}.amazonaws.com",
                b"Action=AssumeRoleWithWebIdentity&RoleSessionName=secret",
            )
            value = HEADER.replace("/s3/", "/sts/")
            reader, writer = await r.tls(host)
            head = f"POST / HTTP/1.1\r\nHost: {host}\r\nAuthorization: {value}\r\n"
            for extra in ("", "Content-Encoding: gzip\r\n"):
                writer.write(f"{head}{extra}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                status, _, said = await answer(reader)
                assert status == 403
                assert b"builtin:aws-unsigned" in said
            writer.close()
            assert [body for _, body in server.requests] == [b"Action=GetCallerIdentity&Version=2011-06-15"]

    run(main)


def test_the_vendors_client_copies_from_a_listed_bucket_only():
    async def main():
        async with rig() as r:
            copied = b"<CopyObjectResult><ETag>x</ETag></CopyObjectResult>"
            server = await r.serve(f"ours.{S3}", ok(copied))
            await r.up()
            proxy = r.proxy()

            def work():
                mine = client(r, proxy, "s3", s3={"addressing_style": "virtual"})
                mine.copy_object(Bucket="ours", Key="k", CopySource={"Bucket": "ours", "Key": "a"})
                theirs = {"Bucket": "theirs", "Key": "a"}
                assert "bucket theirs" in refused(mine.copy_object, Bucket="ours", Key="k", CopySource=theirs)

            await asyncio.to_thread(work)
            assert len(server.requests) == 1

    run(main)


def test_a_bucket_that_the_profile_names_exactly_is_passed_on_unopened():
    async def main():
        name = f"public.{S3}"
        async with Rig(hosts=[HostRule(name, "exact")], aws=ACCESS, meter=None) as r:
            await r.serve(name, ok(b"data"))
            await r.up()
            context = ssl.create_default_context(cadata=r.pki.pem)
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", r.front(name, 443), ssl=context, server_hostname=name
            )
            writer.write(f"GET /k HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
            assert (await answer(reader))[2] == b"data"
            writer.close()

    run(main)


SCOPE = CredentialScope(OURS, "20260102", REGION, "s3")
HEADER = (
    f"AWS4-HMAC-SHA256 Credential={OURS}/20260102/{REGION}/s3/aws4_request, "
    f"SignedHeaders=host;x-amz-date, Signature={'a' * 64}"
)
QUERY = (
    f"/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={OURS}%2F20260102%2F{REGION}%2Fs3%2Faws4_request"
    f"&X-Amz-Date=20260102T000000Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature={'a' * 64}"
)


def auth(value, name=b"Authorization"):
    return [(b"Host", b"h"), (name, value.encode())]


def test_header_and_query_give_the_same_scope():
    assert credential_scope(auth(HEADER), "/k") == SCOPE
    assert credential_scope(auth(HEADER.replace(", ", ",")), "/k?x=1") == SCOPE
    assert credential_scope([], QUERY) == SCOPE


@pytest.mark.parametrize(
    ("fields", "target"),
    [
        ([], "/k"),
        ([], "/k?X-Amz-Credential=x"),
        (auth(HEADER) * 2, "/k"),
        (auth(HEADER) + auth(HEADER, b"authorization"), "/k"),
        (auth(HEADER), QUERY),
        (auth(HEADER), "/k?AWSAccessKeyId=AKIA&Signature=x&Expires=1"),
        ([], "/k?AWSAccessKeyId=AKIA&Signature=x&Expires=1"),
        ([], QUERY + f"&X-Amz-Credential={THEIRS}"),
        ([], QUERY + f"&x-amz-credential={THEIRS}"),
        ([], QUERY + f";X-Amz-Credential={THEIRS}"),
        ([], QUERY.replace("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256")),
        (auth(HEADER.replace("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256")), "/k"),
        (auth(HEADER + f", Credential={OURS}/20260102/{REGION}/s3/aws4_request"), "/k"),
        (auth(HEADER.replace("host;", "")), "/k"),
        (auth(HEADER.replace("/aws4_request", "")), "/k"),
        (auth(HEADER.replace(OURS, OURS.lower())), "/k"),
        (auth(HEADER.replace("a" * 64, "")), "/k"),
        (auth(HEADER.replace(", SignedHeaders", "; SignedHeaders")), "/k"),
    ],
)
def test_what_could_be_read_in_two_ways_has_no_scope(fields, target):
    with pytest.raises(ScopeError):
        credential_scope(fields, target)


@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=200))), st.text(max_size=300))
def test_no_request_makes_the_reader_fail_in_another_way(fields, target):
    with contextlib.suppress(ScopeError):
        credential_scope([*fields, (b"Authorization", target.encode("utf-8", "replace"))], "/" + target)


@given(st.binary(max_size=300))
def test_an_authorization_field_of_any_bytes_has_a_scope_or_none(value):
    try:
        found = credential_scope([(b"authorization", b"AWS4-HMAC-SHA256 " + value)], "/")
    except ScopeError:
        return
    assert found.access_key_id.isalnum()
