"""What every lifecycle operation needs: configuration, control plane, substrates, boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import define, field

from km_core.control.substrate import Box
from km_core.errors import KmError, NotFoundError
from km_core.lifecycle.plan_file import read_plan
from km_core.plan import SandboxPlan
from km_core.types import SandboxRecord

if TYPE_CHECKING:
    from km_core.config import Config
    from km_core.control.protocols import Control
    from km_core.control.substrate import Substrate
    from km_core.plugins import PluginRegistry


@define
class Session:
    """One command's connection to everything; close it when done."""

    config: Config
    plugins: PluginRegistry
    _control: Control | None = field(default=None)

    @property
    def control(self) -> Control:
        """The control plane named in the configuration, connected on first use."""
        if self._control is None:
            offers = self.plugins.control_planes()
            name = self.config.control_plane
            if name not in offers:
                why, hint = self.plugins.remedy(f"km-{name}")
                if not why and name not in {"embedded", "aws"}:
                    hint = f"installed: {', '.join(offers) or 'none'}"
                raise NotFoundError(
                    f"no installed plugin offers the control plane {name!r}",
                    where="control_plane",
                    why=why,
                    hint=hint,
                )
            self._control = offers[name].connect(self.config)
        return self._control

    def close(self) -> None:
        """Give the control connection back."""
        if self._control is not None:
            self._control.close()
            self._control = None

    def substrate(self, name: str) -> Substrate:
        """Return a substrate by name; `NotFoundError` says what to install, or what failed to load."""
        offers = self.plugins.substrates()
        if name not in offers:
            why, hint = self.plugins.remedy(f"km-substrate-{name}")
            raise NotFoundError(
                f"no installed plugin offers the substrate {name!r}",
                where="spec.runtime.substrate",
                why=why,
                hint=f"{hint}, or choose one of: {', '.join(offers) or 'none installed'}",
            )
        return offers[name]

    def record(self, ref: str) -> SandboxRecord:
        """Resolve a reference: id, alias, number or unique id prefix."""
        return SandboxRecord.from_wire(self.control.call("sandbox.resolve", ref=ref))

    def records(self) -> list[SandboxRecord]:
        """Return every sandbox, by number."""
        return [SandboxRecord.from_wire(item) for item in self.control.call("sandbox.list")]

    def update(
        self, sandbox_id: str, *, expect: dict[str, Any] | None = None, **changes: Any
    ) -> SandboxRecord:
        """Change a record's fields, under a condition."""
        return SandboxRecord.from_wire(
            self.control.call("sandbox.update", id=sandbox_id, changes=changes, expect=expect or {})
        )

    def plan(self, record: SandboxRecord) -> SandboxPlan:
        """
        Return the stored plan of a sandbox.

        Raises:
            PlanError: there is none, or it cannot be read.
            GuardError: it is not the plan that the sandbox was made with.
        """
        return read_plan(self.config.sandbox_dir(record.id), record.plan_digest)

    def plan_for_removal(self, record: SandboxRecord) -> SandboxPlan:
        """
        Return the stored plan, or an empty one where it is missing, damaged or another.

        What a sandbox left is found by its id: a plan that cannot be read must not keep it alive.
        """
        try:
            return self.plan(record)
        except KmError:
            return SandboxPlan(
                profile=record.profile,
                profile_digest="",
                prefix=record.id.partition("-")[0],
                substrate=record.substrate,
            )

    def box(self, record: SandboxRecord, *, plan: SandboxPlan | None = None, with_token: bool = False) -> Box:
        """
        Return the substrate's view of a sandbox.

        *with_token* opens the sandbox's own control socket and takes a fresh token for it; only
        preparing a sandbox needs one.
        """
        token = ""
        socket = self.config.sandbox_runtime_dir(record.id) / "kmd.sock"
        if with_token:
            answer = self.control.call("sandbox.open", id=record.id)
            token = answer["token"]
            socket = type(socket)(answer["socket"])
        return Box(
            id=record.id,
            plan=self.plan(record) if plan is None else plan,
            config=self.config,
            state_dir=self.config.sandbox_dir(record.id),
            runtime_dir=self.config.sandbox_runtime_dir(record.id),
            audit_dir=self.config.audit_dir(record.id),
            control_socket=socket,
            token=token,
        )


def open_session(config: Config | None = None) -> Session:
    """Load configuration and plugins; connects to nothing yet."""
    from km_core.config import load_config
    from km_core.plugins import load_plugins

    return Session(config if config is not None else load_config(), load_plugins())
