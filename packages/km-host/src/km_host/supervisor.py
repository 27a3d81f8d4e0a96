"""One sandbox under supervision: what `km_host.pod` runs in its process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

from km_core.control import ops
from km_core.control.server import ControlServer
from km_core.errors import ControlUnavailableError, GuardError, KmError, ProvisionError
from km_host.backend import ExecBackend
from km_host.bootstrap import make_bootstrap
from km_host.fds import peer_of, receive_frame, send_frame
from km_host.gatekeeper import GATE_TIMING, GateKeeper, GateTiming
from km_host.inside.frames import FrameError
from km_host.lifeline import ENSURE_COMMAND, LIFELINE_TIMING, Lifeline, LifelineTiming
from km_host.log_bounds import bound
from km_host.pod_client import EXEC_SOCKET, SOCKET
from km_host.pod_log import log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from km_host.backend import GateHandle, PodBackend, PodContext
    from km_host.listeners import Listeners
    from km_host.pod_inputs import PodInputs

STOP_TIMEOUT_S = 10.0
MAX_CLIENTS = 400
"""Commands at a time, others wait: the gate's restart must never lack a descriptor (usually 1024)."""
ACCEPT_PAUSE_S = 0.5
MAX_GRANTS = 4096
"""More than any control plane gives one sandbox."""
LOGS = ("gate.log", "pod.log")
"""Files in the log directory that are kept from growing for ever; ``init.log`` ends at its bound."""
LOGS_S = 5.0


