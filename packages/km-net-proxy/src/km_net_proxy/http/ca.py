"""
The sandbox's own certificate authority and the leaves made from it.

The key is made by the gate, lives in its state directory and never enters the sandbox.  The authority
may sign for the intercepted hosts and nothing else (name constraints, RFC 5280 section 4.2.1.10), so
that even its theft would not let anyone impersonate another host to this sandbox.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import ssl
from collections import OrderedDict
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from km_core.errors import KmError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_BACKDATE = dt.timedelta(hours=1)
_LEAF_LIFE = dt.timedelta(hours=24)
_LEAF_CACHE_S = 12 * 3600.0
_LEAF_CACHE_SIZE = 1024
_MARGIN = dt.timedelta(hours=25)
_RENEW_BEFORE = dt.timedelta(hours=1)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Authority:
    """
    A per-sandbox CA: ECDSA P-256, path length 0, constrained to *hosts*.

    Args:
        certificate: the CA certificate.
        key: its private key.
        clock: the present time.
    """

    def __init__(
        self,
        certificate: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        *,
        clock: Callable[[], dt.datetime] = _now,
    ) -> None:
        self._certificate = certificate
        self._key = key
        self._clock = clock
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())
        self._leaf_key_pem = _key_pem(self._leaf_key)
        self._contexts: OrderedDict[str, tuple[float, ssl.SSLContext]] = OrderedDict()

    @classmethod
    def load_or_make(
        cls,
        directory: Path,
        hosts: Sequence[str],
        *,
        sandbox_id: str,
        life_s: int,
        clock: Callable[[], dt.datetime] = _now,
    ) -> Authority:
        """
        Load the authority from *directory*, or make it there.

        The key is kept as long as the directory; the certificate is made anew when it is about to
        end or when the intercepted hosts have changed.

        Args:
            directory: holds ``ca.key`` (0600) and ``ca.pem``.
            hosts: canonical names the authority may sign for.
            sandbox_id: part of the subject, for people who look at a certificate.
            life_s: how long the certificate is to be valid, in seconds.
            clock: the present time.

        Raises:
            KmError: the key on disk is damaged; nothing else is ever used in its place.
        """
        key_path, pem_path = directory / "ca.key", directory / "ca.pem"
        key = _load_key(key_path) if key_path.exists() else _make_key(key_path)
        certificate = _load_certificate(pem_path, key, hosts, clock())
        if certificate is None:
            certificate = _self_sign(key, hosts, sandbox_id, life_s, clock())
            _write(pem_path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        return cls(certificate, key, clock=clock)

    @classmethod
    def load(cls, certificate: Path, key: Path) -> Authority:
        """
        Load an authority that somebody else made; raises `KmError` when it cannot be read.

        Args:
            certificate: PEM file of the CA certificate.
            key: PEM file of its ECDSA key, without a passphrase.
        """
        try:
            loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
        except (OSError, ValueError) as error:
            raise KmError(
                "the CA certificate cannot be read", where=str(certificate), why=str(error)
            ) from error
        return cls(loaded, _load_key(key))

    def signs_for(self, name: str) -> bool:
        """Whether a leaf for a canonical name would be within the authority's name constraints."""
        try:
            found = self._certificate.extensions.get_extension_for_class(x509.NameConstraints)
        except x509.ExtensionNotFound:
            return True
        # As RFC 5280 section 4.2.1.10 has it: the name itself and what is below it.
        return any(
            isinstance(subtree, x509.DNSName)
            and (name == subtree.value or name.endswith(f".{subtree.value}"))
            for subtree in found.value.permitted_subtrees or ()
        )

    @property
    def pem(self) -> str:
        """The CA certificate, PEM."""
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")

    def context(self, name: str) -> ssl.SSLContext:
        """Return the server-side TLS context for a canonical name, from the cache or made now."""
        now = self._clock().timestamp()
        kept = self._contexts.get(name)
        if kept is not None and kept[0] > now:
            self._contexts.move_to_end(name)
            return kept[1]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.num_tickets = 1
        _load_chain(context, self._leaf(name) + self.pem.encode("ascii") + self._leaf_key_pem)
        self._contexts[name] = (now + _LEAF_CACHE_S, context)
        self._contexts.move_to_end(name)
        while len(self._contexts) > _LEAF_CACHE_SIZE:
            self._contexts.popitem(last=False)
        return context

    def _leaf(self, name: str) -> bytes:
        now = self._clock()
        try:
            alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            alternative = x509.DNSName(name)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])]))
            .issuer_name(self._certificate.subject)
            .public_key(self._leaf_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(now - _BACKDATE, self._certificate.not_valid_before_utc))
            .not_valid_after(min(now + _LEAF_LIFE, self._certificate.not_valid_after_utc))
            .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(sign=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(self._leaf_key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)


def _key_usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=not sign,
        crl_sign=not sign,
        encipher_only=False,
        decipher_only=False,
    )


def _constraints(hosts: Sequence[str]) -> x509.NameConstraints:
    permitted = [x509.DNSName(host) for host in sorted(set(hosts) | {"km.internal"})]
    everything = [
        x509.IPAddress(ipaddress.ip_network("0.0.0.0/0")),
        x509.IPAddress(ipaddress.ip_network("::/0")),
    ]
    return x509.NameConstraints(permitted_subtrees=permitted, excluded_subtrees=everything)


def _self_sign(
    key: ec.EllipticCurvePrivateKey, hosts: Sequence[str], sandbox_id: str, life_s: int, now: dt.datetime
) -> x509.Certificate:
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Klanker Maker"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"km sandbox {sandbox_id}"[:64]),
        ]
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + dt.timedelta(seconds=life_s) + _MARGIN)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(sign=False), critical=True)
        .add_extension(_constraints(hosts), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _load_certificate(
    path: Path, key: ec.EllipticCurvePrivateKey, hosts: Sequence[str], now: dt.datetime
) -> x509.Certificate | None:
    """Return the certificate on disk when it still fits, else None."""
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        constraints = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return None
    if certificate.public_key() != key.public_key() or constraints != _constraints(hosts):
        return None
    return certificate if certificate.not_valid_after_utc - now > _RENEW_BEFORE else None


def _make_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    _write(path, _key_pem(key), 0o600)
    return key


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError) as error:
        raise KmError(
            "the sandbox's CA key cannot be read",
            where=str(path),
            why=type(error).__name__,
            hint="remove the file; a new authority is made, and the sandbox must be created again",
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KmError("the sandbox's CA key is of the wrong kind", where=str(path))
    return key


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    """Write a file whole or not at all, never readable by others on the way."""
    temporary = path.with_suffix(path.suffix + ".new")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
    temporary.replace(path)


def _load_chain(context: ssl.SSLContext, pem: bytes) -> None:
    """Load certificate and key from memory: OpenSSL's Python binding takes paths only."""
    handle = os.memfd_create("leaf", os.MFD_CLOEXEC)
    try:
        os.write(handle, pem)
        context.load_cert_chain(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)
