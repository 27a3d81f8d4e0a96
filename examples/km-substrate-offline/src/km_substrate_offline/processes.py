"""Finding the processes of sandboxes, also those of which nothing else is left."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen
from km_core.lifecycle.files import write_private
from km_core.types import is_sandbox_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from km_core.config import Config

KEEPER = "km_substrate_offline.keeper"
LOCK = "pod.lock"
"""Held while a sandbox lives; the control plane looks at it under this name."""
STATE, EXEC_LOCK = "offline.json", "exec.lock"


@frozen
class First:
    """
    A sandbox's first process.

    Attributes:
        pid: on the host.
        started: whether commands may run.
    """

    pid: int
    started: bool


def home_mark(config: Config) -> str:
    """Return the word by which processes of *config*'s home are known."""
    return hashlib.sha256(str(config.home).encode()).hexdigest()[:16]


def start_of(pid: int) -> int:
    """Return when a living process started, in ticks since boot; else 0 (proc_pid_stat(5))."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    fields = stat.rpartition(")")[2].split()
    return 0 if fields[0] in {"Z", "X"} else int(fields[19])


def first_of(runtime_dir: Path) -> First | None:
    """Return the first process that a runtime directory names, if it is still that one."""
    state = _state(runtime_dir)
    pid, start = state.get("pid"), state.get("start")
    if not isinstance(pid, int) or not start or start_of(pid) != start:
        return None
    return First(pid, state.get("started") is True)


def mark_started(runtime_dir: Path) -> None:
    """Record that commands may run."""
    state = _state(runtime_dir) | {"started": True}
    write_private(runtime_dir / STATE, json.dumps(state))


def processes_of(config: Config) -> Iterator[tuple[int, str]]:
    """
    Yield keepers and first processes of a home, as ``(pid, sandbox id)``.

    A workload may give itself any arguments, but it is never process 1 of its namespace nor outside of
    every one: so it can pass for neither.
    """
    mark = home_mark(config)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            arguments = (entry / "cmdline").read_bytes().rstrip(b"\0").decode(errors="replace").split("\0")
            at = arguments.index(KEEPER)
            if arguments[at + 1] == mark and is_sandbox_id(arguments[at + 2]) and _is_ours(entry):
                yield int(entry.name), arguments[at + 2]


def _is_ours(process: Path) -> bool:
    status = (process / "status").read_text(encoding="utf-8", errors="replace")
    (numbers,) = (line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
    state = next(line.split()[1] for line in status.splitlines() if line.startswith("State:"))
    return state not in {"Z", "X"} and (len(numbers) == 1 or (len(numbers) == 2 and numbers[1] == "1"))


def _state(runtime_dir: Path) -> dict[str, Any]:
    try:
        state = json.loads((runtime_dir / STATE).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}
