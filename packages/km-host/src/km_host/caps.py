"""What this host can do: one question and one clear error for each part a sandbox needs."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

from km_core.errors import KmError, ProvisionError
from km_host import listeners, namespaces
from km_host.inside import frames

PACKAGES = {"bwrap": "bubblewrap", "nft": "nftables", "ip": "iproute2"}
"""Program to the package that most distributions ship it in."""

MINIMUM_BUBBLEWRAP = (0, 8)
"""The first version with ``--disable-userns``."""

_SYSCTL = Path("/proc/sys")
_SWITCHES = (
    (
        "user/max_user_namespaces",
        "0",
        "user namespaces are switched off (user.max_user_namespaces = 0)",
        "sysctl user.max_user_namespaces=15000",
    ),
    (
        "kernel/unprivileged_userns_clone",
        "0",
        "user namespaces are for root only here (kernel.unprivileged_userns_clone = 0)",
        "sysctl kernel.unprivileged_userns_clone=1, or run km as root",
    ),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "AppArmor takes the rights of user namespaces away (kernel.apparmor_restrict_unprivileged_userns = 1)",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile with userns, or run km as root",
    ),
)


def find_program(name: str) -> str:
    """
    Return the path of a program that is run with rights over namespaces.

    Raises:
        ProvisionError: it is not installed in a system directory.
    """
    path = shutil.which(name, path=listeners.SYSTEM_PATH)
    if path is None:
        package = PACKAGES.get(name, name)
        raise ProvisionError(
            f"the program {name} is missing",
            why=f"looked in {listeners.SYSTEM_PATH}",
            hint=f"install the package {package}",
        )
    return path


def missing_programs(names: tuple[str, ...] = tuple(PACKAGES)) -> tuple[KmError, ...]:
    """Return one error for each program that is not installed."""
    found = []
    for name in names:
        try:
            find_program(name)
        except ProvisionError as error:
            found.append(error)
    return tuple(found)


def bubblewrap_obstacle() -> KmError | None:
    """Return why the installed bubblewrap cannot be used, or None; a missing one is not its business."""
    try:
        path = find_program("bwrap")
    except ProvisionError:
        return None
    words = subprocess.run(
        [path, "--version"], capture_output=True, text=True, check=False, timeout=10
    ).stdout.split()
    numbers = tuple(int(part) for part in (words[-1] if words else "").split(".")[:2] if part.isdigit())
    if numbers >= MINIMUM_BUBBLEWRAP:
        return None
    found = ".".join(map(str, numbers)) or "an unknown version"
    wanted = ".".join(map(str, MINIMUM_BUBBLEWRAP))
    return ProvisionError(
        f"bubblewrap is too old: {found}, {wanted} is needed", where=path, hint="install a newer bubblewrap"
    )


def user_namespace_obstacle(*, uid: int | None = None, sysctl: Path = _SYSCTL) -> KmError | None:
    """
    Return why this user cannot have user namespaces as far as the kernel's switches say, or None.

    Reads switches only; `probe_namespaces` tries.
    """
    uid = os.getuid() if uid is None else uid
    for name, bad, what, hint in _SWITCHES:
        if uid == 0 and name.startswith("kernel/"):
            continue
        try:
            value = (sysctl / name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if value == bad:
            return ProvisionError(what, where=name.replace("/", "."), hint=hint)
    return None


def explain_namespace_error(error: OSError) -> KmError:
    """Return what a failed attempt to make namespaces means here."""
    obstacle = user_namespace_obstacle()
    if obstacle is not None:
        return obstacle
    return ProvisionError(
        "this process may not make namespaces",
        why=str(error),
        hint="inside a container its engine forbids it: use the docker substrate, or run km on the host",
    )


def probe_namespaces(timeout_s: float = 20.0) -> str:
    """
    Make a user and a network namespace and the listeners in them, for real, in a process that then ends.

    Returns:
        How connections are steered here: ``tproxy`` or ``redirect``.

    Raises:
        KmError: it does not work; says what to change.
    """
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:  # pragma: no cover - the child of a fork
        _probe_child(theirs, ours)
    theirs.close()
    ours.settimeout(timeout_s)
    try:
        message: dict[str, Any] = {}
        with ours:
            for step in ("unshared", "made"):
                answer = frames.receive(ours)
                if answer is None:
                    raise ProvisionError("the probe of namespaces ended early", where=step)
                message = answer[0]
                if "errno" in message:
                    raise explain_namespace_error(OSError(message["errno"], str(message["error"])))
                if "error" in message:
                    raise user_namespace_obstacle() or ProvisionError(
                        "the listeners cannot be made", why=str(message["error"])
                    )
                if step == "unshared":
                    namespaces.map_to_root(child, os.getuid(), os.getgid())
                    frames.send(ours, {"mapped": True})
            return str(message["how"])
    except (OSError, frames.FrameError) as error:
        raise ProvisionError("the probe of namespaces failed", why=str(error)) from error
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _probe_child(channel: socket.socket, other: socket.socket) -> None:  # pragma: no cover - after a fork
    other.close()
    try:
        try:
            namespaces.unshare(namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWNET)
        except OSError as error:
            frames.send(channel, {"errno": error.errno, "error": str(error)})
            os._exit(1)
        frames.send(channel, {"unshared": True})
        frames.receive(channel)
        namespaces.become_root_inside()
        with_listeners = listeners.make_listeners()
        frames.send(channel, {"how": with_listeners.how})
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent is told and this process ends
        frames.send(channel, {"error": str(error)})
    finally:
        os._exit(0)
