"""
What a sandbox has on the host: processes, namespaces, control groups, mounts, containers.

`Traces.note` writes down what there is while the sandbox runs; `Traces.left` says what of it is still
there afterwards.  Only the sandbox's own things are looked at, so that a busy machine does not disturb; the
noted namespaces are kept open, so that the kernel gives their numbers to nobody else in between.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

from attrs import define, field

_NAMESPACES = ("net", "user", "mnt", "pid", "ipc", "uts", "cgroup")
_PROC = Path("/proc")


@define
class Traces:
    """
    The traces of everything below one ``KM_HOME``.

    Args:
        home: the state directory; every process of km carries it in its environment.
        runtime_dir: where the sockets are.
    """

    home: Path
    runtime_dir: Path
    _processes: dict[int, str] = field(factory=dict)
    _namespaces: set[str] = field(factory=set)
    _cgroups: set[Path] = field(factory=set)
    _ids: set[str] = field(factory=set)
    _held: list[int] = field(factory=list)

    @property
    def size(self) -> str:
        """What was noted, for people."""
        return (
            f"{len(self._processes)} processes, {len(self._namespaces)} namespaces, "
            f"{len(self._cgroups)} control groups"
        )

    def note(self, sandbox_id: str) -> None:
        """Write down what sandbox *sandbox_id* has on the host now."""
        self._ids.add(sandbox_id)
        own = {_namespace(os.getpid(), kind) for kind in _NAMESPACES}
        containers = _containers(sandbox_id)
        family = self._family() | {pid: start for pid in containers.values() if (start := _start(pid))}
        marks = (sandbox_id, *containers)
        for pid, start in family.items():
            self._processes[pid] = start
            for kind in _NAMESPACES:
                self._hold(pid, kind, own)
            self._cgroups |= {path for path in _cgroups(pid) if any(mark in str(path) for mark in marks)}

    def left(self, wait_s: float = 5.0, *, spare: int = 0) -> list[str]:
        """
        Return what is still there, one finding a line; waits *wait_s* for processes to end.

        Process *spare* may stay: the control plane, when other sandboxes go on.
        """
        self._processes.pop(spare, None)
        deadline = time.monotonic() + wait_s
        while (found := self._left(spare)) and time.monotonic() < deadline:
            time.sleep(0.1)
        for descriptor in self._held:
            os.close(descriptor)
        self._held.clear()
        self._namespaces.clear()
        return found

    def _hold(self, pid: int, kind: str, own: set[str]) -> None:
        name = _namespace(pid, kind)
        if name in own | self._namespaces:
            return
        with contextlib.suppress(OSError):
            descriptor = os.open(_PROC / str(pid) / "ns" / kind, os.O_RDONLY | os.O_CLOEXEC)
            self._held.append(descriptor)
            self._namespaces.add(f"{kind}:[{os.fstat(descriptor).st_ino}]")

    def _left(self, spare: int) -> list[str]:
        found = [
            f"process {pid}: {_command(pid)}"
            for pid, start in {**self._processes, **self._family()}.items()
            if _start(pid) == start and pid != spare
        ]
        for pid in _pids():
            held = {_namespace(pid, kind) for kind in _NAMESPACES} & self._namespaces
            if held and _start(pid) != self._processes.get(pid):
                found.append(f"process {pid} in {', '.join(sorted(held))}: {_command(pid)}")
        found += [f"control group {path}" for path in self._cgroups if path.is_dir()]
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
        words = [str(self.home), str(self.runtime_dir), *self._ids]
        found += [f"mount {line}" for line in mounts.splitlines() if any(word in line for word in words)]
        for directory in (Path("/tmp"), Path("/run"), Path("/dev/shm")):
            found += [
                str(path) for path in directory.glob("*") if any(name in path.name for name in self._ids)
            ]
        return found + self._containers()

    def _containers(self) -> list[str]:
        docker = shutil.which("docker")
        if docker is None:
            return []
        found = []
        for kind, command in {
            "container": ["ps", "-a"],
            "network": ["network", "ls"],
            "volume": ["volume", "ls"],
        }.items():
            done = subprocess.run(
                [docker, *command, "--format", "{{json .}}"],
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            for line in done.stdout.splitlines():
                if any(name in line for name in self._ids):
                    data = json.loads(line)
                    found.append(f"{kind} {data.get('Names') or data.get('Name')}")
        return found

    def _family(self) -> dict[int, str]:
        """Return the processes that carry our ``KM_HOME`` and their descendants, by start time."""
        mark = f"KM_HOME={self.home}".encode()
        parents = {pid: _parent(pid) for pid in _pids()}
        members = set()
        for pid in parents:
            try:
                if mark in (_PROC / str(pid) / "environ").read_bytes().split(b"\0"):
                    members.add(pid)
            except OSError:
                continue
        grown = True
        while grown:
            more = {pid for pid, parent in parents.items() if parent in members} - members
            members |= more
            grown = bool(more)
        return {pid: start for pid in members - {os.getpid()} if (start := _start(pid))}


def _containers(sandbox_id: str) -> dict[str, int]:
    """Return the running containers of a sandbox: id to process id."""
    docker = shutil.which("docker")
    if docker is None:
        return {}
    listed = subprocess.run(
        [docker, "ps", "-q", "--no-trunc", "--filter", f"name={sandbox_id}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    ).stdout.split()
    found = {}
    for container in listed:
        done = subprocess.run(
            [docker, "inspect", "-f", "{{.State.Pid}}", container],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        if done.returncode == 0:
            found[container] = int(done.stdout)
    return found


def _pids() -> list[int]:
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]


def _stat(pid: int) -> list[str]:
    try:
        return (
            (_PROC / str(pid) / "stat")
            .read_text(encoding="utf-8", errors="replace")
            .rpartition(")")[2]
            .split()
        )
    except OSError:
        return []


def _start(pid: int) -> str:
    """Return the start time in ticks, empty for a process that is gone or a zombie (proc(5))."""
    stat = _stat(pid)
    return stat[19] if stat and stat[0] not in "ZX" else ""


def _parent(pid: int) -> int:
    stat = _stat(pid)
    return int(stat[1]) if stat else 0


def _namespace(pid: int, kind: str) -> str:
    try:
        return os.readlink(_PROC / str(pid) / "ns" / kind)
    except OSError:
        return ""


def _command(pid: int) -> str:
    try:
        return (
            (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")[:200]
        )
    except OSError:
        return ""


def _cgroups(pid: int) -> list[Path]:
    mounts = {}
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind in {"cgroup", "cgroup2"}:
            for name in ("",) if kind == "cgroup2" else options.rpartition(" ")[2].split(","):
                mounts[name] = Path(before.split()[4])
    found = []
    try:
        lines = (_PROC / str(pid) / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        _, names, path = line.split(":", 2)
        found += [mounts[name] / path.lstrip("/") for name in names.split(",") if name in mounts]
    return found
