"""
Limits and freezing of a sandbox's processes by control groups.

Works with version 2 (root, or a delegated subtree), with version 1 hierarchies and with both at once.
What cannot be limited is reported, never ignored: the caller refuses an explicit limit and falls back to
resource limits for the others.  Sources: cgroups(7) and the kernel's Documentation/admin-guide.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import field, frozen

from km_core.errors import ProvisionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CPU_PERIOD_US = 100_000
DEFAULT_PIDS = 512
CONTROLLERS = ("memory", "cpu", "pids")
FREEZER = "freezer"


@frozen
class Limits:
    """Limits of all processes of a sandbox together; None leaves one out."""

    memory_bytes: int | None = None
    cpus: float | None = None
    pids: int | None = None

    @property
    def wanted(self) -> tuple[str, ...]:
        """The controllers that are needed."""
        values = zip(CONTROLLERS, (self.memory_bytes, self.cpus, self.pids), strict=True)
        return tuple(name for name, value in values if value is not None)


def default_limits() -> Limits:
    """Return half the host's memory and processors and 512 processes (DESIGN section 7)."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return Limits(pages * size // 2, max((os.cpu_count() or 1) / 2, 0.5), DEFAULT_PIDS)


@frozen
class Hierarchies:
    """
    Where this process's control groups are.

    Attributes:
        v1: controller to the directory of this process's own group.
        v2: the directory of this process's own group, or None.
        v2_root: where version 2 is mounted.
    """

    v1: dict[str, Path] = field(factory=dict)
    v2: Path | None = None
    v2_root: Path | None = None


