"""The parts of kmd in one place: what its operations and its tick act on."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

from km_core.control.server import ControlServer
from km_core.errors import AuditError, KmError
from km_embedded.changes import update
from km_embedded.credentials import PlanSecrets
from km_embedded.evidence import Evidence
from km_embedded.files import private_dir
from km_embedded.leases import Leases
from km_embedded.ledger import Ledger
from km_embedded.notify import Notifier
from km_embedded.policies import Policies
from km_embedded.secret_keeper import LiveConfig, SecretKeeper
from km_embedded.secrets import Secrets
from km_embedded.settings import Settings
from km_embedded.sockets import SandboxSockets
from km_embedded.store import Database, JournalStore, Outbox, Records
from km_embedded.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from km_core.config import Config
    from km_core.types import SandboxRecord


COMPLAIN_S = 60.0
MAX_COMPLAINTS = 1024


def _silent(_event: str, /, **_fields: Any) -> None:
    """Log nothing."""


class Service:
    """
    kmd without its loop.

    Args:
        config: directories and limits.
        settings: timings.
        clock: returns Unix seconds.
        log: called with an event's name and fields.
        secrets_for: names of the secrets that a plan calls for, from the plan's data.
        task_command: what `Tasks` starts.
        deliver_command: what `Notifier` starts.

    Raises:
        ControlError: a directory belongs to somebody else, or the database cannot be used.
    """

    def __init__(
        self,
        config: Config,
        *,
        settings: Settings | None = None,
        clock: Callable[[], float] = time.time,
        log: Callable[..., None] = _silent,
        secrets_for: Callable[[dict[str, Any]], set[str]] | None = None,
        task_command: Sequence[str] | None = None,
        deliver_command: Sequence[str] | None = None,
    ) -> None:
        self.config = config
        self.settings = Settings() if settings is None else settings
        self.clock = clock
        self.log = log
        self.started_at = clock()
        private_dir(config.home, follow=True)
        private_dir(config.runtime_dir)
        self.db = Database(config.home / "km.db")
        self.records = Records(self.db)
        self.journal = JournalStore(self.db)
        self.outbox = Outbox(self.db)
        self.evidence = Evidence(config, self.db, self.outbox, clock)
        self.ledger = Ledger(self.db, self.evidence.emit)
        self.secrets = Secrets(self.db, config.home / "secret.key")
        self.live_config = LiveConfig(config)
        self.keeper = SecretKeeper(self.db, self.secrets, self.live_config, clock)
        if secrets_for is None:
            secrets_for = PlanSecrets(rules=lambda: self.live_config().credentials)
        self.secrets_for = secrets_for
        # By sandbox: the names its plan calls for, and what they were worked out from.
        self.secret_names: dict[str, tuple[object, set[str]]] = {}
        self.leases = Leases()
        self.policies = Policies(self)
        # What the tick remembers between two runs; losing it only moves a moment.
        self.lost: dict[str, float] = {}
        self.money_checked = 0.0
        self._complaints: dict[tuple[str, str], float] = {}
        self.calls_forgotten = 0.0
        self.checkpointed = self.started_at
        tasks = {} if task_command is None else {"command": task_command}
        self.tasks = Tasks(config, clock=clock, log=log, timeout_s=self.settings.task_timeout_s, **tasks)
        deliver = {} if deliver_command is None else {"command": deliver_command}
        self.notifier = Notifier(self.db, self.outbox, clock=clock, log=log, **deliver)

        # The tables of operations act on this object; they are built last.
        from km_embedded.operator_ops import operator_ops
        from km_embedded.sandbox_ops import sandbox_ops

        self.sockets = SandboxSockets(config, self.db, lambda sandbox_id: sandbox_ops(self, sandbox_id), log)
        self.operator = ControlServer(
            config.runtime_dir / "kmd.sock", operator_ops(self), uids={os.geteuid(), 0}, log=log
        )
        self.stopping: Callable[[], None] = lambda: None

    @contextlib.contextmanager
    def act(self, sandbox_id: str) -> Iterator[None]:
        """
        Run the block in a transaction and carry its events to the audit chains.

        Args:
            sandbox_id: whose change it is.

        Raises:
            AuditError: the change was made but its evidence cannot be written yet; it is kept and
                written by the tick as soon as it can be.
        """
        with self.db.transaction():
            yield
        self.evidence.flush(sandbox_id)

    def update(
        self, sandbox_id: str, changes: dict[str, Any], *, expect: dict[str, Any] | None = None
    ) -> SandboxRecord:
        """Change a record, see `km_embedded.changes.update`; a change of state is a checkpoint too."""
        with self.act(sandbox_id):
            old, new = update(
                self.records, self.evidence.emit, sandbox_id, changes, now=self.clock(), expect=expect
            )
        if new.state is not old.state:
            self.checkpoint(sandbox_id, state=str(new.state))
        return new

    def complain(self, event: str, sandbox_id: str, error: Exception) -> None:
        """Log a trouble of the tick; the same one again at most once a minute."""
        why = error.what if isinstance(error, KmError) else type(error).__name__
        now = self.clock()
        if now - self._complaints.get((sandbox_id, why), 0.0) >= COMPLAIN_S:
            if len(self._complaints) > MAX_COMPLAINTS:
                self._complaints.clear()
            self._complaints[sandbox_id, why] = now
            self.log(event, sandbox=sandbox_id, why=why, error=error)

    def checkpoint(self, sandbox_id: str, *, state: str = "") -> None:
        """Sign a sandbox's heads; a failure is logged and told, and does not undo what happened."""
        try:
            self.evidence.checkpoint(sandbox_id, state=state)
        except AuditError as error:
            self.log("checkpoint_failed", sandbox=sandbox_id, why=error.what)

    def idle(self) -> bool:
        """Say whether nobody needs kmd: no sandboxes, no clients."""
        return self.records.count() == 0 and self.operator.connections == 0 and self.sockets.connections == 0

    async def start(self) -> None:
        """Open the sandboxes' sockets, then the operator's."""
        await self.sockets.open_known()
        await self.operator.start()

    async def close(self) -> None:
        """Close sockets, chains and the database; tasks under way go on."""
        await self.operator.close(wait_s=2)
        await self.sockets.close_all()
        await self.notifier.close()
        await self.keeper.close()
        self.tasks.close()
        self.evidence.close()
        self.db.close()
