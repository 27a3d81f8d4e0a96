"""
The process that makes one sandbox and keeps it: ``python -m km_substrate_offline.keeper HOME ID``.

It is the parent of the sandbox's first process, which dies with it; it holds the lock that says that the
sandbox lives, and ends the sandbox at its deadline even when no control plane answers.  HOME is the
digest of the state directory and ID the sandbox's: they are how a later command finds the process.

What it needs comes on stdin in two JSON lines.  The second one holds the sandbox's token and is read
when the sandbox's processes are already apart, so that their memory never held it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from km_core.control.rpc import ControlClient
from km_core.errors import ControlUnavailableError, KmError

from km_substrate_offline import kernel, rootfs
from km_substrate_offline.processes import EXEC_LOCK, LOCK, STATE, start_of

if TYPE_CHECKING:
    from collections.abc import Mapping

LEASE_EVERY_S = 10.0
LATE_S = 60.0
"""How long after the deadline a control plane that answers may take to end the sandbox itself."""
GRACE_S = 3.0
"""How long the workload has between the polite signal and the end."""


def main(arguments: list[str]) -> int:
    """Make the sandbox, say so on stdout, keep it until it ends."""
    if os.fork() != 0:
        os._exit(0)
    os.umask(0o077)
    sandbox_id = arguments[1]
    request = _read_line()
    runtime_dir = Path(request["runtime_dir"])
    lock = os.open(runtime_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        pid = _make(sandbox_id, request)
    except (OSError, RuntimeError) as error:
        _answer({"error": str(error)})
        return 1
    state = {"pid": pid, "start": start_of(pid), "started": False}
    (runtime_dir / STATE).write_text(json.dumps(state), encoding="ascii")
    _answer({"pid": pid})
    credentials = _read_line()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    _keep(pid, runtime_dir, credentials)
    (runtime_dir / STATE).unlink(missing_ok=True)
    return 0


def _make(sandbox_id: str, request: Mapping[str, Any]) -> int:
    """Make namespaces and first process; returns its pid on the host."""
    kernel.become_subreaper()
    ours, theirs = os.pipe()
    hold, release = os.pipe()
    maker = os.fork()
    if maker == 0:
        os.close(ours)
        os.close(release)
        _become_maker(sandbox_id, request, theirs, hold)
    os.close(theirs)
    os.close(hold)
    with os.fdopen(ours, "rb") as answers:
        os.waitpid(maker, 0)
        first = json.loads(answers.readline() or b"{}")
        if "pid" not in first:
            raise RuntimeError(first.get("error", "the namespaces could not be made"))
        # The maker is gone: now the first process is ours, and dies with us.
        with contextlib.suppress(BrokenPipeError):
            os.write(release, b"x")
        second = json.loads(answers.readline() or b"{}")
    os.close(release)
    if second.get("ready") is not True:
        with contextlib.suppress(ProcessLookupError):
            os.kill(first["pid"], signal.SIGKILL)
        os.waitpid(first["pid"], 0)
        raise RuntimeError(second.get("error", "the sandbox's first process ended"))
    return int(first["pid"])


def _become_maker(sandbox_id: str, request: Mapping[str, Any], answers: int, hold: int) -> NoReturn:
    """In a fork: make the namespaces and, in them, the first process; then end."""
    try:
        workspace, home = request["workspace"], request["home"]
        if os.geteuid() == 0:
            kernel.unshare(kernel.CLONE_NEWNS)
            workspace, home = rootfs.stage_for_other_uid(workspace, home)
            os.setgroups([])
            os.setresgid(request["host_id"], request["host_id"], request["host_id"])
            os.setresuid(request["host_id"], request["host_id"], request["host_id"])
            # A change of ids closes /proc/self to this very process.
            kernel.set_dumpable(True)
        uid, gid = os.geteuid(), os.getegid()
        kernel.unshare(kernel.NAMESPACES)
        process = Path("/proc/self")
        (process / "setgroups").write_bytes(b"deny")
        (process / "uid_map").write_bytes(f"{rootfs.UID} {uid} 1\n".encode())
        (process / "gid_map").write_bytes(f"{rootfs.UID} {gid} 1\n".encode())
        pid = os.fork()
        if pid == 0:
            _become_first(sandbox_id, workspace, home, answers, hold)
        _write(answers, {"pid": pid})
    except BaseException as error:  # noqa: BLE001 - a fork must never return into its parent's code
        _write(answers, {"error": f"{type(error).__name__}: {error}"})
    os._exit(0)


def _become_first(sandbox_id: str, workspace: str, home: str, answers: int, hold: int) -> NoReturn:
    """In the new namespaces, as process 1: build the root, give up all rights, look after orphans."""
    try:
        if os.read(hold, 1) != b"x":
            os._exit(1)
        kernel.die_with_parent()
        rootfs.build(sandbox_id, workspace, home)
        null = os.open("/dev/null", os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        signals = {signal.SIGCHLD, signal.SIGTERM}
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        kernel.confine()
        _write(answers, {"ready": True})
        os.closerange(3, 4096)
        _look_after(signals)
    except BaseException as error:  # noqa: BLE001 - as above
        with contextlib.suppress(OSError):
            _write(answers, {"error": f"{type(error).__name__}: {error}"})
    os._exit(1)


def _look_after(signals: set[signal.Signals]) -> NoReturn:
    """Reap what ends; on SIGTERM end everything, and the sandbox with this process."""
    until = 0.0
    while True:
        if until:
            signal.sigtimedwait(signals, 0.05)
        else:
            found = signal.sigwaitinfo(signals)
            if found.si_signo == signal.SIGTERM:
                until = time.monotonic() + GRACE_S
                with contextlib.suppress(ProcessLookupError):
                    os.kill(-1, signal.SIGTERM)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if until and (time.monotonic() >= until or _alone()):
            os._exit(0)


def _alone() -> bool:
    return [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit()] == ["1"]


def _keep(pid: int, runtime_dir: Path, credentials: Mapping[str, Any]) -> None:
    """Wait for the end of the sandbox's first process; renew the lease and report activity meanwhile."""
    client = ControlClient(Path(credentials["socket"]), token=credentials["token"], timeout_s=5.0)
    deadline = seen = next_lease = 0.0
    answered = True
    descriptor = os.pidfd_open(pid)
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    while True:
        # Past the deadline it matters whether anybody is there to end the sandbox.
        if time.monotonic() >= next_lease or (deadline and time.time() >= deadline):
            next_lease = time.monotonic() + LEASE_EVERY_S
            try:
                deadline = float(client.call("lease", holder="pod")["deadline"])
                answered = True
                seen = _report_activity(client, runtime_dir, seen)
            except ControlUnavailableError:
                answered = False
            except KmError as error:
                sys.stderr.write(f"keeper: {error.code}: {error.what}\n")
        if deadline and time.time() >= deadline + (LATE_S if answered else 0.0):
            sys.stderr.write("keeper: the deadline has passed\n")
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        if poller.poll(1000):
            break
    os.close(descriptor)
    os.waitpid(pid, 0)
    client.close()


def _report_activity(client: ControlClient, runtime_dir: Path, seen: float) -> float:
    """Tell the control plane when a command runs, or has run since *seen*."""
    try:
        lock = os.open(runtime_dir / EXEC_LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return seen
    try:
        used = os.fstat(lock).st_mtime
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            used = time.time()
    finally:
        os.close(lock)
    if used > seen:
        client.call("activity", at=used)
    return max(used, seen)


def _read_line() -> dict[str, Any]:
    """Read one line of stdin, byte by byte, so that nothing of the next one is taken."""
    line = b""
    while (byte := os.read(0, 1)) not in {b"", b"\n"}:
        line += byte
    message = json.loads(line or b"{}")
    return message if isinstance(message, dict) else {}


def _answer(message: Mapping[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        _write(1, message)


def _write(descriptor: int, message: Mapping[str, Any]) -> None:
    os.write(descriptor, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
