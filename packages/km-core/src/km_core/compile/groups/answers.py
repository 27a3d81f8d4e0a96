"""Reading a group's answer: every entry opens a door, and a plugin may have written it."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from km_core.compile.groups.mirrors import host_entry
from km_core.errors import PlanError
from km_core.policy import forbidden_range, parse_address
from km_core.profile.grammar import env_name
from km_core.types import GroupResolution

_MAX_ENTRIES = 1024
_MAX_TEXT = 4096


def checked(name: str, answer: Any) -> GroupResolution:
    """
    Return a group's answer in its one form (hosts and variables sorted, each once).

    Args:
        name: of the group that was asked.
        answer: what it said; anything, whatever annotations promise.

    Raises:
        PlanError: it is no set of hosts.  A pattern, a bare name (every port), the name of another group
            or an address where no sandbox gets is no host; nothing but text that can be printed gets into
            a plan.
    """
    if not isinstance(answer, GroupResolution) or answer.name != name:
        raise _refused(name, "its answer is for another group, or is no GroupResolution")
    hosts = _items(name, "hosts", answer.hosts)
    private, env = (_pairs(name, part, getattr(answer, part)) for part in ("private", "env"))
    if not _is_text(answer.source):
        raise _refused(name, f"its source is no text of one line and at most {_MAX_TEXT} characters")
    for entry in hosts:
        _check_host(name, entry)
    known = {entry.rpartition(":")[0] for entry in hosts}
    for host, cidr in private:
        if host not in known:
            raise _refused(name, f"the exception {host} {cidr} is not for one of its hosts")
        _check_exception(name, host, cidr)
    for variable, _ in env:
        try:
            env_name(variable)
        except ValueError as error:
            raise _refused(name, f"the variable {variable!r} {error}") from None
    if len({variable for variable, _ in env}) != len(set(env)):
        raise _refused(name, "it sets a variable to two values")
    return evolve(
        answer,
        hosts=tuple(sorted(set(hosts))),
        private=tuple(sorted(set(private))),
        env=tuple(sorted(set(env))),
    )


def _check_host(name: str, entry: Any) -> None:
    if not _is_text(entry):
        raise _refused(name, f"{_brief(entry)} is not HOST:PORT")
    if "@" in entry:
        # What stands before it may be a password: not repeated.
        raise _refused(name, "an entry holds @, which neither a host nor a port has")
    host, _, port = entry.rpartition(":")
    try:
        canonical = host_entry(host, int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 0)
    except ValueError as error:
        raise _refused(name, f"{entry!r} is not HOST:PORT: {error}") from None
    if canonical != entry:
        raise _refused(name, f"{entry!r} is not in canonical form, which is {canonical!r}")
    _check_reachable(name, host)


def _check_exception(name: str, host: str, cidr: str) -> None:
    base, _, length = cidr.partition("/")
    address = parse_address(base)
    if address is None or length != str(address.max_prefixlen):
        raise _refused(name, f"the exception {host} {cidr} is not for one address")
    _check_reachable(name, base)


def _check_reachable(name: str, host: str) -> None:
    address = parse_address(host)
    found = forbidden_range(address) if address is not None else None
    if found is not None and found.never:
        raise _refused(name, f"{host} is {found.what}, where no sandbox gets")


def _items(name: str, part: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)):
        raise _refused(name, f"{part} is no tuple")
    if len(value) > _MAX_ENTRIES:
        raise _refused(name, f"{part} has {len(value)} entries, at most {_MAX_ENTRIES} can be reviewed")
    return tuple(value)


def _pairs(name: str, part: str, value: Any) -> tuple[tuple[str, str], ...]:
    for index, pair in enumerate(_items(name, part, value)):
        if not isinstance(pair, tuple) or len(pair) != 2 or not all(map(_is_text, pair)):
            raise _refused(name, f"{part}[{index}] is no pair of printable texts")
    return tuple(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= _MAX_TEXT


def _brief(value: Any) -> str:
    return repr(value)[:80] if isinstance(value, (str, bytes, int)) else type(value).__name__


def _refused(name: str, why: str) -> PlanError:
    return PlanError(
        "the egress group cannot be used",
        where=name,
        why=why,
        hint="this is a fault of what offers the group",
    )
