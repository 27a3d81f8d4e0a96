"""The bootstrap of a gate: its plan, its credentials and the sandbox's listeners (docs/internals.md)."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import asdict

from km_core.errors import ConfigError
from km_core.ledger.overlay import load_overlay
from km_host.inside import frames

if TYPE_CHECKING:
    import socket

    from km_host.backend import PodContext
    from km_host.listeners import Listeners


def make_bootstrap(
    context: PodContext, *, how: str, control_socket: Path, token: str, alias: str = ""
) -> dict[str, Any]:
    """
    Return the message a gate gets.

    Raises:
        ConfigError: a file that the configuration names cannot be read.
    """
    config = context.config
    return {
        "sandbox_id": context.id,
        "plan": context.plan.to_data(),
        "how": how,
        "state_dir": str(context.state_dir / "gate"),
        "audit_dir": str(context.audit_dir),
        "kmd_socket": str(control_socket),
        "token": token,
        "upstreams": {
            host: {"url": upstream.url, "ca_pem": _read(upstream.ca_file, f"upstreams.{host}.ca_file")}
            for host, upstream in config.upstreams.items()
        },
        "upstream_dns": upstream_dns(config.upstream_dns),
        "dns_name_budget": [config.dns_name_bytes, config.dns_name_bytes_per_hour],
        "upstream_proxy": config.upstream_proxy,
        "private_hosts": [list(pair) for pair in config.private_hosts],
        "prices": load_overlay(config),
        "openai_compatible_hosts": list(config.openai_compatible_hosts),
        "credentials": [rule.to_data() for rule in config.credentials],
        "aws": None if config.aws is None else asdict(config.aws),
        "alias": alias,
    }


def send_bootstrap(channel: socket.socket, bootstrap: dict[str, Any], listeners: Listeners) -> None:
    """Send the message with ``[tcp, dns]`` attached over a blocking socket."""
    frames.send(channel, bootstrap, (listeners.tcp.fileno(), listeners.dns.fileno()))


def upstream_dns(configured: str, resolv_conf: Path = Path("/etc/resolv.conf")) -> list[str]:
    """
    Return the resolvers the gate asks, as ``ADDRESS:PORT`` (IPv6 in brackets).

    Args:
        configured: ``upstream_dns`` of the configuration, ``ADDRESS[:PORT]``; empty for the host's own.
        resolv_conf: the host's list, used when nothing is configured.

    Raises:
        ConfigError: *configured* is not an address.
    """
    if configured:
        return [_endpoint(configured)]
    try:
        lines = resolv_conf.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    words = [line.split() for line in lines]
    found = []
    for word in words:
        if len(word) >= 2 and word[0] == "nameserver":
            try:
                found.append(_endpoint(word[1]))
            except ConfigError:
                continue
    return found


def _endpoint(text: str) -> str:
    host, port = text, "53"
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":") or port
    elif text.count(":") == 1:
        host, port = text.split(":")
    try:
        address = ipaddress.ip_address(host)
        number = int(port)
    except ValueError as error:
        raise ConfigError(
            f"upstream_dns must be ADDRESS[:PORT], not {text!r}",
            hint="for example 9.9.9.9 or [2620:fe::fe]:53",
        ) from error
    return f"[{address}]:{number}" if address.version == 6 else f"{address}:{number}"


def _read(path: str, where: str) -> str:
    if not path:
        return ""
    try:
        return Path(path).expanduser().read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("a CA file cannot be read", where=where, why=str(error)) from error
