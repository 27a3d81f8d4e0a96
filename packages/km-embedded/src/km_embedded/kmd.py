"""
``km-sidecar kmd``: the control plane's process, the only one that writes the database.

It ends by itself when no sandbox and no client is left, on SIGTERM, and on ``km daemon stop``.  It may
be killed at any point: what it has answered is in the database.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import fcntl
import os
import resource
import signal
import sys
from typing import TYPE_CHECKING

from km_core.config import load_config
from km_core.errors import ControlError, KmError
from km_embedded.files import private_dir
from km_embedded.log import file_log
from km_embedded.service import Service
from km_embedded.settings import Settings
from km_embedded.tick import sync, tick

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from km_core.config import Config

LOCK = "kmd.lock"
_PR_SET_DUMPABLE = 4
ALREADY_RUNS = 75
"""Exit code when another kmd holds the lock (``EX_TEMPFAIL`` of sysexits.h)."""


def main(argv: Sequence[str]) -> int:
    """
    Run kmd until it is to end.

    Args:
        argv: ``--daemon`` returns in the caller once kmd answers and leaves it running in a session of
            its own; ``--lock-fd N`` hands over the lock that the starter took.
    """
    parser = argparse.ArgumentParser(prog="km-sidecar kmd")
    parser.add_argument("--daemon", action="store_true", help="go to the background once it answers")
    parser.add_argument("--lock-fd", type=int, default=-1, help=argparse.SUPPRESS)
    options = parser.parse_args(list(argv))
    os.umask(0o077)
    _leave_no_core()
    config = load_config()
    private_dir(config.home, follow=True)
    private_dir(config.runtime_dir)
    lock = options.lock_fd if options.lock_fd >= 0 else take_lock(config)
    if lock is None:
        sys.stderr.write("kmd runs already\n")
        return ALREADY_RUNS
    os.set_inheritable(lock, False)
    os.environ["KM_HOME"] = str(config.home)
    os.environ["KM_RUNTIME_DIR"] = str(config.runtime_dir)
    if options.daemon:
        return _daemon(config, lock)
    return _run(config, lock, lambda: None)


def _leave_no_core() -> None:
    """Keep the secrets in this process out of core files, and from other processes of its user."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A core that goes to a program (core(5)) is not bound by the limit; a process that is not dumpable
    # has none, and cannot be traced.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise ControlError("kmd cannot restrict itself", why=os.strerror(ctypes.get_errno()))


def take_lock(config: Config) -> int | None:
    """Return a descriptor that holds kmd's lock, or None when another process holds it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(config.runtime_dir / LOCK, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _daemon(config: Config, lock: int) -> int:
    """Fork; the parent tells its caller what became of the child and ends."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            message = pipe.read()
        if message == b"ready":
            return 0
        sys.stderr.write(message.decode(errors="replace") or "kmd ended before it answered\n")
        return 1
    os.close(reading)
    os.setsid()
    try:
        _detach(config, keep={lock, writing})
        code = _run(config, lock, lambda: _tell(writing, b"ready"))
    except KmError as error:
        _tell(writing, f"{error}\n{error.hint}\n".encode())
        code = 1
    except BaseException as error:  # noqa: BLE001 - whatever it is, the starter is to hear of it
        _tell(writing, f"kmd failed: {type(error).__name__}\n".encode())
        code = 1
    # No interpreter shutdown: nothing of the process this was forked from is to run a second time.
    os._exit(code)


def _tell(writing: int, message: bytes) -> None:
    with contextlib.suppress(OSError):
        os.write(writing, message)
        os.close(writing)


def _detach(config: Config, *, keep: set[int]) -> None:
    """Leave the starter's directory, streams and descriptors."""
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    log = os.open(config.home / "kmd.log", flags, 0o600)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names only
        number = int(name)
        if number > 2 and number not in keep:
            with contextlib.suppress(OSError):
                os.close(number)


def _run(config: Config, lock: int, ready: Callable[[], None]) -> int:
    try:
        return asyncio.run(serve(config, Settings.from_env(os.environ), ready=ready))
    finally:
        os.close(lock)


async def serve(config: Config, settings: Settings, *, ready: Callable[[], None] = lambda: None) -> int:
    """
    Serve until kmd is idle, asked to stop, or told by a signal.

    Args:
        config: directories and limits.
        settings: timings.
        ready: called when both kinds of sockets answer.
    """
    log = file_log(sys.stderr)
    service = Service(config, settings=settings, log=log)
    stop = asyncio.Event()
    service.stopping = stop.set
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await service.start()
    except BaseException:
        await service.close()
        raise
    log("started", pid=os.getpid(), home=str(config.home))
    ready()
    try:
        await _loop(service, stop)
    finally:
        await sync(service)
        await service.close()
        log("ended")
    return 0


async def _loop(service: Service, stop: asyncio.Event) -> None:
    idle_since = asyncio.get_running_loop().time()
    while not stop.is_set():
        try:
            await tick(service)
        except Exception as error:  # noqa: BLE001 - one bad tick must not end the control plane
            service.log("tick_failed", error=error)
        now = asyncio.get_running_loop().time()
        if not service.idle():
            idle_since = now
        elif now - max(idle_since, service.operator.last_used) >= service.settings.idle_exit_s:
            service.log("idle")
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(service.settings.tick_s):
                await stop.wait()


def run() -> int:
    """Run as ``python -m km_embedded.kmd``."""
    try:
        return main(sys.argv[1:])
    except KmError as error:
        # Its starter shows the first line and the hint: never a traceback.
        sys.stderr.write(f"error: {error}\n  hint: {error.hint}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(run())
