"""Stand-ins for the parts of km that a plugin's own tests do not want to have for real."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from km_core.control.substrate import Leftover
from km_core.errors import GuardError, ProvisionError
from km_core.testing.fake_control import FakeControl, FakeControlPlane, fake_offer
from km_core.types import Problem, is_sandbox_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from km_core.config import Config
    from km_core.control.substrate import Box
    from km_core.plan import SandboxPlan

__all__ = ["FakeClock", "FakeControl", "FakeControlPlane", "FakeSubstrate", "SilentServer", "fake_offer"]

_MARK = "KM_FAKE_SANDBOX"
_FILE = "fake-substrate"
_FOREVER = ("sleep", "1000000")
_PATH = "/usr/local/bin:/usr/bin:/bin"


class FakeClock:
    """Unix seconds that move when a test says so."""

    def __init__(self, now: float | None = None) -> None:
        self.now = time.time() if now is None else now

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass."""
        self.now += seconds


class SilentServer:
    """A loopback TCP server that accepts and never answers: the back end that hangs."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()


class FakeSubstrate:
    """
    A substrate without any isolation: its commands are ordinary processes of the test's user.

    It keeps every promise about life and death of a sandbox, and none about confinement: never run in
    it what is not yours.  ``/workspace`` and ``/home/sandbox`` stand for the sandbox's directories in
    working directories only.
    """

    name = "fake"
    capabilities = frozenset({"exec", "stop", "pause"})

    def problems(self, plan: SandboxPlan, config: Config) -> Sequence[Problem]:
        """Say what it cannot do for the plan."""
        del config
        found = []
        if plan.network.enforcement != "proxy":
            found.append(Problem("spec.network.enforcement", "only proxy is played", hint="use proxy"))
        if plan.workload.privileged:
            found.append(Problem("spec.execution.privileged", "there is no root user", hint="leave it out"))
        found += [Problem(f"limits.{name}", "no limit is enforced") for name in plan.limits.explicit]
        return tuple(found)

    def prepare(self, box: Box) -> None:
        """Start what stands for the gate."""
        if self._state(box):
            return
        try:
            self._note(box, "preparing")
        except OSError as error:
            raise ProvisionError(
                "the runtime directory cannot be written", where=box.id, why=str(error)
            ) from error
        self._spawn(box, "gate")
        self._note(box, "prepared")

    def start(self, box: Box) -> None:
        """Start the first process."""
        state = self._state(box)
        if state in {"", "preparing"}:
            raise ProvisionError("the sandbox is not prepared", where=box.id, hint="prepare it first")
        if state == "prepared":
            self._spawn(box, "first")
            self._note(box, "running")

    def stop(self, box: Box) -> None:
        """End every process."""
        self._end(box)
        if self._state(box):
            self._note(box, "stopped")

    def pause(self, box: Box) -> None:
        """Freeze the workload."""
        if self._state(box) not in {"running", "paused"}:
            raise ProvisionError("the sandbox does not run", where=box.id)
        self._note(box, "paused")
        self._signal(box, signal.SIGSTOP)

    def resume(self, box: Box) -> None:
        """Thaw the workload, or start a stopped one again."""
        state = self._state(box)
        if state in {"", "stopped"}:
            self._forget(box)
            self.prepare(box)
            self.start(box)
        elif state == "paused":
            self._signal(box, signal.SIGCONT)
            self._note(box, "running")

    def destroy(self, box: Box) -> None:
        """Remove everything but the state directory."""
        self._end(box)
        self._forget(box)
        with contextlib.suppress(OSError):
            box.runtime_dir.rmdir()

    def exec(
        self,
        box: Box,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        root: bool,
        tty: bool,
    ) -> int:
        """Run a command as an ordinary process."""
        if root or tty:
            raise GuardError("there is no root user and no terminal", where=box.id)
        if self._state(box) != "running":
            raise ProvisionError("the sandbox does not run", where=box.id, hint="start or resume it")
        place = Path(cwd)
        for shown, real in (("/workspace", "workspace"), ("/home/sandbox", "home")):
            if place.is_relative_to(shown):
                place = box.state_dir / real / place.relative_to(shown)
        if not place.is_dir():
            raise ProvisionError(f"there is no directory {cwd}", where=box.id)
        try:
            code = subprocess.call(list(argv), env=self._environment(box, "exec") | dict(env), cwd=place)
        except FileNotFoundError:
            return 127
        except OSError:
            return 126
        return 128 - code if code < 0 else code

    def status(self, box: Box) -> dict[str, Any]:
        """Describe what runs."""
        gates = [pid for pid, _, role in _marked(box.config) if role == f"{box.id} gate"]
        return {
            "running": self._state(box) in {"running", "paused"},
            "enforcement": "",
            "limits": "none",
            "gate": {"pid": gates[0]} if gates else {},
            "pod": {},
        }

    def leftovers(self, config: Config) -> Sequence[Leftover]:
        """List processes and runtime directories of this home."""
        found = [Leftover(sandbox_id, "process", str(pid)) for pid, sandbox_id, _ in _marked(config)]
        with contextlib.suppress(FileNotFoundError):
            found += [
                Leftover(entry.name, "runtime directory", str(entry))
                for entry in sorted(config.runtime_dir.iterdir())
                if is_sandbox_id(entry.name) and (entry / _FILE).exists()
            ]
        return tuple(found)

    def remove_leftover(self, config: Config, leftover: Leftover) -> None:
        """Remove one of `leftovers`; anything else is left alone."""
        if leftover not in self.leftovers(config):
            return
        if leftover.what == "process":
            _kill(int(leftover.detail))
        else:
            shutil.rmtree(leftover.detail, ignore_errors=True)

    def reaches(self, box: Box, host: str) -> bool:
        """Say whether the sandbox would reach a host: only through a living gate, if the plan names it."""
        status = self.status(box)
        named = any(rule.pattern == host and rule.kind == "exact" for rule in box.plan.network.hosts)
        return bool(status["running"] and status["gate"] and named)

    def _state(self, box: Box) -> str:
        try:
            return (box.runtime_dir / _FILE).read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    def _note(self, box: Box, state: str) -> None:
        box.runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (box.runtime_dir / _FILE).write_text(state, encoding="utf-8")

    def _forget(self, box: Box) -> None:
        (box.runtime_dir / _FILE).unlink(missing_ok=True)

    def _environment(self, box: Box, role: str) -> dict[str, str]:
        mark = f"{box.id} {role} {box.config.home}"
        return {"PATH": _PATH, "HOME": str(box.state_dir / "home"), _MARK: mark}

    def _spawn(self, box: Box, role: str) -> None:
        nothing = subprocess.DEVNULL
        with _locked(box):
            process = subprocess.Popen(
                _FOREVER,
                stdin=nothing,
                stdout=nothing,
                stderr=nothing,
                env=self._environment(box, role),
                start_new_session=True,
                close_fds=False,  # the lock stays with the child until it is what it is to be
            )
        # Whoever finds it ends and collects it by its number.
        process.returncode = 0

    def _end(self, box: Box) -> None:
        if box.runtime_dir.is_dir():
            with _locked(box):
                pass
        # Twice: what has just executed its program shows its environment a moment later.
        for _ in range(2):
            for pid, sandbox_id, _role in _marked(box.config):
                if sandbox_id == box.id:
                    _kill(pid)
            time.sleep(0.02)

    def _signal(self, box: Box, number: signal.Signals) -> None:
        for pid, sandbox_id, role in _marked(box.config):
            if sandbox_id == box.id and not role.endswith(" gate"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)


@contextlib.contextmanager
def _locked(box: Box) -> Iterator[None]:
    """
    Hold the sandbox's lock, which the kernel shares with a child until it executes its program.

    A process that was cut off while it started another is waited for by whoever takes the lock next.
    """
    descriptor = os.open(box.runtime_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _marked(config: Config) -> Iterator[tuple[int, str, str]]:
    """Yield pid, sandbox id and ``ID ROLE`` of the fake substrate's processes of this home."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for variable in variables:
            name, _, value = os.fsdecode(variable).partition("=")
            sandbox_id, _, rest = value.partition(" ")
            role, _, home = rest.partition(" ")
            if name == _MARK and home == str(config.home):
                yield int(entry.name), sandbox_id, f"{sandbox_id} {role}"


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    # A child of this process is collected; another's is not ours to wait for.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    ends = time.monotonic() + 5
    while Path(f"/proc/{pid}/environ").exists() and time.monotonic() < ends:
        try:
            if not Path(f"/proc/{pid}/environ").read_bytes():
                return
        except OSError:
            return
        time.sleep(0.005)
