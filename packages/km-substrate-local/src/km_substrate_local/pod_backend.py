"""A local sandbox seen from its supervisor: bubblewrap in namespaces of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from km_core.errors import KmError, ProvisionError
from km_host import caps, exec_channel, namespaces, seccomp
from km_host.bootstrap import send_bootstrap
from km_host.cgroup import ControlGroup
from km_host.child import ChildProcess
from km_host.fds import receive_frame, send_frame
from km_host.inside import frames
from km_host.inside.init import COMMAND
from km_host.listeners import Listeners, check_listeners
from km_host.pod_client import child_environment
from km_host.pod_log import log
from km_substrate_local import limits as limit_rules
from km_substrate_local import rootfs
from km_substrate_local.holder import CHANNEL_FD, SECCOMP_FD, fork_holder, staged
from km_substrate_local.host_ids import HostIds, give, host_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from km_host.backend import GateHandle, PodContext

GATE_COMMAND = (sys.executable, "-P", "-m", "km_core.sidecars.runner", "gate")
MAX_OUTPUT = 1024 * 1024
"""How much of what bubblewrap and the first process print is kept in ``init.log``, in bytes."""


class LocalGate:
    """A gate that is a child of the supervisor."""

    def __init__(self, process: ChildProcess, channel: socket.socket, group: ControlGroup) -> None:
        self._process = process
        self._group = group
        self.channel = channel

    @property
    def pid(self) -> int:
        """The gate's process id."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait for its end; removes its control group."""
        code = await self._process.wait()
        self._group.remove()
        return code

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._group.kill()


