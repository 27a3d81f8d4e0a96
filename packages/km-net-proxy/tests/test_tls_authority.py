"""The sandbox's CA: constrained, kept, accepted by real clients."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import shutil
import ssl
import stat
import sys

import pytest
from cryptography import x509
from gate_rig import AI, Rig, ok, run, until

from km_core.errors import KmError
from km_net_proxy.http.ca import Authority

NODE = shutil.which("node")
GO = shutil.which("go")


def make(path, hosts=(AI,), **kwargs):
    return Authority.load_or_make(path, hosts, sandbox_id="sb-00000000", life_s=3600, **kwargs)


def test_the_authority_is_constrained_to_the_intercepted_hosts(tmp_path):
    certificate = x509.load_pem_x509_certificate(make(tmp_path).pem.encode())
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    names = certificate.extensions.get_extension_for_class(x509.NameConstraints)
    assert basic.critical
    assert (basic.value.ca, basic.value.path_length) == (True, 0)
    assert names.critical
    assert [name.value for name in names.value.permitted_subtrees] == [AI, "km.internal"]
    assert len(names.value.excluded_subtrees) == 2


def test_the_key_is_private_and_the_authority_survives_a_restart(tmp_path):
    first = make(tmp_path)
    assert stat.S_IMODE((tmp_path / "ca.key").stat().st_mode) == 0o600
    assert "PRIVATE" not in (tmp_path / "ca.pem").read_text()
    assert make(tmp_path).pem == first.pem


def test_an_authority_near_its_end_or_for_other_hosts_is_signed_anew_with_the_same_key(tmp_path):
    first = make(tmp_path)
    later = make(tmp_path, clock=lambda: dt.datetime.now(dt.UTC) + dt.timedelta(days=3))
    other = make(tmp_path, hosts=(AI, "web.test"))
    certificates = [x509.load_pem_x509_certificate(a.pem.encode()) for a in (first, later, other)]
    assert len({first.pem, later.pem, other.pem}) == 3
    assert len({certificate.public_key().public_numbers() for certificate in certificates}) == 1


def test_a_damaged_key_is_an_error_and_never_replaced(tmp_path):
    make(tmp_path)
    (tmp_path / "ca.key").write_text("garbage")
    with pytest.raises(KmError, match="CA key"):
        make(tmp_path)
    assert (tmp_path / "ca.key").read_text() == "garbage"


def test_contexts_are_kept_and_bounded(tmp_path, monkeypatch):
    from km_net_proxy.http import ca

    monkeypatch.setattr(ca, "_LEAF_CACHE_SIZE", 3)
    authority = make(tmp_path)
    first = authority.context("a.test")
    assert authority.context("a.test") is first
    for name in ("b.test", "c.test", "d.test"):
        authority.context(name)
    assert authority.context("a.test") is not first
    assert len(authority._contexts) == 3


async def program(*argv, **env):
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=-1, stderr=-1, env={"PATH": os.environ["PATH"], **env}
    )
    out, err = await process.communicate()
    return process.returncode, out, err


PYTHON = """
import sys, urllib.request, ssl
context = ssl.create_default_context(cafile=sys.argv[2])
context.verify_flags |= ssl.VERIFY_X509_STRICT
opener = urllib.request.build_opener(
    urllib.request.ProxyHandler({"https": sys.argv[1]}), urllib.request.HTTPSHandler(context=context)
)
print(opener.open(sys.argv[3], timeout=10).read().decode())
"""
NODE_JS = """
const [proxy, url] = process.argv.slice(1);
const http = require('http'), https = require('https'), p = new URL(proxy), u = new URL(url);
http.request({host: p.hostname, port: p.port, method: 'CONNECT', path: u.hostname + ':443',
  headers: {Host: u.hostname + ':443'}})
  .on('connect', (_, socket) => https.get(u, {socket, agent: false}, r => {
    r.on('data', d => process.stdout.write(d)); r.on('end', () => process.exit(0)); })
    .on('error', e => { console.error(e); process.exit(1); })).end();
