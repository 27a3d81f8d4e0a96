"""
Whom programs inside a sandbox trust: the authorities that the host trusts, and the sandbox's own.

Programs look in different places: most in a bundle of PEM certificates that a variable names, those of Java
in a key store of its own.  Both are made here from the same certificates, so that no program needs to be
told anything.
"""

from __future__ import annotations

import binascii
import contextlib
import hashlib
import os
import ssl
import struct
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
"""Where the bundle lies inside: Debian's place, which Go, GnuTLS and Alpine know too."""

JAVA_STORE = "/etc/ssl/certs/java/cacerts"
"""Where Debian's JDKs, and others packaged for it, have their key store."""

CA_VARIABLES = (
    "AWS_CA_BUNDLE",
    "CODEX_CA_CERTIFICATE",
    "CURL_CA_BUNDLE",
    "DENO_CERT",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
)
"""Variables by which programs that bring their own list of authorities find `BUNDLE`."""

SYSTEM_BUNDLES = (
    BUNDLE,
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
"""Where Debian, Fedora, SUSE and Alpine keep theirs."""

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_MAGIC, _VERSION, _TRUSTED = 0xFEEDFEED, 2, 2
_PASSWORD = "changeit"  # noqa: S105 - what every JDK's own store has; it guards nothing


def host_bundle() -> Path | None:
    """
    Return the file of authorities that programs on this host trust, links followed; None when there is none.

    The variable ``SSL_CERT_FILE`` (OpenSSL) comes first, then the places of the distributions, then what
    Python's own OpenSSL was built with.
    """
    found = ssl.get_default_verify_paths()
    for name in (os.environ.get("SSL_CERT_FILE"), *SYSTEM_BUNDLES, found.cafile):
        if name and Path(name).is_file():
            return Path(name).resolve()
    return None


def bundle(*texts: str) -> str:
    """
    Return the certificates of *texts* as one PEM bundle, each once, in their order.

    Anything else in a text, a private key above all, is left out; so is what is no base64.
    """
    seen = dict.fromkeys(der for text in texts for der in _certificates(text))
    return "".join(f"{_BEGIN}\n{_wrapped(der)}\n{_END}\n" for der in seen)


def java_store(pem: str) -> bytes:
    """
    Return a key store in Java's own format (JKS version 2) that trusts the certificates of *pem*.

    Every JDK reads it whatever its default format is (``keystore.type.compat``).  The layout is that of the
    class ``sun.security.provider.JavaKeyStore``: the digest at the end tells damage from wholeness, with a
    password that everybody knows.
    """
    ders = list(dict.fromkeys(_certificates(pem)))
    body = bytearray(struct.pack(">III", _MAGIC, _VERSION, len(ders)))
    for number, der in enumerate(ders):
        body += struct.pack(">I", _TRUSTED) + _utf(f"km-{number:04d}") + struct.pack(">Q", 0)
        body += _utf("X.509") + struct.pack(">I", len(der)) + der
    seal = _PASSWORD.encode("utf-16-be") + b"Mighty Aphrodite" + bytes(body)
    return bytes(body) + hashlib.sha1(seal, usedforsecurity=False).digest()


def java_stores(jvms: Path = Path("/usr/lib/jvm")) -> list[str]:
    """
    Return where the JDKs below *jvms* look for their key stores, each place once.

    A link is followed until it leads into ``/etc``, since a sandbox's ``/etc`` is not the host's.
    """
    places: dict[str, None] = {}
    for home in sorted(jvms.glob("*")):
        for name in ("lib/security", "jre/lib/security"):
            path = os.path.join(os.path.realpath(home / name), "cacerts")  # noqa: PTH118 - see `_place`
            if os.path.lexists(path):
                places[_place(path)] = None
    return list(places)


def _place(path: str) -> str:
    """Follow links as `java_stores` says; pathlib would resolve those below ``/etc`` too."""
    for _ in range(8):
        if path.startswith("/etc/") or not os.path.islink(path):  # noqa: PTH114 - text in, text out
            break
        joined = os.path.join(os.path.dirname(path), os.readlink(path))  # noqa: PTH115, PTH118, PTH120 - as above
        path = os.path.join(os.path.realpath(os.path.dirname(joined)), os.path.basename(joined))  # noqa: PTH118, PTH119, PTH120 - as above
    return path


def _certificates(text: str) -> Iterator[bytes]:
    for block in text.split(_BEGIN)[1:]:
        content, end, _ = block.partition(_END)
        with contextlib.suppress(ValueError):
            der = binascii.a2b_base64("".join(content.split()), strict_mode=True)
            if end and der:
                yield der


def _wrapped(der: bytes) -> str:
    text = binascii.b2a_base64(der, newline=False).decode("ascii")
    return "\n".join([text[at : at + 64] for at in range(0, len(text), 64)])


def _utf(text: str) -> bytes:
    """Return ``java.io.DataOutput.writeUTF`` of ASCII text."""
    data = text.encode("ascii")
    return struct.pack(">H", len(data)) + data
