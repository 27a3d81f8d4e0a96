"""AWS's clients: what is signed for an allowed service, region and bucket passes through the opened hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from standins.clients import archive_of, fetched, unpack
from standins.registries import ACCOUNT

if TYPE_CHECKING:
    from standins.clients import Sites
    from standins.world import Sandbox

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300), pytest.mark.usefixtures("nothing_refused")]


@pytest.fixture(scope="module")
def aws(box: Sandbox) -> Sandbox:
    unpack(box, archive_of(fetched("python/boto3").parent, "site", without=not_needed))
    return box


def not_needed(name: str) -> bool:
    """Say what nothing here reads: hundreds of services' descriptions and examples, and other programs."""
    top, _, rest = name.partition("/")
    place, _, service = rest.partition("/")
    if top == "botocore" and place == "data" and service:
        return service[0] != "_" and "." not in service and service.partition("/")[0] not in {"s3", "sts"}
    return name == "bin" or (top == "awscli" and place == "examples")


def test_the_command_line_client_asks_who_it_is_and_copies_files_both_ways(
    aws: Sandbox, sites: Sites
) -> None:
    command = ("env", "PYTHONPATH=/workspace/site", "python3", "-m", "awscli")
    who = aws.run(*command, "sts", "get-caller-identity").assert_ok()
    assert who.json()["Account"] == ACCOUNT
    # Above its limit for one request it sends parts; below, one body with a checksum behind it.
    aws.run("sh", "-c", "head -c 3000000 /dev/zero > blob").assert_ok()
    aws.run(*command, "s3", "cp", "--no-progress", "blob", "s3://km-bucket/blob").assert_ok()
    assert sites.aws.objects["/blob"] == bytes(3_000_000)
    aws.run(*command, "s3", "cp", "--no-progress", "s3://km-bucket/blob", "back").assert_ok()
    aws.run("cmp", "blob", "back").assert_ok()
    listing = aws.run(*command, "s3", "ls", "s3://km-bucket").assert_ok()
    assert "blob" in listing.stdout


def test_boto3_asks_who_it_is_and_stores_an_object(aws: Sandbox, sites: Sites) -> None:
    source = """
import io, sys; sys.path.insert(0, "site")
import boto3
print(boto3.client("sts").get_caller_identity()["Account"])
bucket = boto3.client("s3")
bucket.put_object(Bucket="km-bucket", Key="small", Body=b"small")
bucket.upload_fileobj(io.BytesIO(bytes(100_000)), "km-bucket", "stream")
print(bucket.get_object(Bucket="km-bucket", Key="small")["Body"].read())
print([item["Key"] for item in bucket.list_objects_v2(Bucket="km-bucket")["Contents"] if item["Key"] != "blob"])
"""
    said = aws.python(source).assert_ok().stdout
    assert said == f"{ACCOUNT}\nb'small'\n['small', 'stream']\n"
    assert sites.aws.objects["/stream"] == bytes(100_000)
