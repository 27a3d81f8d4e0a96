"""
A control plane in one process: every operation of ``docs/internals.md``, for tests of plugins.

Its state is one JSON file below ``KM_HOME``, written before an operation is answered, so that a crash
can be tried.  It delivers no events, expires nothing and watches no processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import threading
import time
from typing import TYPE_CHECKING, Any

from attrs import evolve

from km_core import __version__
from km_core.control.ops import Op, Peer, boolean, integer, mapping, nullable, number, text
from km_core.control.protocols import ControlPlaneOffer
from km_core.errors import GuardError, NotFoundError, UsageError
from km_core.handlers.states import may_change
from km_core.testing import fake_ledger as ledger
from km_core.testing.fake_policy import FakePolicies
from km_core.testing.fake_sandbox_ops import sandbox_table
from km_core.testing.fake_sockets import FakeSockets
from km_core.types import SandboxRecord, SandboxState, is_alias, is_sandbox_id

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from km_core.config import Config

FILE = "fake-control.json"
MOST_NUSD = 2**62
_ID, _STEP, _NAME = text(longest=64), text(longest=128), text(longest=64, pattern=r"[a-z][a-z0-9-]*")
_MONEY = integer(0, MOST_NUSD)
_FIXED = frozenset({"id", "number", "version", "created_at", "profile", "substrate", "plan_digest", "region"})


class FakeControlPlane:
    """
    The state of one ``KM_HOME`` and its sandboxes' sockets.

    Args:
        config: where state and sockets are.
        clock: returns Unix seconds.
    """

    def __init__(self, config: Config, clock: Callable[[], float] = time.time) -> None:
        self.config = config
        self.clock = clock
        self.lock = threading.RLock()
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        self._started = clock()
        self._file = config.home / FILE
        self._sockets = FakeSockets()
        self._afterwards: list[Callable[[], None]] = []
        for directory in (config.home, config.runtime_dir):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.state: dict[str, Any] = {"sandboxes": {}, "secrets": {}, "anchors": {}, "last": 0}
        with contextlib.suppress(FileNotFoundError):
            self.state = json.loads(self._file.read_text(encoding="utf-8"))
        self.policies = FakePolicies(self)
        self.table = self._operator_table()
        for sandbox_id, entry in self.state["sandboxes"].items():
            if entry["token"]:
                self._serve(sandbox_id)

    def close(self) -> None:
        """Close every socket; the state stays in its file."""
        self._sockets.close_all()

    def save(self) -> None:
        """Write the state; the file is whole before and after."""
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps(self.state), encoding="utf-8")
        temporary.rename(self._file)

    def entry(self, sandbox_id: str) -> dict[str, Any]:
        """Return a sandbox's data; raises `NotFoundError`."""
        found: dict[str, Any] | None = self.state["sandboxes"].get(sandbox_id)
        if found is None:
            raise NotFoundError(f"there is no sandbox {sandbox_id[:64]!r}", hint="km list shows all")
        return found

    def record(self, sandbox_id: str) -> SandboxRecord:
        """Return a sandbox's record."""
        return SandboxRecord.from_wire(self.entry(sandbox_id)["record"])

    def emit(self, sandbox_id: str, kind: str, detail: dict[str, Any]) -> None:
        """Note an event in the sandbox's chain of this control plane."""
        self.events.append((sandbox_id, kind, detail))
        chain = self.entry(sandbox_id)["chain"] if sandbox_id in self.state["sandboxes"] else []
        last = chain[-1]["hash"] if chain else "0" * 64
        body = json.dumps({"kind": kind, "detail": detail, "prev": last}, sort_keys=True)
        chain.append({"seq": len(chain) + 1, "hash": hashlib.sha256(body.encode()).hexdigest()})

    def store(self, old: SandboxRecord, new: SandboxRecord) -> dict[str, Any]:
        """Store a changed record with the next version and return it as plain data."""
        if new.alias != old.alias:
            self._check_alias(new)
        wire = evolve(new, version=old.version + 1).to_wire()
        self.entry(old.id)["record"] = wire
        if new.state is not old.state:
            self.emit(old.id, str(new.state), {"from": str(old.state), "reason": new.reason})
        return wire

    def call(self, op: str, args: dict[str, Any]) -> Any:
        """Carry out one of the operator's operations and save what it changed."""
        entry = self.table.get(op)
        if entry is None:
            raise UsageError(f"unknown operation {op[:64]!r}")
        with self.lock:
            before = json.dumps(self.state)
            try:
                result = entry.run(Peer(os.getpid(), os.geteuid(), 0), **entry.checked(op, args))
            except BaseException:
                self.state = json.loads(before)
                raise
            self.save()
            # What goes over a wire is a copy.
            answer = json.loads(json.dumps(result))
            afterwards, self._afterwards = self._afterwards, []
        # Outside the lock, which the sockets' operations take too.
        for action in afterwards:
            action()
        return answer

    def _operator_table(self) -> dict[str, Op]:
        one = {"id": _ID}
        return {
            "ping": Op(
                lambda _peer: {"pid": os.getpid(), "version": __version__, "started_at": self._started}
            ),
            "sandbox.create": Op(self._create, {"record": mapping}),
            "sandbox.get": Op(lambda _peer, id: self.entry(id)["record"], one),  # noqa: A006 - the wire's word
            "sandbox.list": Op(lambda _peer: [record.to_wire() for record in self._records()]),
            "sandbox.resolve": Op(self._resolve, {"ref": _ID}),
            "sandbox.update": Op(
                self._update, {**one, "changes": mapping, "expect": nullable(mapping)}, frozenset({"expect"})
            ),
            "sandbox.delete": Op(self._delete, one),
            "sandbox.open": Op(self._open, one),
            "journal.begin": Op(self._begin, {**one, "step": _STEP, "index": integer(0, 10_000)}),
            "journal.done": Op(self._done, {**one, "step": _STEP}),
            "journal.list": Op(self._steps, one),
            "journal.undone": Op(self._undone, {**one, "step": _STEP}),
            "budget.set": Op(
                self._budget_set,
                {
                    **one,
                    "ai_limit_nusd": nullable(_MONEY),
                    "compute_limit_nusd": nullable(_MONEY),
                    "warning_threshold": number(0, 1),
                },
                frozenset({"warning_threshold"}),
            ),
            "budget.add": Op(
                self._budget_add,
                {**one, "ai_nusd": _MONEY, "compute_nusd": _MONEY},
                frozenset({"ai_nusd", "compute_nusd"}),
            ),
            "budget.get": Op(lambda _peer, id: ledger.summary(self.entry(id)["budget"]), one),  # noqa: A006 - likewise
            **self.policies.table(),
            "secret.set": Op(self._secret_set, {"name": _NAME, "value": text(longest=65536)}),
            "secret.list": Op(self._secret_list),
            "secret.show": Op(self._secret_show, {"name": _NAME}),
            "secret.rotate": Op(
                self._secret_rotate, {"name": _NAME, "value": text(longest=65536)}, frozenset({"value"})
            ),
            "secret.delete": Op(self._secret_delete, {"name": _NAME}),
            "audit.append": Op(self._append, {**one, "event": mapping}),
            "audit.checkpoint": Op(self._checkpoint, one),
            "audit.anchor": Op(lambda _peer, id: self.state["anchors"].get(id), one),  # noqa: A006 - likewise
            "audit.purge": Op(self._purge, one),
            "reconcile": Op(lambda _peer, dry_run=False: [], {"dry_run": boolean}, frozenset({"dry_run"})),  # noqa: ARG005 - nothing to find
            "tick": Op(lambda _peer: {}),
            "shutdown": Op(lambda _peer: {}),
        }

    def _records(self) -> list[SandboxRecord]:
        found = [SandboxRecord.from_wire(entry["record"]) for entry in self.state["sandboxes"].values()]
        return sorted(found, key=lambda record: record.number)

    def _check_alias(self, record: SandboxRecord) -> None:
        if record.alias and not is_alias(record.alias):
            raise UsageError("the alias has no valid value", where=record.id)
        if record.alias and any(
            record.alias in {o.alias, o.id} for o in self._records() if o.id != record.id
        ):
            raise GuardError(f"the alias {record.alias!r} is taken", hint="choose another alias")

    def _create(self, _peer: Peer, record: dict[str, Any]) -> dict[str, Any]:
        try:
            asked = SandboxRecord.from_wire(record)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError("the record is not one of a sandbox") from error
        if asked.state is not SandboxState.CREATING or not is_sandbox_id(asked.id):
            raise UsageError("a new sandbox has an id and is in state creating")
        count = len(self.state["sandboxes"])
        if asked.id in self.state["sandboxes"] or 0 < self.config.max_sandboxes <= count:
            raise GuardError("the id is taken, or there are too many sandboxes", where=asked.id)
        self._check_alias(asked)
        self.state["last"] = self.state["last"] + 1 if count else 1
        wire = evolve(asked, number=self.state["last"], version=1).to_wire()
        self.state["sandboxes"][asked.id] = {
            "record": wire,
            "journal": {},
            "budget": ledger.new_budget(),
            "token": "",
            "chain": [],
        }
        self.emit(asked.id, "create_requested", {"profile": asked.profile})
        return wire

    def _resolve(self, _peer: Peer, ref: str) -> dict[str, Any]:
        digits = ref.removeprefix("#")
        for found in (
            [r for r in self._records() if ref in {r.id, r.alias}],
            [r for r in self._records() if digits == str(r.number)],
            [r for r in self._records() if len(ref) >= 4 and r.id.startswith(ref)],
        ):
            if len(found) == 1:
                return found[0].to_wire()
        names = [name for record in self._records() for name in (record.id, record.alias) if name]
        raise NotFoundError(f"there is no sandbox {ref!r}", hint=f"known: {', '.join(names) or 'none'}")

    def _update(
        self,
        _peer: Peer,
        id: str,  # noqa: A002 - the wire's word
        changes: dict[str, Any],
        expect: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        old = self.record(id)
        wire = old.to_wire()
        for name, value in (expect or {}).items():
            if name not in wire or wire[name] != value:
                raise GuardError(f"the sandbox has changed meanwhile: {name[:64]}", where=id)
        for name, value in changes.items():
            if name not in wire or name in _FIXED or not _fits(wire[name], value):
                raise UsageError(f"the field {name[:64]!r} cannot be changed to that", where=id)
        try:
            new = SandboxRecord.from_wire(wire | changes)
        except ValueError as error:
            raise UsageError("a field has no valid value", where=id) from error
        if not may_change(old.state, new.state):
            raise GuardError(f"a {old.state} sandbox cannot become {new.state}", where=id)
        return self.store(old, new)

    def _delete(self, _peer: Peer, id: str) -> dict[str, Any]:  # noqa: A002 - the wire's word
        if id in self.state["sandboxes"]:
            self._checkpoint(_peer, id)
            del self.state["sandboxes"][id]
            self._afterwards.append(lambda: self._sockets.close(id))
        return {}

    def _open(self, _peer: Peer, id: str) -> dict[str, Any]:  # noqa: A002 - the wire's word
        token = secrets.token_urlsafe(32)
        self.entry(id)["token"] = _digest(token)
        self._afterwards.append(lambda: self._serve(id))
        return {"socket": str(self._path(id)), "token": token}

    def _serve(self, sandbox_id: str) -> None:
        ops = sandbox_table(self, sandbox_id)
        self._sockets.open(
            sandbox_id, self._path(sandbox_id), ops, lambda token: self._opens(sandbox_id, token)
        )

    def _path(self, sandbox_id: str) -> Path:
        return self.config.sandbox_runtime_dir(sandbox_id) / "kmd.sock"

    def _opens(self, sandbox_id: str, token: str) -> bool:
        known = self.state["sandboxes"].get(sandbox_id, {}).get("token", "")
        return bool(known) and hmac.compare_digest(known, _digest(token))

    def _begin(self, _peer: Peer, id: str, step: str, index: int) -> dict[str, Any]:  # noqa: A002 - the wire's word
        self.entry(id)["journal"][step] = {"step": step, "index": index, "state": "begun"}
        return {}

    def _done(self, _peer: Peer, id: str, step: str) -> dict[str, Any]:  # noqa: A002 - the wire's word
        if step not in self.entry(id)["journal"]:
            raise NotFoundError(f"the step {step!r} was never begun", where=id)
        self.entry(id)["journal"][step]["state"] = "done"
        return {}

    def _steps(self, _peer: Peer, id: str) -> list[dict[str, Any]]:  # noqa: A002 - the wire's word
        journal = self.state["sandboxes"].get(id, {}).get("journal", {})
        return sorted(journal.values(), key=lambda step: (step["index"], step["step"]))

    def _undone(self, _peer: Peer, id: str, step: str) -> dict[str, Any]:  # noqa: A002 - the wire's word
        self.state["sandboxes"].get(id, {}).get("journal", {}).pop(step, None)
        return {}

    def _budget_set(
        self,
        _peer: Peer,
        id: str,  # noqa: A002 - the wire's word
        ai_limit_nusd: int | None,
        compute_limit_nusd: int | None,
        warning_threshold: float | None = None,
    ) -> dict[str, Any]:
        budget = self.entry(id)["budget"]
        budget["ai"]["limit_nusd"], budget["compute"]["limit_nusd"] = ai_limit_nusd, compute_limit_nusd
        if warning_threshold is not None:
            budget["warning_threshold"] = warning_threshold
        return ledger.summary(budget)

    def _budget_add(self, _peer: Peer, id: str, ai_nusd: int = 0, compute_nusd: int = 0) -> dict[str, Any]:  # noqa: A002 - the wire's word
        ledger.add(self.entry(id)["budget"], ai=ai_nusd, compute=compute_nusd)
        return ledger.summary(self.entry(id)["budget"])

    def _secret_set(self, _peer: Peer, name: str, value: str) -> dict[str, Any]:
        self.state["secrets"][name] = {"value": value, "updated_at": self.clock()}
        return {}

    def _secret_list(self, _peer: Peer) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "updated_at": item["updated_at"],
                "fingerprint": _digest(item["value"])[:12],
                "source": "sealed",
                "last_used_at": None,
                "used": [],
            }
            for name, item in sorted(self.state["secrets"].items())
        ]

    def _secret_show(self, _peer: Peer, name: str) -> dict[str, Any]:
        for item in self._secret_list(_peer):
            if item["name"] == name:
                return item
        raise NotFoundError(f"there is no secret {name!r}")

    def _secret_rotate(self, peer: Peer, name: str, value: str | None = None) -> dict[str, Any]:
        before = str(self._secret_show(peer, name)["fingerprint"])
        if value is None:
            raise UsageError("the new value is missing", where="secret.rotate")
        self._secret_set(peer, name, value)
        return {"name": name, "before": before, "after": _digest(value)[:12]}

    def _secret_delete(self, _peer: Peer, name: str) -> dict[str, Any]:
        if self.state["secrets"].pop(name, None) is None:
            raise NotFoundError(f"there is no secret {name!r}")
        return {}

    def _append(self, _peer: Peer, id: str, event: dict[str, Any]) -> dict[str, Any]:  # noqa: A002 - the wire's word
        if not isinstance(event.get("kind"), str):
            raise UsageError("an event has a kind", where="audit.append")
        self.emit(self.record(id).id, event["kind"], event)
        last: dict[str, Any] = self.entry(id)["chain"][-1]
        return last

    def _checkpoint(self, _peer: Peer, id: str) -> dict[str, Any]:  # noqa: A002 - the wire's word
        chain = self.entry(id)["chain"]
        number = self.state["anchors"].get(id, {"number": 0})["number"] + 1
        head = chain[-1] if chain else {"seq": 0, "hash": "0" * 64}
        checkpoint = {"number": number, "sandbox_id": id, "heads": {"kmd": head}}
        digest = hashlib.sha256(json.dumps(checkpoint, sort_keys=True).encode()).hexdigest()
        self.state["anchors"][id] = {"number": number, "digest": digest}
        return checkpoint

    def _purge(self, _peer: Peer, id: str) -> dict[str, Any]:  # noqa: A002 - the wire's word
        if id in self.state["sandboxes"]:
            raise GuardError("the evidence of a sandbox that exists is not removed", where=id)
        self.state["anchors"].pop(id, None)
        return {}


class FakeControl:
    """A connection to a `FakeControlPlane`; implements `km_core.control.protocols.Control`."""

    def __init__(self, plane: FakeControlPlane) -> None:
        self._plane = plane

    def call(self, op: str, /, **args: Any) -> Any:
        """Carry out an operation; raises `KmError`."""
        return self._plane.call(op, args)

    def close(self) -> None:
        """Do nothing: the control plane belongs to the test."""


def fake_offer(plane: FakeControlPlane) -> ControlPlaneOffer:
    """Return the offer of a fake control plane, for a plugin that a test makes."""
    return ControlPlaneOffer("fake", "in this process, for tests", lambda _config: FakeControl(plane))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _fits(old: Any, value: Any) -> bool:
    if isinstance(old, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
    if isinstance(old, int):
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return isinstance(value, type(old))