class LocalPodBackend:
    """Implements `km_host.backend.PodBackend` and `ExecBackend`."""

    def __init__(self, context: PodContext, *, gate_command: Sequence[str] = GATE_COMMAND) -> None:
        self._context = context
        self._gate_command = tuple(gate_command)
        self._limits = limit_rules.wanted_limits(context.plan.limits)
        self._missing: tuple[str, ...] = ()
        self._prefix = limit_rules.group_prefix(context.config)
        self._group = ControlGroup(self._prefix + context.id)
        self._mounts = rootfs.mounts(context.state_dir, context.config)
        self._ids: HostIds | None = None
        self._holder: ChildProcess | None = None
        self._channel: socket.socket | None = None
        self._init: exec_channel.InitChannel | None = None
        self._output = bytearray()
        self._output_fd = -1

    async def open(self) -> Listeners:
        """Make control group, namespaces and listeners."""
        context = self._context
        seccomp.program()
        rootfs.system_python()
        for shown in context.config.read_only_paths:
            problem = rootfs.read_only_problem(shown, context.config)
            if problem:
                raise ProvisionError(f"a read-only path {problem}", where=f"local.read_only_paths: {shown}")
        self._make_group()
        self._ids = ids = host_ids(context.state_dir)
        directory = context.state_dir / "rootfs"
        directory.mkdir(mode=0o755, exist_ok=True)
        rootfs.write_rootfs(directory, context.id, context.plan, "")
        for name in ("workspace", "home"):
            path = context.state_dir / name
            path.mkdir(mode=0o700, exist_ok=True)
            give(path, ids)
        pid, self._channel = fork_holder([mount.source for mount in self._mounts], ids)
        self._holder = ChildProcess(pid)
        self._channel.setblocking(False)
        await self._answer()
        namespaces.map_to_root(pid, ids.uid, ids.gid)
        await send_frame(self._channel, {"mapped": True})
        return check_listeners(*await self._answer(descriptors=2))

    async def spawn_gate(self, bootstrap: dict[str, Any], listeners: Listeners) -> GateHandle:
        """Start a gate as a child, in a control group of its own, and hand it the listeners."""
        ours, theirs = socket.socketpair()
        parent = os.getpid()
        log_path = self._context.log_dir / "gate.log"
        log_path.parent.mkdir(mode=0o700, exist_ok=True)
        group = ControlGroup(f"{self._prefix}{self._context.id}-gate")
        missing = group.create(limit_rules.gate_limits())
        if missing:
            log("gate_limits_missing", names=list(missing))

        def before_exec() -> None:
            namespaces.set_no_new_privileges()
            namespaces.die_with_parent(parent)

        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        with theirs, os.fdopen(os.open(log_path, flags, 0o600), "ab") as output:
            started = subprocess.Popen(  # noqa: ASYNC220 - starting does not wait; asyncio's own way uses threads
                [*self._gate_command, "--fd", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env=child_environment(self._context.config) | {"KM_POD": self._context.id},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                preexec_fn=before_exec,  # noqa: PLW1509 - the supervisor has one thread
            )
        process = ChildProcess(started.pid)
        started.returncode = 0
        gate = LocalGate(process, ours, group)
        try:
            group.add(process.pid)
            send_bootstrap(ours, bootstrap, listeners)
        except (OSError, KmError) as error:
            gate.kill()
            ours.close()
            await gate.wait()
            raise ProvisionError("the gate does not take its bootstrap", why=str(error)) from error
        return gate

    async def start(self, ca_pem: str) -> None:
        """Turn the holder into the sandbox and wait until its first process reports."""
        context = self._context
        if self._holder is None or self._channel is None:
            raise ProvisionError("the sandbox is not prepared", where=context.id)
        rootfs.write_rootfs(context.state_dir / "rootfs", context.id, context.plan, ca_pem)
        self._group.add(self._holder.pid)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._init = exec_channel.InitChannel(ours, self._broken)
        output_read, output_write = os.pipe2(os.O_CLOEXEC)
        filter_fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
        try:
            os.write(filter_fd, seccomp.program())
            os.lseek(filter_fd, 0, os.SEEK_SET)
            message = {
                "argv": self._argv(),
                "env": {"KM_HOME": str(context.config.home), "KM_POD": context.id},
                "rlimits": limit_rules.resource_limits(self._limits, self._missing),
                "processors": limit_rules.processors(self._limits, self._missing),
            }
            await send_frame(self._channel, message, (theirs.fileno(), filter_fd, output_write))
        finally:
            theirs.close()
            os.close(filter_fd)
            os.close(output_write)
            self._watch_output(output_read)
        try:
            received = await receive_frame(self._channel)
            if received is not None:
                raise ProvisionError("bubblewrap does not start", why=str(received[0].get("error", "")))
            await self._init.ready()
        except (KmError, frames.FrameError, OSError) as error:
            await self.kill()
            said = self._output.decode(errors="replace").strip()[-500:]
            raise ProvisionError("the sandbox does not start", why=said or str(error)) from error
        await self._make_working_directory()

    async def wait(self) -> int:
        """Wait for the end of the sandbox."""
        return await self._holder.wait() if self._holder is not None else 0

    async def freeze(self) -> None:
        """Freeze every process inside."""
        self._group.freeze()

    async def thaw(self) -> None:
        """Thaw every process inside."""
        self._group.thaw()

    async def kill(self, timeout_s: float = 0.0) -> None:
        """End every process inside."""
        holder = self._holder
        if holder is None:
            return
        if timeout_s > 0 and self._init is not None and holder.code is None:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._init.terminate()
                    await holder.wait()
        first = _children(holder.pid) if holder.code is None else []
        holder.kill()
        self._group.kill()
        await holder.wait()
        # The kernel ends a pid namespace after its first process; what is left then is already dying.
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            if not self._group.processes() and not any(map(_is_there, first)):
                break
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        """End the sandbox and remove its control group."""
        await self.kill()
        if self._init is not None:
            await self._init.close()
        if self._channel is not None:
            self._channel.close()
        if self._output_fd >= 0:
            asyncio.get_running_loop().remove_reader(self._output_fd)
            os.close(self._output_fd)
            self._output_fd = -1
        self._group.remove()

    def describe(self) -> dict[str, Any]:
        """Return limits, freezer, host uid and what the holder's process is."""
        return {
            "limits": limit_rules.PARTIAL if self._missing else limit_rules.ENFORCED,
            "not_enforced": [limit_rules.FIELDS[name] for name in self._missing],
            "freezer": self._group.has_freezer,
            "host_uid": self._ids.uid if self._ids is not None else None,
            "pid": self._holder.pid if self._holder is not None else 0,
        }

    async def serve_exec(self, connection: socket.socket) -> None:
        """Run one client's command inside."""
        if self._init is None or self._ids is None:
            # Read first: closing on unread data would be a reset, and the client would see no reason.
            await receive_frame(connection)
            raise ProvisionError("the sandbox has not been started", where=self._context.id)
        await exec_channel.serve(connection, self._init, (self._ids.uid, self._ids.gid))

    def _make_group(self) -> None:
        plan = self._context.plan.limits
        self._missing = self._group.create(self._limits)
        refused = limit_rules.unenforceable(plan, self._missing)
        if refused:
            self._group.remove()
            raise limit_error(refused)

    async def _answer(self, descriptors: int = 0) -> tuple[dict[str, Any], list[int]]:
        """Return the holder's next message; an error of its becomes ours."""
        if self._channel is None:
            raise ProvisionError("the sandbox is not prepared", where=self._context.id)
        try:
            received = await receive_frame(self._channel, max_descriptors=descriptors)
        except (frames.FrameError, OSError) as error:
            raise ProvisionError("the namespaces cannot be made", why=str(error)) from error
        if received is None:
            raise ProvisionError("the namespaces cannot be made", why="the process ended", hint="see pod.log")
        if "error" in received[0]:
            frames.close_all(received[1])
            why = str(received[0]["error"])
            obstacle = caps.user_namespace_obstacle()
            if obstacle is not None:
                raise obstacle
            raise ProvisionError(
                "the namespaces cannot be made",
                why=why,
                hint=str(received[0].get("hint") or "km doctor says more"),
            )
        return received

    def _argv(self) -> list[str]:
        context = self._context
        is_own = self._ids is None or self._ids.is_own
        shown = [
            (str(mount.source) if is_own else staged(index), mount)
            for index, mount in enumerate(self._mounts)
        ]
        return [
            caps.find_program("bwrap"),
            *rootfs.bubblewrap_arguments(
                context.id,
                shown,
                environment=rootfs.workload_environment(context.id, context.plan),
                seccomp_fd=SECCOMP_FD,
                scratch_bytes=self._limits.memory_bytes or 1 << 30,
            ),
            "--",
            *COMMAND,
            str(CHANNEL_FD),
        ]

    async def _make_working_directory(self) -> None:
        """Make the profile's working directory, by the sandbox's user: its files may hold links of its own."""
        directory = self._context.plan.workload.working_dir
        if self._init is None or directory in {rootfs.WORKSPACE, rootfs.HOME, "/"}:
            return
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            request = {"argv": ["/bin/mkdir", "-p", "--", directory], "env": {}, "cwd": "/", "tty": False}
            command, _ = await self._init.start(request, (null, null, null))
        finally:
            os.close(null)
        try:
            if await command.ended != 0:
                log("working_directory_missing", path=directory)
        finally:
            self._init.forget(command)

    def _broken(self, reason: str) -> None:
        """End a sandbox whose first process left the protocol."""
        if self._holder is not None and self._holder.code is None:
            log("init_channel_ended", why=reason)
            self._holder.kill()

    def _watch_output(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._output_fd = descriptor
        path = self._context.log_dir / "init.log"
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_bytes(b"")
        asyncio.get_running_loop().add_reader(descriptor, self._take_output, path)

    def _take_output(self, path: Path) -> None:
        try:
            data = os.read(self._output_fd, 65536)
        except OSError:
            return
        if not data:
            asyncio.get_running_loop().remove_reader(self._output_fd)
            return
        data = data[: max(MAX_OUTPUT - len(self._output), 0)]
        self._output += data
        with path.open("ab") as out:
            out.write(data)


def limit_error(names: tuple[str, ...]) -> ProvisionError:
    """Return the refusal of limits that this host cannot enforce."""
    return ProvisionError(
        f"this host cannot enforce the limit {', '.join(names)}",
        where="limits",
        why="no control group with that controller can be made",
        hint="run km as root or in a systemd user session with delegated controllers, or leave the limit out",
    )


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]
    except OSError:
        return []


def _is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def factory(context: PodContext) -> LocalPodBackend:
    """Return the backend of a sandbox (entry-point group ``km.pods``)."""
    return LocalPodBackend(context)
