"""
What a gate is given at its start, and the channel it answers on (docs/internals.md).

The listeners are checked before anything is done with them: both from one network namespace that is not
the gate's own, of the kinds that were promised.  A gate that listened in its own namespace would serve
the host, and one whose two sockets came from different sandboxes would mix them.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from km_core.errors import KmError
from km_core.plan import SandboxPlan
from km_core.secrets import AwsAccess, CredentialRule
from km_host.inside import frames
from km_host.listeners import netns_cookie
from km_net_proxy.http.dial import Override

if TYPE_CHECKING:
    from collections.abc import Mapping


class BootstrapError(KmError):
    """The bootstrap is not what the contract says; the gate does not start."""

    code = "bootstrap"


@frozen
class Bootstrap:
    """
    A parsed bootstrap.

    Attributes:
        sandbox_id: whose gate it is.
        plan: the sandbox's plan.
        how: ``tproxy`` or ``redirect``.
        state_dir: for the CA, synthetic names and the settlement journal.
        audit_dir: for the chain.
        kmd_socket: the sandbox's socket of the control plane.
        token: credential for it; not in the repr.
        upstreams: stand-ins by canonical name.
        upstream_dns: resolvers, ``ADDRESS:PORT``.
        upstream_proxy: the operator's own proxy, or empty.
        private_hosts: ``(host, CIDR)`` exceptions.
        prices: overlay of the price table.
        openai_compatible_hosts: hosts metered in OpenAI's shapes besides its own.
        dns_name_budget: bytes that the names below a suffix may carry at once, and earn back in an hour.
        alias: how the operator calls the sandbox.
        credentials: the operator's rules for credentials.
        aws: whose requests to AWS pass.
    """

    sandbox_id: str
    plan: SandboxPlan
    how: str
    state_dir: Path
    audit_dir: Path
    kmd_socket: Path
    token: str
    upstreams: Mapping[str, Override]
    upstream_dns: tuple[str, ...]
    upstream_proxy: str
    private_hosts: tuple[tuple[str, str], ...]
    prices: Mapping[str, Any]
    alias: str
    openai_compatible_hosts: tuple[str, ...] = ()
    dns_name_budget: tuple[int, int] = (8192, 8192)
    credentials: tuple[CredentialRule, ...] = ()
    aws: AwsAccess = field(factory=AwsAccess)

    def __repr__(self) -> str:
        return f"Bootstrap({self.sandbox_id})"


def receive(channel: socket.socket) -> tuple[Bootstrap, socket.socket, socket.socket]:
    """
    Take the bootstrap and the listeners from a blocking channel.

    Returns:
        The bootstrap, the TCP listener and the DNS socket.

    Raises:
        BootstrapError: what came is not a bootstrap.
    """
    try:
        frame = frames.receive(channel, max_descriptors=2)
    except (frames.FrameError, OSError) as error:
        raise BootstrapError("the bootstrap cannot be read", why=str(error)) from error
    if frame is None:
        raise BootstrapError("the channel ended before the bootstrap")
    data, descriptors = frame
    if len(descriptors) != 2:
        frames.close_all(descriptors)
        raise BootstrapError(f"{len(descriptors)} descriptors came, two listeners are expected")
    tcp, dns = (socket.socket(fileno=descriptor) for descriptor in descriptors)
    try:
        return parse(data), tcp, dns
    except BaseException:
        tcp.close()
        dns.close()
        raise


def parse(data: Mapping[str, Any]) -> Bootstrap:
    """
    Read the message's JSON.

    Raises:
        BootstrapError: a member is missing or of the wrong kind; the token is never shown.
    """
    try:
        how = data["how"]
        if how not in ("tproxy", "redirect"):
            raise ValueError("how must be tproxy or redirect")
        return Bootstrap(
            sandbox_id=_text(data["sandbox_id"]),
            plan=SandboxPlan.from_data(data["plan"]),
            how=how,
            state_dir=Path(_text(data["state_dir"])),
            audit_dir=Path(_text(data["audit_dir"])),
            kmd_socket=Path(_text(data["kmd_socket"])),
            token=_text(data["token"]),
            upstreams={
                str(host): Override.from_url(str(host), _text(entry["url"]), str(entry.get("ca_pem") or ""))
                for host, entry in (data.get("upstreams") or {}).items()
            },
            upstream_dns=tuple(_text(server) for server in data.get("upstream_dns") or ()),
            upstream_proxy=str(data.get("upstream_proxy") or ""),
            private_hosts=tuple((_text(host), _text(cidr)) for host, cidr in data.get("private_hosts") or ()),
            prices=dict(data.get("prices") or {}),
            alias=str(data.get("alias") or ""),
            openai_compatible_hosts=tuple(_text(host) for host in data.get("openai_compatible_hosts") or ()),
            dns_name_budget=_pair(data["dns_name_budget"]),
            credentials=tuple(CredentialRule.from_data(rule) for rule in data.get("credentials") or ()),
            aws=AwsAccess.from_data(data.get("aws") or {}),
        )
    except KeyError as error:
        raise BootstrapError("the bootstrap lacks a member", why=str(error)) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise BootstrapError("the bootstrap is malformed", why=str(error)) from error


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a text is expected")
    return value


def _pair(value: Any) -> tuple[int, int]:
    first, second = value
    if type(first) is not int or type(second) is not int or first < 1 or second < 0:
        raise ValueError("two numbers are expected")
    return first, second


def check_listeners(tcp: socket.socket, dns: socket.socket) -> None:
    """
    Check that the listeners are the sandbox's.

    Raises:
        BootstrapError: they are of the wrong kind, of different namespaces, or of the gate's own.
    """
    try:
        if tcp.type != socket.SOCK_STREAM or dns.type != socket.SOCK_DGRAM:
            raise BootstrapError("the listeners are not a TCP and a UDP socket")
        if not tcp.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise BootstrapError("the TCP socket does not listen")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mine:
            cookies = [netns_cookie(sock) for sock in (tcp, dns, mine)]
    except OSError as error:
        raise BootstrapError("the listeners cannot be checked", why=str(error)) from error
    if cookies[0] != cookies[1]:
        raise BootstrapError("the listeners are of two network namespaces")
    if cookies[0] == cookies[2]:
        raise BootstrapError("the listeners are of the gate's own network namespace")


def open_channel(arguments: list[str]) -> socket.socket:
    """
    Return the channel named on the command line: ``--fd N`` or ``--connect PATH``.

    Raises:
        BootstrapError: the arguments are others, or the channel is not there.
    """
    try:
        match arguments:
            case ["--fd", number]:
                os.set_inheritable(int(number), False)
                return socket.socket(fileno=int(number))
            case ["--connect", path]:
                channel = socket.socket(socket.AF_UNIX)
                try:
                    channel.connect(path)
                except BaseException:
                    channel.close()
                    raise
                return channel
    except (OSError, ValueError) as error:
        raise BootstrapError("the bootstrap channel cannot be opened", why=str(error)) from error
    raise BootstrapError("usage: km-sidecar gate --fd N | --connect PATH")
