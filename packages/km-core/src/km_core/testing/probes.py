"""How contracts look at what a plugin does behind its interface: opens, connects, prints, leaves behind."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import FrameType

_TOUCHING = frozenset(
    {
        "open",
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.mkdir",
        "os.posix_spawn",
        "os.remove",
        "os.rename",
        "os.system",
        "socket.bind",
        "socket.connect",
        "socket.getaddrinfo",
        "socket.gethostbyname",
        "socket.sendmsg",
        "socket.sendto",
        "sqlite3.connect",
        "subprocess.Popen",
    }
)
"""Audit events (PEP 578) of code that reaches for something outside its own process."""

_SECRET_WORDS = ("TOKEN", "SECRET", "KEY", "PASSWORD", "PASSWD", "CREDENTIAL", "WEBHOOK")


class _Seal:
    """What the audit hook does; a hook cannot be taken out again, so it is one for the whole process."""

    def __init__(self) -> None:
        self.installed = False
        self.error: Callable[[str], BaseException] | None = None
        self.seen: list[str] = []

    def hook(self, event: str, arguments: tuple[object, ...]) -> None:
        error = self.error
        if error is None or event not in _TOUCHING or _importing():
            return
        what = f"{event} {arguments[0]!r}" if event == "open" and arguments else event
        self.seen.append(what)
        raise error(what)


_SEAL = _Seal()


def _importing() -> bool:
    """Say whether the interpreter is reading a module: an import inside a function is not I/O of its own."""
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001 - the only way to see who opens
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap_external>":
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def sealed(error: Callable[[str], BaseException]) -> Iterator[list[str]]:
    """
    Let every attempt to open, connect, send or start a process raise *error* while the block runs.

    Gives the list of attempts, which holds those too whose error the code under test swallowed.  Works
    through audit hooks, so that a name that was imported earlier does not get around it.  Modules may
    still be imported.  What goes over descriptors that are open already is not seen.
    """
    if not _SEAL.installed:
        sys.addaudithook(_SEAL.hook)
        _SEAL.installed = True
    if _SEAL.error is not None:
        raise RuntimeError("sealed blocks do not nest")
    _SEAL.seen = []
    _SEAL.error = error
    try:
        yield _SEAL.seen
    finally:
        _SEAL.error = None


def impure(what: str) -> BaseException:
    """Return the error for code that promised to be pure."""
    return AssertionError(f"this must be pure, and it does: {what}")


def unreachable(what: str) -> BaseException:
    """Return the error of a back end that is down."""
    return ConnectionRefusedError(f"the back end is down, planted by the contract ({what})")


def must_override(fixture: str, what: str) -> NoReturn:
    """Say what a contract's fixture is for; raised until a subclass gives its own."""
    raise NotImplementedError(f"override the fixture {fixture!r} in your test class: {what}")


def canary() -> str:
    """Return a text that stands for a secret: whatever shows it has leaked it."""
    return f"canary-{secrets.token_hex(16)}"


def secret_values(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values of variables that are new since *before* and are called like a credential."""
    return tuple(
        value
        for name, value in now.items()
        if value and before.get(name) != value and any(word in name.upper() for word in _SECRET_WORDS)
    )


def short_directory() -> Path:
    """Make a directory whose path leaves room for socket names (108 bytes, unix(7)); remove it yourself."""
    return Path(tempfile.mkdtemp(prefix="km", dir="/tmp"))


def processes_naming(text: str) -> dict[int, str]:
    """Return processes of this host that have *text* in command line or environment, with the place."""
    wanted, found = os.fsencode(text), {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        for place in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                if wanted in (entry / place).read_bytes() and not _is_zombie(entry):
                    found[int(entry.name)] = place
    return found


def files_holding(text: str, *directories: Path) -> list[Path]:
    """Return regular files below *directories* that hold *text*, or that are named with it."""
    wanted, found = os.fsencode(text), []
    for directory in directories:
        for root, _, names in os.walk(directory):
            for name in names:
                path = Path(root, name)
                with contextlib.suppress(OSError):
                    if wanted in os.fsencode(name) or (
                        path.is_file() and not path.is_symlink() and wanted in path.read_bytes()
                    ):
                        found.append(path)
    return found


def _is_zombie(entry: Path) -> bool:
    stat = (entry / "stat").read_text(encoding="ascii", errors="replace")
    return stat.rpartition(")")[2].split()[0] == "Z"