def find_hierarchies(process: Path = Path("/proc/self")) -> Hierarchies:
    """Read which hierarchies are mounted and where this process is in them; unreadable means none."""
    v1: dict[str, Path] = {}
    v2: Path | None = None
    v2_root: Path | None = None
    try:
        mounts = (process / "mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        groups = (process / "cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return Hierarchies()
    own = {}
    for line in groups:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            own[controller] = path
    for line in mounts:
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or not kind:
            continue
        root, target = fields[3], Path(fields[4].replace("\\040", " "))
        if kind[0] == "cgroup2" and "" in own and v2 is None:
            v2, v2_root = _below(target, root, own[""]), target
        elif kind[0] == "cgroup":
            for controller in kind[-1].split(","):
                if controller in (*CONTROLLERS, FREEZER) and controller in own:
                    v1.setdefault(controller, _below(target, root, own[controller]))
    return Hierarchies(v1, v2, v2_root)


def _below(target: Path, root: str, path: str) -> Path:
    """Return where the group *path* is when a mount at *target* shows the hierarchy from *root* on."""
    relative = os.path.relpath(path, root)
    return target if relative.startswith("..") else target / relative


class ControlGroup:
    """
    The control groups of one sandbox, by one name in every hierarchy.

    Args:
        name: directory name, unique on the host.
        hierarchies: see `find_hierarchies`.
    """

    def __init__(self, name: str, hierarchies: Hierarchies | None = None) -> None:
        self.name = name
        self._hierarchies = find_hierarchies() if hierarchies is None else hierarchies
        self._directories: dict[str, Path] = {}
        self._v2: Path | None = None

    @property
    def has_freezer(self) -> bool:
        """Whether the group can be frozen."""
        return FREEZER in self._directories or self._v2 is not None

    @property
    def directories(self) -> tuple[Path, ...]:
        """Every directory that was made."""
        return tuple(dict.fromkeys([*self._directories.values(), *([self._v2] if self._v2 else [])]))

    def create(self, limits: Limits) -> tuple[str, ...]:
        """
        Make the groups and set *limits*.

        Returns:
            The names of the limits that could not be set (``memory``, ``cpu``, ``pids``).
        """
        for controller, parent in self._hierarchies.v1.items():
            with contextlib.suppress(OSError):
                directory = parent / self.name
                directory.mkdir(exist_ok=True)
                self._directories[controller] = directory
        self._create_v2(limits)
        return tuple(name for name in limits.wanted if not self._limit(name, limits))

    def _create_v2(self, limits: Limits) -> None:
        own, root = self._hierarchies.v2, self._hierarchies.v2_root
        if own is None or root is None:
            return
        wanted = [name for name in limits.wanted if name not in self._directories]
        # A group with processes cannot hand controllers down, except the root: look above our own.
        for parent in [own.parent, *own.parent.parents] if own != root else [root]:
            if not parent.is_relative_to(root):
                return
            directory = parent / self.name
            try:
                directory.mkdir(exist_ok=True)
            except OSError:
                continue
            for name in wanted:
                with contextlib.suppress(OSError):
                    (parent / "cgroup.subtree_control").write_text(f"+{name}", encoding="ascii")
            given = _read(directory / "cgroup.controllers").split()
            # Without write access to the common ancestor nothing can be moved in; try for real.
            if (all(name in given for name in wanted) or parent == root) and self._can_enter(directory):
                self._v2 = directory
                self._directories.update({name: directory for name in wanted if name in given})
                return
            with contextlib.suppress(OSError):
                directory.rmdir()

    @staticmethod
    def _can_enter(directory: Path) -> bool:
        child = os.fork()
        if child == 0:  # pragma: no cover - the child of a fork
            try:
                (directory / "cgroup.procs").write_text("0", encoding="ascii")
            except OSError:
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        return status == 0

    def _limit(self, name: str, limits: Limits) -> bool:
        directory = self._directories.get(name)
        if directory is None:
            return False
        v2 = directory == self._v2
        try:
            if name == "memory" and limits.memory_bytes is not None:
                _write(directory / ("memory.max" if v2 else "memory.limit_in_bytes"), limits.memory_bytes)
                # Swap would let the sandbox push the host's own pages around; not every kernel counts it.
                with contextlib.suppress(OSError):
                    if v2:
                        _write(directory / "memory.swap.max", 0)
                    else:
                        _write(directory / "memory.memsw.limit_in_bytes", limits.memory_bytes)
            elif name == "cpu" and limits.cpus is not None:
                quota = max(int(limits.cpus * CPU_PERIOD_US), 1000)
                if v2:
                    _write(directory / "cpu.max", f"{quota} {CPU_PERIOD_US}")
                else:
                    _write(directory / "cpu.cfs_period_us", CPU_PERIOD_US)
                    _write(directory / "cpu.cfs_quota_us", quota)
            elif limits.pids is not None:
                _write(directory / "pids.max", limits.pids)
        except OSError:
            return False
        return True

    def add(self, pid: int) -> None:
        """
        Put a process, and all it starts from now on, into the groups.

        Raises:
            ProvisionError: it cannot be moved.
        """
        for directory in self.directories:
            try:
                _write(directory / "cgroup.procs", pid)
            except OSError as error:
                raise ProvisionError(
                    "the sandbox cannot be put into its control group", where=str(directory), why=str(error)
                ) from error

    def freeze(self, timeout_s: float = 5.0) -> None:
        """
        Stop every process until `thaw`.

        Raises:
            ProvisionError: there is no freezer, or it did not take hold in time.
        """
        self._set_frozen(True, timeout_s)

    def thaw(self, timeout_s: float = 5.0) -> None:
        """Let the processes go on; raises as `freeze`."""
        self._set_frozen(False, timeout_s)

    def _set_frozen(self, frozen: bool, timeout_s: float) -> None:
        v1 = self._directories.get(FREEZER)
        if v1 is not None:
            control, state, expected = (
                v1 / "freezer.state",
                v1 / "freezer.state",
                "FROZEN" if frozen else "THAWED",
            )
            order = expected
        elif self._v2 is not None:
            control, state = self._v2 / "cgroup.freeze", self._v2 / "cgroup.events"
            order, expected = str(int(frozen)), f"frozen {int(frozen)}"
        else:
            raise ProvisionError(
                "this host has no freezer for the sandbox",
                hint="run km as root or in a systemd user session with delegated control groups",
            )
        try:
            _write(control, order)
            deadline = time.monotonic() + timeout_s
            while expected not in _read(state):
                if time.monotonic() > deadline:
                    raise ProvisionError(
                        "the sandbox does not freeze" if frozen else "the sandbox does not thaw"
                    )
                time.sleep(0.005)
        except OSError as error:
            raise ProvisionError("the freezer does not work", where=str(control), why=str(error)) from error

    def processes(self) -> frozenset[int]:
        """Return the pids of every process in the groups."""
        return frozenset(pid for directory in self.directories for pid in _pids(directory))

    def kill(self) -> None:
        """Send SIGKILL to every process of the groups, frozen or not."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        # A frozen process of version 1 does not even die.
        with contextlib.suppress(ProvisionError):
            self.thaw()

    def remove(self, timeout_s: float = 5.0) -> None:
        """
        Kill what is left and remove the groups; removed ones are fine.

        Raises:
            ProvisionError: something does not die.
        """
        deadline = time.monotonic() + timeout_s
        for directory in self.directories:
            while directory.exists():
                try:
                    directory.rmdir()
                except FileNotFoundError:
                    break
                except OSError as error:
                    if time.monotonic() > deadline:
                        raise ProvisionError(
                            "a control group cannot be removed", where=str(directory), why=str(error)
                        ) from error
                    self.kill()
                    time.sleep(0.01)

    @classmethod
    def existing(cls, name: str, hierarchies: Hierarchies | None = None) -> ControlGroup:
        """Return the groups called *name* that are there, whoever made them."""
        group = cls(name, hierarchies)
        for parent in _parents(group._hierarchies):
            directory = parent / name
            if directory.is_dir():
                if (directory / "cgroup.controllers").exists():
                    group._v2 = directory
                else:
                    controller = FREEZER if (directory / "freezer.state").exists() else str(directory)
                    group._directories[controller] = directory
        return group


def groups_with_prefix(prefix: str, hierarchies: Hierarchies | None = None) -> tuple[str, ...]:
    """Return the names of groups beside this process's that begin with *prefix*."""
    found = set()
    for parent in _parents(find_hierarchies() if hierarchies is None else hierarchies):
        with contextlib.suppress(OSError):
            found |= {entry.name for entry in parent.iterdir() if entry.name.startswith(prefix)}
    return tuple(sorted(found))


def _parents(hierarchies: Hierarchies) -> Iterator[Path]:
    """Yield the directories that may hold a sandbox's group, from any process's point of view."""
    seen: set[Path] = set()
    starts: Iterable[Path] = [*hierarchies.v1.values(), *([hierarchies.v2] if hierarchies.v2 else [])]
    for start in starts:
        # The process that made the group may have been in another group, so all above and one beside count.
        for parent in (start, *start.parents):
            if parent not in seen and (parent / "cgroup.procs").exists():
                seen.add(parent)
                yield parent
                with contextlib.suppress(OSError):
                    for entry in parent.iterdir():
                        if entry not in seen and (entry / "cgroup.procs").exists():
                            seen.add(entry)
                            yield entry


def _pids(directory: Path) -> list[int]:
    return [int(word) for word in _read(directory / "cgroup.procs").split()]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""


def _write(path: Path, value: object) -> None:
    path.write_text(str(value), encoding="ascii")
