"""
The process that becomes a sandbox.

Forked by the supervisor, it makes the outer user and network namespace, the rules and the listeners in
them, hands the listeners over and waits.  On ``start`` it becomes bubblewrap, so that the supervisor's
child is the sandbox from the first to the last moment and dies with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from km_core.errors import KmError
from km_host import caps, namespaces
from km_host.fds import close_other_descriptors
from km_host.inside import frames
from km_host.keyring import join_fresh_session_keyring
from km_host.listeners import ListenerError, make_listeners, send_listeners

if TYPE_CHECKING:
    from collections.abc import Sequence

    from km_substrate_local.host_ids import HostIds

CHANNEL_FD, SECCOMP_FD = 3, 4
"""Where bubblewrap finds the first process's channel and the filter."""
STAGE = "/tmp"  # noqa: S108 - covered by a file system of our own, in a mount namespace of our own


def staged(index: int) -> str:
    """Return where the source number *index* is in the holder's own mount namespace."""
    return f"{STAGE}/km-{index}"


def fork_holder(sources: Sequence[Path], ids: HostIds) -> tuple[int, socket.socket]:
    """
    Fork the holder; returns its pid and the supervisor's end of its channel.

    Args:
        sources: host paths that bubblewrap will need; for root they are bound where the workload's uid
            can reach them (`staged`), since the directories above may be root's alone.
        ids: the workload's ids on the host.
    """
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _hold(theirs, sources, ids, parent)
    theirs.close()
    return pid, ours


def _hold(channel: socket.socket, sources: Sequence[Path], ids: HostIds, parent: int) -> NoReturn:
    code = 1
    try:
        # Nothing of the supervisor's event loop may run here.
        signal.set_wakeup_fd(-1)
        for number in range(1, signal.NSIG):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        close_other_descriptors((0, 1, 2, channel.fileno()))
        _enter(channel, sources, ids, parent)
        listeners = make_listeners()
        send_listeners(channel, listeners)
        listeners.close()
        received = frames.receive(channel, max_descriptors=3)
        if received is not None:
            _become_sandbox(channel, *received)
        code = 0
    except (ListenerError, OSError, KmError, frames.FrameError) as error:
        message: dict[str, Any] = {"error": str(error)}
        if isinstance(error, KmError):
            message["hint"] = error.hint
        with contextlib.suppress(OSError):
            frames.send(channel, message)
    except BaseException as error:  # noqa: BLE001 - this process is a fork: it must never return to the loop
        sys.stderr.write(f"holder: {error!r}\n")
        sys.stderr.flush()
    finally:
        os._exit(code)


def _enter(channel: socket.socket, sources: Sequence[Path], ids: HostIds, parent: int) -> None:
    if not ids.is_own:
        _stage(sources)
    try:
        namespaces.unshare(namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWNET)
    except OSError as error:
        raise caps.explain_namespace_error(error) from error
    frames.send(channel, {"unshared": True})
    if frames.receive(channel) is None:
        os._exit(1)
    namespaces.become_root_inside()
    join_fresh_session_keyring()
    # After the last change of ids, which takes such an order back.
    namespaces.die_with_parent(parent)


def _stage(sources: Sequence[Path]) -> None:
    """Bind *sources* below a fresh file system that only this process and its children see."""
    namespaces.unshare(namespaces.CLONE_NEWNS)
    namespaces.mount("none", "/", flags=namespaces.MS_REC | namespaces.MS_PRIVATE)
    # Opened before the stage covers what may lie below it.
    opened = [os.open(source, os.O_PATH | os.O_CLOEXEC) for source in sources]
    namespaces.mount("tmpfs", STAGE, "tmpfs", namespaces.MS_NOSUID | namespaces.MS_NODEV, "mode=0755,size=1m")
    for index, descriptor in enumerate(opened):
        target = Path(staged(index))
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            target.mkdir(mode=0o755)
        else:
            target.touch(mode=0o644)
        namespaces.mount(
            f"/proc/self/fd/{descriptor}", str(target), flags=namespaces.MS_BIND | namespaces.MS_REC
        )
        os.close(descriptor)


def _become_sandbox(channel: socket.socket, message: dict[str, Any], descriptors: list[int]) -> None:
    """Replace this process by bubblewrap with exactly five descriptors open."""
    first, seccomp, output = descriptors
    # Above all targets first, so that no target overwrites a source.
    high = [_above(descriptor) for descriptor in (first, seccomp, output)]
    os.dup2(high[2], 1, inheritable=True)
    os.dup2(high[2], 2, inheritable=True)
    channel_fd = _above(channel.fileno())
    os.set_inheritable(channel_fd, False)
    os.dup2(high[0], CHANNEL_FD, inheritable=True)
    os.dup2(high[1], SECCOMP_FD, inheritable=True)
    close_other_descriptors((0, 1, 2, CHANNEL_FD, SECCOMP_FD, channel_fd))
    for name, (soft, hard) in message["rlimits"].items():
        number = getattr(resource, name)
        ceiling = resource.getrlimit(number)[1]
        if ceiling != resource.RLIM_INFINITY:
            hard = min(hard, ceiling)  # noqa: PLW2901 - never above what this process may have
        resource.setrlimit(number, (min(soft, hard), hard))
    if message["processors"]:
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: message["processors"]]))
    # The supervisor's own mask would leave the sandbox with files that only their owner can read.
    os.umask(0o022)
    argv = message["argv"]
    try:
        os.execve(argv[0], argv, message["env"])  # noqa: S606 - becoming bubblewrap is the point
    except OSError as error:
        with socket.socket(fileno=channel_fd) as answer:
            frames.send(answer, {"error": f"{argv[0]}: {error.strerror}"})
        os._exit(127)


def _above(descriptor: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
