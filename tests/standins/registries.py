"""Registries of other languages' packages, each with one small package of its own, and a piece of AWS."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import tarfile
from typing import TYPE_CHECKING

from demo.serving import Handler, Server

if TYPE_CHECKING:
    import ssl

    from demo.serving import Arrival

NAME, VERSION = "km-greeting", "1.0.0"
ACCOUNT = "123456789012"


def _archive(files: dict[str, str]) -> bytes:
    """Return a gzipped tar archive whose bytes depend on its content alone."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(text.encode()), 0o644
            archive.addfile(info, io.BytesIO(text.encode()))
    return gzip.compress(buffer.getvalue(), mtime=0)


class NpmRegistry(Server):
    """
    A registry as npm asks it.

    Args:
        context: its TLS context.
        host: the name under which clients know it.
    """

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        super().__init__(_NpmHandler, context)
        manifest = {"name": NAME, "version": VERSION, "main": "index.js"}
        self.tarball = _archive(
            {
                "package/package.json": json.dumps(manifest),
                "package/index.js": "module.exports = 'hello from the registry'\n",
            }
        )
        digest = base64.b64encode(hashlib.sha512(self.tarball).digest()).decode()
        tarball = f"https://{host}/{NAME}/-/{NAME}-{VERSION}.tgz"
        dist = {"tarball": tarball, "integrity": f"sha512-{digest}"}
        self.document = {
            "name": NAME,
            "dist-tags": {"latest": VERSION},
            "versions": {VERSION: manifest | {"dist": dist}},
        }


class _NpmHandler(Handler):
    server: NpmRegistry

    def answer(self, arrival: Arrival) -> None:
        if arrival.path == f"/{NAME}":
            self.send(200, json.dumps(self.server.document).encode(), [("content-type", "application/json")])
        elif arrival.path.endswith(".tgz"):
            self.send(200, self.server.tarball, [("content-type", "application/octet-stream")])
        elif arrival.path.startswith("/-/npm/v1/security/"):
            self.send(200, b"{}", [("content-type", "application/json")])
        else:
            self.send(404, b"{}", [("content-type", "application/json")])


class CrateRegistry(Server):
    """
    A sparse index and its crates, as RFC 2789 of Rust's and the Cargo book have it.

    Args:
        context: its TLS context.
        host: the name under which clients know it.
    """

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        super().__init__(_CrateHandler, context)
        manifest = f'[package]\nname = "{NAME}"\nversion = "{VERSION}"\nedition = "2021"\n'
        root = f"{NAME}-{VERSION}"
        self.crate = _archive({f"{root}/Cargo.toml": manifest, f"{root}/src/lib.rs": "pub fn hello() {}\n"})
        self.settings = {"dl": f"https://{host}/dl"}
        self.line = {
            "name": NAME,
            "vers": VERSION,
            "deps": [],
            "cksum": hashlib.sha256(self.crate).hexdigest(),
            "features": {},
            "yanked": False,
        }


class _CrateHandler(Handler):
    server: CrateRegistry

    def answer(self, arrival: Arrival) -> None:
        pages = {
            "/config.json": json.dumps(self.server.settings).encode(),
            f"/{NAME[:2]}/{NAME[2:4]}/{NAME}": json.dumps(self.server.line).encode() + b"\n",
            f"/dl/{NAME}/{VERSION}/download": self.server.crate,
        }
        body = pages.get(arrival.path)
        self.send(404 if body is None else 200, body or b"", [("content-type", "application/octet-stream")])


class Aws(Server):
    """
    The caller's identity and one S3 bucket, as their clients ask for them.

    Args:
        context: its TLS context.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(_AwsHandler, context)
        self.objects: dict[str, bytes] = {}


class _AwsHandler(Handler):
    server: Aws

    def answer(self, arrival: Arrival) -> None:
        host = arrival.headers["host"]
        if host.startswith("sts."):
            user = f"<Arn>arn:aws:iam::{ACCOUNT}:user/agent</Arn><UserId>AIDAEXAMPLE</UserId>"
            result = f"<GetCallerIdentityResult>{user}<Account>{ACCOUNT}</Account></GetCallerIdentityResult>"
            space = "https://sts.amazonaws.com/doc/2011-06-15/"
            self._xml(f'<GetCallerIdentityResponse xmlns="{space}">{result}</GetCallerIdentityResponse>')
            return
        key = arrival.path.partition("?")[0]
        if arrival.method == "PUT":
            chunked = "aws-chunked" in arrival.headers.get("content-encoding", "")
            body = _without_chunks(arrival.body) if chunked else arrival.body
            self.server.objects[key] = body
            self.send(200, b"", [("etag", f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"')])
        elif arrival.method in {"GET", "HEAD"} and key in self.server.objects:
            self._object(self.server.objects[key])
        elif arrival.method == "GET" and key in {"/", ""}:
            space = "http://s3.amazonaws.com/doc/2006-03-01/"
            names = "".join(
                f"<Contents><Key>{name[1:]}</Key><Size>{len(data)}</Size>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
                for name, data in self.server.objects.items()
            )
            tail = f"<IsTruncated>false</IsTruncated>{names}"
            self._xml(f'<ListBucketResult xmlns="{space}">{tail}</ListBucketResult>')
        else:
            self.send(404, b"")

    def _object(self, data: bytes) -> None:
        etag = f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
        when = ("last-modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send(200, data, [("etag", etag), when, ("content-type", "binary/octet-stream")])

    def _xml(self, text: str) -> None:
        self.send(200, text.encode(), [("content-type", "text/xml")])


def _without_chunks(body: bytes) -> bytes:
    """Undo the content encoding ``aws-chunked`` (chunks with a size line, then trailing headers)."""
    data = bytearray()
    while body:
        line, _, body = body.partition(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        if size == 0:
            break
        data += body[:size]
        body = body[size + 2 :]
    return bytes(data)