class Pod:
    """
    One sandbox under supervision.

    Args:
        inputs: what `Substrate.prepare` said.
        backend: the sandbox on its substrate.
        context: the same as the backend has.
    """

    def __init__(
        self,
        inputs: PodInputs,
        context: PodContext,
        backend: PodBackend,
        *,
        gate_timing: GateTiming = GATE_TIMING,
        lifeline_timing: LifelineTiming = LIFELINE_TIMING,
        ensure: tuple[str, ...] = ENSURE_COMMAND,
    ) -> None:
        self._inputs = inputs
        self._context = context
        self._backend = backend
        self._gate_timing = gate_timing
        self._lifeline = Lifeline(
            inputs.control_socket, inputs.token, log, ensure=ensure, timing=lifeline_timing
        )
        self._listeners: Listeners | None = None
        self._keeper: GateKeeper | None = None
        self._state, self._reason = "prepared", ""
        self._stop_timeout_s = STOP_TIMEOUT_S
        self._stopping, self._gone = asyncio.Event(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients: set[asyncio.Task[None]] = set()
        uids = {os.getuid(), 0}
        self._server = ControlServer(inputs.runtime_dir / SOCKET, self._ops(), uids=uids, log=log)

    async def run(self, ready: Callable[[], None]) -> int:
        """Bring everything up, say *ready*, serve until the end; returns the exit code."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stop, "terminated")
        try:
            await self._open()
            await self._server.start()
            if isinstance(self._backend, ExecBackend):
                self._spawn(self._serve_exec(self._backend))
            self._spawn(self._lifeline.run())
            self._spawn(self._keep_deadline())
            self._spawn(self._keep_logs())
            if self._keeper is not None:
                self._spawn(self._keeper.run())
            ready()
            await self._stopping.wait()
        finally:
            await self._close()
        return 0

    def stop(self, reason: str, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Begin the end; the first reason stays."""
        if not self._stopping.is_set():
            self._reason, self._stop_timeout_s = reason, timeout_s
            self._stopping.set()

    async def _open(self) -> None:
        self._listeners = listeners = await self._backend.open()
        listeners.tcp.setblocking(False)
        listeners.dns.setblocking(False)
        bootstrap = make_bootstrap(
            self._context,
            how=listeners.how,
            control_socket=self._inputs.control_socket,
            token=self._inputs.token,
            alias=self._inputs.alias,
        )

        async def spawn() -> GateHandle:
            return await self._backend.spawn_gate(bootstrap, listeners)

        self._keeper = GateKeeper(
            spawn,
            listeners,
            lost=self._enforcement_lost,
            event=self._event,
            log=log,
            timing=self._gate_timing,
        )
        await self._keeper.start()

    async def _close(self) -> None:
        """Take everything down in an order that never leaves a workload without its gate's policy."""
        await _cancel(self._tasks)
        # Clients are served to the last: a command that lost its reader could not end in order.
        with _logged("workload"):
            # What is frozen cannot be asked to end.
            await self._backend.kill(self._stop_timeout_s if self._state == "running" else 0.0)
        if self._keeper is not None:
            with _logged("gate"):
                await self._keeper.stop()
        if self._listeners is not None:
            self._listeners.close()
        with _logged("substrate"):
            await self._backend.close()
        await _cancel(self._clients)
        if self._state in {"running", "paused"}:
            self._lifeline.report_state("stopped", self._reason)
            await self._lifeline.flush(2.0)
        self._state = "stopped"
        await self._lifeline.close()
        self._gone.set()
        await self._server.close()
        with contextlib.suppress(OSError):
            (self._inputs.runtime_dir / EXEC_SOCKET).unlink()
        log("pod_ended", reason=self._reason)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # A supervisor that lost one of its duties must not go on as if it did them.
            log("pod_failed", why=repr(task.exception()))
            self.stop("supervisor failed", 0.0)

    def _event(self, kind: str, detail: dict[str, Any]) -> None:
        self._lifeline.report("event", kind=kind, detail=detail)

    async def _enforcement_lost(self, reason: str) -> None:
        log("enforcement_lost", why=reason)
        self._event("enforcement_lost", {"reason": reason})
        running, self._state, self._reason = self._state == "running", "frozen", f"enforcement lost: {reason}"
        if running:
            try:
                await self._backend.freeze()
            except KmError as error:
                log("no_freezer", why=str(error))
                await self._backend.kill()
        self._lifeline.report_state("frozen", self._reason)

    async def _keep_deadline(self) -> None:
        while True:
            if self._state != "frozen" and self._lifeline.is_due(time.time()):
                silent = self._lifeline.is_silent
                self._event("expired", {"by": "supervisor"})
                self.stop(
                    f"time to live passed, control plane {'silent' if silent else 'does not end it'}", 0.0
                )
            await asyncio.sleep(1.0)

    async def _keep_logs(self) -> None:
        """A sandbox that makes its gate complain must not fill the operator's disk."""
        while True:
            for name in LOGS:
                try:
                    bound(self._context.log_dir / name)
                except OSError as error:
                    log("log_not_kept", name=name, why=str(error))
            await asyncio.sleep(LOGS_S)

    async def _watch_workload(self) -> None:
        code = await self._backend.wait()
        log("workload_ended", code=code)
        if self._state != "frozen":
            self.stop(f"the first process ended with code {code}", 0.0)

    async def _serve_exec(self, backend: ExecBackend) -> None:
        path = self._inputs.runtime_dir / EXEC_SOCKET
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.setblocking(False)
            listener.bind(str(path))
            listener.listen(64)
            while True:
                if len(self._clients) >= MAX_CLIENTS:
                    await asyncio.wait(self._clients, return_when=asyncio.FIRST_COMPLETED)
                    continue
                try:
                    connection, _ = await loop.sock_accept(listener)
                except OSError as error:
                    # Out of descriptors, say: no reason to end the sandbox.
                    log("accept_failed", why=str(error))
                    await asyncio.sleep(ACCEPT_PAUSE_S)
                    continue
                _, uid, _ = peer_of(connection)
                if uid not in {os.getuid(), 0}:
                    log("peer_refused", uid=uid)
                    connection.close()
                    continue
                self._lifeline.report("activity", at=time.time())
                client = loop.create_task(self._one_exec(backend, connection))
                self._clients.add(client)
                client.add_done_callback(self._clients.discard)

    async def _one_exec(self, backend: ExecBackend, connection: socket.socket) -> None:
        with connection:
            try:
                if self._state in {"paused", "frozen"}:
                    # Read first: closing on unread data would be a reset, and the client would see no reason.
                    await receive_frame(connection)
                    raise GuardError(
                        f"a {self._state} sandbox runs no commands", hint="km resume brings it back"
                    )
                await backend.serve_exec(connection)
            except (OSError, FrameError) as error:
                log("exec_failed", why=str(error))
                failed = ProvisionError("the command cannot be started", why=str(error))
                with contextlib.suppress(OSError):
                    await send_frame(connection, {"error": failed.to_dict()})
            except KmError as error:
                with contextlib.suppress(OSError):
                    await send_frame(connection, {"error": error.to_dict()})
            except Exception as error:  # noqa: BLE001 - one client's trouble is not the supervisor's
                log("exec_failed", why=repr(error))

    # Operations of pod.sock (docs/internals.md).

    def _ops(self) -> dict[str, ops.Op]:
        return {
            "status": ops.Op(lambda _peer: self._status()),
            "start": ops.Op(self._op_start),
            "stop": ops.Op(self._op_stop, {"timeout_s": ops.number(0, 600)}, frozenset({"timeout_s"})),
            "freeze": ops.Op(self._op_freeze),
            "thaw": ops.Op(self._op_thaw),
            "policy.check": ops.Op(
                self._op_check_policy,
                {"policy": ops.nullable(ops.mapping), "grants": ops.listing(MAX_GRANTS)},
            ),
            "policy.refresh": ops.Op(self._op_refresh_policy),
        }

    def _status(self) -> dict[str, Any]:
        described = self._backend.describe()
        return {
            "pod_pid": os.getpid(),
            "gate": self._keeper.status() if self._keeper is not None else {},
            "running": self._state in {"running", "paused"},
            "state": self._state,
            "enforcement": self._listeners.how if self._listeners is not None else "",
            "limits": described.get("limits", ""),
            "reason": self._reason,
            "backend": described,
        }

    async def _op_start(self, _peer: ops.Peer) -> dict[str, Any]:
        if self._state in {"running", "paused"}:
            return {}
        if self._state != "prepared" or self._keeper is None or self._keeper.state == "lost":
            raise GuardError(f"a {self._state} sandbox cannot be started", where=self._inputs.id)
        self._state = "running"
        try:
            await self._backend.start(self._keeper.ca_pem)
        except BaseException:
            self._state = "prepared"
            raise
        self._spawn(self._watch_workload())
        return {}

    async def _op_stop(self, _peer: ops.Peer, timeout_s: float = STOP_TIMEOUT_S) -> dict[str, Any]:
        self.stop("operator", timeout_s)
        await self._gone.wait()
        return {}

    async def _op_check_policy(
        self, _peer: ops.Peer, policy: dict[str, Any] | None, grants: list[Any]
    ) -> dict[str, Any]:
        return await self._ask("policy.check", policy=policy, grants=grants)

    async def _op_refresh_policy(self, _peer: ops.Peer) -> dict[str, Any]:
        return await self._ask("policy.refresh")

    async def _ask(self, what: str, **data: Any) -> dict[str, Any]:
        if self._keeper is None:
            raise ControlUnavailableError("the gate does not answer", why="it was never started")
        answer: dict[str, Any] = await self._keeper.ask(what, **data)
        return answer

    async def _op_freeze(self, _peer: ops.Peer) -> dict[str, Any]:
        if self._state == "running":
            await self._backend.freeze()
            self._state = "paused"
        elif self._state != "paused":
            raise GuardError(f"a {self._state} sandbox cannot be paused", where=self._inputs.id)
        return {}

    async def _op_thaw(self, _peer: ops.Peer) -> dict[str, Any]:
        if self._state == "paused":
            await self._backend.thaw()
            self._state = "running"
        elif self._state != "running":
            raise GuardError(f"a {self._state} sandbox cannot be resumed", where=self._inputs.id)
        return {}


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    pending = tuple(tasks)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)


@contextlib.contextmanager
def _logged(part: str) -> Iterator[None]:
    """Go on with taking down whatever one part says; what stays behind is found by reconciling."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - as said
        log("close_failed", part=part, why=repr(error))
