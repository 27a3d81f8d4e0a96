"""Authorities for programs inside: one bundle, one Java key store, nothing but certificates."""

from __future__ import annotations

import base64
import hashlib
import shutil
import ssl
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from km_host import trust


def pem(der: bytes) -> str:
    return ssl.DER_cert_to_PEM_cert(der)


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=6), st.text(max_size=40))
def test_a_bundle_holds_every_certificate_once_and_nothing_else(ders, between):
    text = between.replace("-", "").join(map(pem, ders))
    made = trust.bundle(text, text)
    assert made == "".join(pem(der) for der in dict.fromkeys(ders))
    assert trust.bundle(made) == made


def test_a_private_key_beside_certificates_stays_outside():
    key = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"
    assert trust.bundle(key + pem(b"one") + key) == pem(b"one")


def test_what_is_no_base64_is_left_out():
    damaged = "-----BEGIN CERTIFICATE-----\nAAA\n-----END CERTIFICATE-----\n"
    assert trust.bundle(damaged + pem(b"one")) == pem(b"one")


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=6, unique=True))
def test_a_java_store_ends_with_the_digest_that_tells_damage(ders):
    store = trust.java_store("".join(map(pem, ders)))
    body, digest = store[:-20], store[-20:]
    assert body[:12] == bytes.fromhex("feedfeed00000002") + len(ders).to_bytes(4, "big")
    assert all(der in body for der in ders)
    salt = "changeit".encode("utf-16-be") + b"Mighty Aphrodite"
    assert hashlib.sha1(salt + body, usedforsecurity=False).digest() == digest


@pytest.mark.skipif(shutil.which("keytool") is None, reason="no keytool on this machine: an optional client")
def test_javas_own_tool_reads_the_store_with_and_without_its_password(tmp_path):
    found = trust.host_bundle()
    if found is None:
        pytest.skip("no authorities on this machine: an optional client")
    text = trust.bundle(found.read_text(encoding="utf-8", errors="replace"))
    (tmp_path / "store").write_bytes(trust.java_store(text))
    command = ["keytool", "-list", "-rfc", "-keystore", str(tmp_path / "store"), "-storepass", "changeit"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    blocks = done.stdout.replace("\r", "").split("-----BEGIN CERTIFICATE-----\n")[1:]
    listed = {base64.b64decode(block.partition("-----END")[0]) for block in blocks}
    wanted = text.split("-----BEGIN CERTIFICATE-----\n")[1:]
    assert listed == {base64.b64decode(block.partition("-----END")[0]) for block in wanted}


def test_the_operators_choice_of_authorities_comes_first(tmp_path, monkeypatch):
    chosen = tmp_path / "chosen.pem"
    chosen.write_text(pem(b"one"))
    monkeypatch.setenv("SSL_CERT_FILE", str(chosen))
    assert trust.host_bundle() == chosen.resolve()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "absent"))
    assert trust.host_bundle() != chosen.resolve()


def test_key_stores_are_named_where_a_sandbox_has_its_own_files(tmp_path):
    def jdk(name):
        (tmp_path / name / "lib/security").mkdir(parents=True)
        return tmp_path / name / "lib/security/cacerts"

    jdk("debian").symlink_to("/etc/ssl/certs/java/cacerts")
    jdk("fedora").symlink_to("/etc/pki/java/cacerts")
    own = jdk("own")
    own.write_bytes(b"")
    jdk("linked").symlink_to(own)
    (tmp_path / "alias").symlink_to("own")
    assert trust.java_stores(tmp_path) == [
        str(own.resolve()),
        "/etc/ssl/certs/java/cacerts",
        "/etc/pki/java/cacerts",
    ]
    assert trust.java_stores(tmp_path / "absent") == []
