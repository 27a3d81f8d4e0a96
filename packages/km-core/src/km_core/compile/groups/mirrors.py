"""From the URLs of package mirrors to what a plan may hold: hosts with ports, never a credential."""

from __future__ import annotations

import json
import socket
import subprocess
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from attrs import define, field

from km_core.errors import PlanError
from km_core.policy import canonical_name, forbidden_range, parse_address

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_PORTS = {"https": 443, "http": 80}
_ASK_SECONDS = 60
_MAX_HOSTS = 64
"""More than anybody configures; each one is also looked up."""


@define
class Mirrors:
    """
    The mirrors of one group.

    Attributes:
        group: its name, the place that errors name.
        client: the program whose configuration they are from.
        hosts: ``host:port`` of each, in canonical form; an IPv6 address in brackets.
        urls: as configured, in that order.
    """

    group: str
    client: str
    hosts: set[str] = field(factory=set)
    urls: list[str] = field(factory=list)

    def add(self, url: str) -> bool:
        """
        Take over one URL; return False for one that leads to no host (``file:``).

        Raises:
            PlanError: it holds a credential, or leads where no sandbox gets; it is not repeated.
        """
        parts = self._split(url)
        if parts.scheme not in _PORTS or not parts.hostname:
            return False
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise self.refusal(
                "a mirror's URL holds credentials or a query, which do not enter a sandbox",
                hint=f"configure {self.client} with plain URLs",
            )
        self.add_host(parts.hostname, _PORTS[parts.scheme] if parts.port is None else parts.port)
        self.urls.append(url)
        return True

    def add_host(self, host: str, port: int) -> None:
        """Take over one host, in any spelling."""
        address = parse_address(host)
        if address is not None:
            forbidden = forbidden_range(address)
            if forbidden is not None and forbidden.never:
                raise self.refusal(
                    f"a mirror is at {address} ({forbidden.what}), where no sandbox gets",
                    hint=f"configure {self.client} with a mirror that other machines reach too",
                )
        try:
            entry = host_entry(host, port)
        except ValueError as error:
            raise self.refusal("a mirror's host is no host name", why=str(error)) from None
        if entry.startswith("localhost:") or ".localhost:" in entry:
            raise self.refusal(
                "a mirror is on this machine itself, where no sandbox gets",
                hint=f"configure {self.client} with a mirror that other machines reach too",
            )
        self.hosts.add(entry)
        if len(self.hosts) > _MAX_HOSTS:
            raise self.refusal(
                f"there are more than {_MAX_HOSTS} mirrors",
                hint=f"configure {self.client} with those that the sandbox needs",
            )

    def refusal(self, what: str, *, why: str = "", hint: str = "") -> PlanError:
        """Return the error that ends the resolution of this group."""
        return PlanError(what, where=self.group, why=why, hint=hint)

    def _split(self, url: str) -> SplitResult:
        try:
            if not url.isprintable() or " " in url:
                # Left out silently below, and the URL is handed to the client inside as it is.
                raise ValueError("a URL holds no blanks and no control characters")
            parts = urlsplit(url)
            _ = parts.port  # raises for a port that is none
        except ValueError:
            raise self.refusal(
                "a mirror's URL cannot be read", hint=f"look at {self.client}'s configuration"
            ) from None
        return parts


def host_entry(host: str, port: int) -> str:
    """
    Return ``HOST:PORT`` in the one form a group's hosts have.

    Args:
        host: a name or an address in any spelling; an IPv6 address with or without brackets.
        port: 1 to 65535.

    Raises:
        ValueError: it is neither a name nor an address, or the port is out of range.
    """
    if not 0 < port < 65536:
        raise ValueError("a port is a number from 1 to 65535")
    address = parse_address(host)
    if address is None:
        return f"{canonical_name(host)}:{port}"
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def private_addresses(hosts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """
    Return exactly the private addresses that mirrors' names have now, as host routes.

    Loopback, link-local and metadata addresses are never among them, whatever a resolver answers.  A
    name that cannot be resolved now gets no exception: it stays allowed, but not at a private address.
    """
    found = set()
    for entry in hosts:
        host, _, port = entry.rpartition(":")
        if parse_address(host) is not None:
            continue
        try:
            answers = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        except OSError:
            continue
        for answer in answers:
            address = ip_address(str(answer[4][0]).partition("%")[0])
            entry_range = forbidden_range(address)
            if entry_range is not None and not entry_range.never:
                found.add((host, f"{address}/{address.max_prefixlen}"))
    return tuple(sorted(found))


def ask(command: Sequence[str], *, group: str) -> str | None:
    """
    Run a package client and return what it prints; None when it fails.

    It runs in ``/``: a package client also reads configuration in the current directory, and what lies
    there (a repository just cloned) has no say in what a sandbox may reach.

    Raises:
        PlanError: it does not answer within a minute.
    """
    try:
        run = subprocess.run(
            list(command),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ASK_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
            cwd="/",
        )
    except subprocess.TimeoutExpired:
        raise PlanError(f"{command[0]} does not answer within {_ASK_SECONDS} seconds", where=group) from None
    except OSError:
        return None
    return run.stdout if run.returncode == 0 else None


def ask_json(command: Sequence[str], *, group: str) -> dict[str, object] | None:
    """Run a package client that prints a JSON object; None when it does not."""
    text = ask(command, group=group)
    if text is None:
        return None
    try:
        answer = json.loads(text)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None
