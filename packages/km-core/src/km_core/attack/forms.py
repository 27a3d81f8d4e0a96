"""The ways in which an address or a name can be written so that two parsers disagree about it."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from km_core.plan import SandboxPlan

_SHARED = ip_network("100.64.0.0/10")
_WIDE = str.maketrans("0123456789.", "０１２３４５６７８９。")


def address_forms(kind: str, address: str, port: int, suffix: str) -> list[str]:
    """
    Return ``HOST:PORT`` forms that some parser reads as *address*.

    Args:
        kind: ``brackets``, ``dots-and-case``, ``encoded``, ``numbers`` or ``embedded``.
        address: an IPv4 address where the canary listens.
        port: its port.
        suffix: a name that the profile allows, to hide behind.
    """
    number = int(IPv4Address(address))
    a, b, c, d = IPv4Address(address).packed
    high, low = f"{number >> 16:x}", f"{number & 0xFFFF:x}"
    hosts = {
        "brackets": [
            f"[{address}]",
            f"[[{address}]]",
            f"[[::ffff:{address}]]",
            f"[::ffff:{address}",
            f"{address}]",
        ],
        "dots-and-case": [
            f"{address}.",
            f"[::FFFF:{address}]",
            address.translate(_WIDE),
            f"{address}..",
            f".{address}",
        ],
        "encoded": [
            address.replace(".", "%2e"),
            address.replace(".", "%252e"),
            f"{suffix}@{address}",
            f"{address}\t",
            f"{address}%00.{suffix}",
            f"{address}#.{suffix}",
            f"{address}\\.{suffix}",
            f"{address};.{suffix}",
            f"{suffix}:443@{address}",
        ],
        "numbers": [
            str(number),
            f"0x{number:08x}",
            f"0{number:o}",
            f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
            f"0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}",
            f"{a}.{b}.{c << 8 | d}",
            f"{a}.{b << 16 | c << 8 | d}",
            "0.0.0.0",  # noqa: S104 - dialled, not bound: it means this host
            "0",
            "127.1",
            "localhost",
        ],
        "embedded": [
            f"[::ffff:{address}]",
            f"[::ffff:{high}:{low}]",
            f"[::{address}]",
            f"[::ffff:0:{address}]",
            f"[64:ff9b::{address}]",
            f"[64:ff9b:1::{address}]",
            f"[2002:{high}:{low}::1]",
            f"[::ffff:{address}%lo]",
            "[::1]",
            "[::]",
        ],
    }[kind]
    forms = [f"{host}:{port}" for host in hosts]
    if kind == "encoded":
        forms += [f"{address}:{port}:80", f"{address}:0{port}", f"{address}:+{port}", f"{address}: {port}"]
    return forms


def look_alikes(plan: SandboxPlan, token: str) -> list[str]:
    """Return names that begin or end like the plan's exact hosts and belong to nobody (RFC 6761)."""
    hosts = [rule.pattern for rule in plan.network.hosts if rule.kind == "exact"][:5] or ["example.com"]
    return [f"{host}.{token}.invalid" for host in hosts] + [f"{token}-{host}.invalid" for host in hosts]


def targets(kind: str, plan: SandboxPlan, token: str, addresses: Sequence[str], port: int) -> list[str]:
    """Return ``HOST:PORT`` targets of CONNECT that nothing should open, by *kind*."""
    if kind == "look-alikes":
        return [f"{name}:443" for name in look_alikes(plan, token)]
    if kind == "shared":
        own = [address for address in addresses if ip_address(address) in _SHARED]
        return [f"{address}:{port}" for address in (*own, "100.64.0.1", "100.127.255.254")]
    shown = [f"[{address}]" if ":" in address else address for address in addresses]
    return [f"{token}.invalid:443", f"{token}.km.internal:443", *(f"{address}:{port}" for address in shown)]