"""


@pytest.mark.parametrize("client", ["curl", "python", "node", "openssl"])
def test_real_clients_accept_the_constrained_authority(client):
    tool = sys.executable if client == "python" else shutil.which(client)
    if tool is None:
        pytest.skip(f"{client} is not installed")

    async def main():
        async with Rig() as rig:
            await rig.serve(AI, ok(b"accepted"))
            await rig.up()
            proxy = f"http://127.0.0.1:{rig.proxy()}"
            url = f"https://{AI}/v1/models"
            ca = str(rig.ca)
            if client == "curl":
                code, out, err = await program(tool, "-sS", "-x", proxy, "--cacert", ca, url)
            elif client == "python":
                code, out, err = await program(tool, "-c", PYTHON, proxy, ca, url)
            elif client == "node":
                code, out, err = await program(tool, "-e", NODE_JS, proxy, url, NODE_EXTRA_CA_CERTS=ca)
            else:
                front = rig.front(AI, 443)
                code, out, err = await program(
                    tool, "s_client", "-connect", f"127.0.0.1:{front}", "-servername", AI,
                    "-CAfile", ca, "-verify_return_error", "-x509_strict", "-brief",
                )  # fmt: skip
                out = b"accepted" if b"Verification: OK" in err else out
            assert b"accepted" in out, err
            assert code == 0 or client == "openssl"

    run(main)


@pytest.mark.skipif(GO is None, reason="no Go tool chain is installed")
def test_go_accepts_the_constrained_authority(tmp_path):
    source = tmp_path / "main.go"
    source.write_text(
        'package main\nimport ("crypto/tls";"crypto/x509";"os")\n'
        "func main() { pem, _ := os.ReadFile(os.Args[1]); pool := x509.NewCertPool(); pool.AppendCertsFromPEM(pem)\n"
        'if _, err := tls.Dial("tcp", os.Args[2], &tls.Config{RootCAs: pool, ServerName: os.Args[3]});'
        " err != nil { panic(err) } }\n"
    )

    async def main():
        async with Rig() as rig:
            await rig.serve(AI, ok())
            await rig.up()
            code, _, err = await program(
                GO, "run", str(source), str(rig.ca), f"127.0.0.1:{rig.front(AI, 443)}", AI,
                HOME=str(tmp_path), GOFLAGS="-mod=mod",
            )  # fmt: skip
            assert code == 0, err

    run(main)


def test_a_leaf_for_a_host_outside_the_constraints_is_worthless(tmp_path):
    authority = make(tmp_path)
    server, client = authority.context("bank.test"), ssl.create_default_context(cadata=authority.pem)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    left = server.wrap_bio(incoming, outgoing, server_side=True)
    right = client.wrap_bio(outgoing, incoming, server_hostname="bank.test")

    def handshake():
        for _ in range(4):
            for side in (right, left):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue

    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree"):
        handshake()


def test_http2_is_not_offered_where_tls_is_opened():
    async def main():
        async with Rig() as rig:
            await rig.serve(AI, ok())
            await rig.up()
            _, writer = await asyncio.open_connection(
                "127.0.0.1",
                rig.front(AI, 443),
                ssl=rig.client_context(("h2", "http/1.1")),
                server_hostname=AI,
            )
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
            writer.close()

    run(main)


def test_a_client_that_does_not_trust_the_ca_leaves_a_record_and_no_harm():
    async def main():
        async with Rig() as rig:
            await rig.serve(AI, ok())
            await rig.up()
            with pytest.raises(ssl.SSLError):
                await asyncio.open_connection(
                    "127.0.0.1", rig.front(AI, 443), ssl=ssl.create_default_context(), server_hostname=AI
                )
            await until(lambda: any(event["kind"] == "tls_handshake_failed" for event in rig.events()))

    run(main)
