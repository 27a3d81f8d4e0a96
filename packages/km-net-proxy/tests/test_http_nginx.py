"""The gate's reading of requests against a real nginx: what the gate sends on is one request there too."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from test_http_differential import by_gate, requests, sent_on

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

CONFIG = """
daemon off; master_process off; pid {0}/pid; error_log stderr crit;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {0}; proxy_temp_path {0}; fastcgi_temp_path {0}; uwsgi_temp_path {0}; scgi_temp_path {0};
  server {{
    listen unix:{0}/s;
    location / {{ default_type text/plain; return 200 "[$request_method $request_uri $http_host]"; }}
  }}
}}
"""


@pytest.fixture(scope="module")
def nginx():
    directory = Path(tempfile.mkdtemp(prefix="kn"))
    (directory / "conf").write_text(CONFIG.format(directory))
    process = subprocess.Popen(
        [NGINX, "-p", str(directory), "-c", str(directory / "conf"), "-e", "stderr"],
        stderr=subprocess.PIPE,
    )
    try:
        for _ in range(500):
            if (directory / "s").exists() or process.poll() is not None:
                break
            time.sleep(0.01)
        if process.poll() is not None:
            pytest.skip(f"nginx does not start: {process.stderr.read()[-200:]!r}")
        yield str(directory / "s")
    finally:
        process.terminate()
        process.wait(10)
        process.stderr.close()
        shutil.rmtree(directory)


def answers(path, data):
    """Return what nginx answers to *data*, one item a request: what it read, or its status."""
    received = b""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(path)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while piece := sock.recv(65536):
                received += piece
    out = []
    for status, rest in re.findall(
        rb"HTTP/1\.1 (\d+) [^\r]*\r\n(.*?)(?=HTTP/1\.1 \d|\Z)", received, re.DOTALL
    ):
        if status != b"100":
            read = re.search(rb"\[(.*)\]", rest, re.DOTALL)
            out.append(read[1] if status == b"200" and read else status)
    return out


def one(method, target):
    return [b"%b %b web.test" % (method, target)]


def test_ordinary_requests_are_read_as_they_are_meant(nginx):
    head = b"POST /a?b HTTP/1.1\r\nHost: web.test\r\n"
    assert answers(nginx, head + b"Content-Length: 5\r\n\r\nhello") == one(b"POST", b"/a?b")
    chunks = b"5\r\nhello\r\n0\r\n\r\n"
    assert answers(nginx, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks) == one(b"POST", b"/a?b")
    assert len(answers(nginx, (head + b"\r\n") * 2)) == 2


@settings(max_examples=250, deadline=None)
@given(raw=requests())
def test_what_the_gate_sends_on_is_one_request_to_nginx(nginx, raw):
    found = by_gate(raw)
    if found is None or not found[1].target.startswith(b"/"):
        return
    head, read = found
    sent = sent_on(head, read)
    got = answers(nginx, sent)
    refused = len(got) == 1 and re.fullmatch(rb"4\d\d|5\d\d", got[0])
    assert refused or got == one(read.method, read.target)
    # The client's own bytes: nginx reads their first request in the same way, or not at all.
    first = answers(nginx, raw)[:1]
    assert (
        not first or re.fullmatch(rb"\d\d\d", first[0]) or first[0].split()[:2] == [read.method, read.target]
    )
