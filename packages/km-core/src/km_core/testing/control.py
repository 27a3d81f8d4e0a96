"""What every control plane promises; subclass `ControlPlaneContract`."""

from __future__ import annotations

import concurrent.futures
from typing import TYPE_CHECKING, Any

import pytest

from km_core.control.rpc import ControlClient
from km_core.errors import GuardError, KmError, NotFoundError, PolicyDenied, UsageError
from km_core.testing.control_policy import PolicyPromises
from km_core.testing.control_spending import SpendingPromises, new_record
from km_core.testing.probes import canary

if TYPE_CHECKING:
    from collections.abc import Callable

    from km_core.control.protocols import Control, ControlPlaneOffer
    from km_core.testing.control_spending import Sandbox

__all__ = ["ControlPlaneContract"]

OWN_EVENTS = ("created", "stopped", "resumed", "destroyed", "budget_topup", "budget_warning")
"""Kinds that only a control plane records itself."""


class ControlPlaneContract(SpendingPromises, PolicyPromises):
    """
    Promises C1 to C22; C11 to C15 stand in `km_core.testing.control_spending`, C21 and C22 in
    `km_core.testing.control_policy`.

    Must override: `offer`.  May override: `config`, `crash`.

    Attributes:
        supports_crash: whether the control plane can be killed and found again by a test.
    """

    supports_crash = True

    def test_c1_it_answers_and_says_who_it_is(self, offer: ControlPlaneOffer, control: Control) -> None:
        """C1: the offer has a name and a summary; two connections work side by side."""
        assert offer.name
        assert offer.summary
        answer = control.call("ping")
        assert isinstance(answer["pid"], int)
        assert isinstance(answer["version"], str)
        assert isinstance(answer["started_at"], (int, float))

    def test_c2_records_are_kept_and_found(self, control: Control) -> None:
        """C2: a record is stored as given, numbered, and found by id, alias, number and id prefix."""
        given = new_record(alias="blue", labels={"team": "a"}, profile="p")
        made = control.call("sandbox.create", record=given.to_wire())
        assert made["number"] >= 1
        assert {**made, "number": 0, "version": 0} == {**given.to_wire(), "number": 0, "version": 0}
        assert control.call("sandbox.get", id=given.id) == made
        assert made in control.call("sandbox.list")
        for ref in (given.id, "blue", str(made["number"]), f"#{made['number']}", given.id[:-1]):
            assert control.call("sandbox.resolve", ref=ref) == made, ref
        for ref in ("nobody", "sb-00000000", "#99999"):
            with pytest.raises(NotFoundError):
                control.call("sandbox.resolve", ref=ref)

    def test_c3_ids_and_aliases_are_taken_once(self, control: Control) -> None:
        """C3: a taken id or alias, and a sandbox that is not new, are refused."""
        given = new_record(alias="blue")
        control.call("sandbox.create", record=given.to_wire())
        for again in (given, new_record(alias="blue")):
            with pytest.raises(GuardError):
                control.call("sandbox.create", record=again.to_wire())
        for wrong in (new_record(state="running"), new_record(id="not an id"), new_record(alias="No Alias")):
            with pytest.raises(UsageError):
                control.call("sandbox.create", record=wrong.to_wire())
        assert len(control.call("sandbox.list")) == 1

    def test_c4_updates_can_be_conditional(self, control: Control) -> None:
        """C4: an update whose expectation does not hold changes nothing; the version grows with each."""
        given = new_record()
        made = control.call("sandbox.create", record=given.to_wire())
        with pytest.raises(GuardError):
            control.call("sandbox.update", id=given.id, changes={"reason": "x"}, expect={"state": "running"})
        assert control.call("sandbox.get", id=given.id) == made
        after = control.call(
            "sandbox.update", id=given.id, changes={"reason": "x"}, expect={"state": "creating"}
        )
        assert (after["reason"], after["version"]) == ("x", made["version"] + 1)
        for changes in ({"id": "sb-00000001"}, {"no_such_field": 1}, {"state": "flying"}, {"reason": 7}):
            with pytest.raises(UsageError):
                control.call("sandbox.update", id=given.id, changes=changes, expect={})
        assert control.call("sandbox.get", id=given.id) == after

    def test_c5_of_updates_at_once_one_wins(self, control: Control, connect: Callable[[], Control]) -> None:
        """C5: of several updates that expect the same version, exactly one is made."""
        given = new_record()
        made = control.call("sandbox.create", record=given.to_wire())
        connections = [connect() for _ in range(6)]

        def attempt(number: int) -> bool:
            try:
                connections[number].call(
                    "sandbox.update",
                    id=given.id,
                    changes={"reason": f"by {number}"},
                    expect={"version": made["version"]},
                )
            except GuardError:
                return False
            return True

        with concurrent.futures.ThreadPoolExecutor(len(connections)) as pool:
            won = list(pool.map(attempt, range(len(connections))))
        assert won.count(True) == 1
        assert control.call("sandbox.get", id=given.id)["reason"] == f"by {won.index(True)}"

    def test_c6_states_go_one_way(self, control: Control) -> None:
        """C6: nothing becomes `creating` again, and what is being destroyed does not come back."""
        given = new_record()
        control.call("sandbox.create", record=given.to_wire())
        control.call("sandbox.update", id=given.id, changes={"state": "destroying"}, expect={})
        for state in ("creating", "running", "stopped"):
            with pytest.raises(GuardError):
                control.call("sandbox.update", id=given.id, changes={"state": state}, expect={})

    def test_c7_what_is_not_understood_is_refused(self, control: Control) -> None:
        """C7: unknown operations, unknown or missing arguments and wrong types change nothing."""
        given = new_record()
        made = control.call("sandbox.create", record=given.to_wire())
        calls: tuple[tuple[str, dict[str, Any]], ...] = (
            ("no.such.operation", {}),
            ("sandbox.get", {}),
            ("sandbox.get", {"id": given.id, "extra": 1}),
            ("sandbox.get", {"id": 7}),
            ("sandbox.create", {"record": {}}),
            ("sandbox.update", {"id": given.id, "changes": "x"}),
            ("budget.set", {"id": given.id, "ai_limit_nusd": -1, "compute_limit_nusd": None}),
            ("budget.set", {"id": given.id, "ai_limit_nusd": 1.5, "compute_limit_nusd": None}),
            ("budget.set", {"id": given.id, "ai_limit_nusd": True, "compute_limit_nusd": None}),
            ("budget.add", {"id": given.id, "ai_nusd": 0, "compute_nusd": 0}),
            ("secret.set", {"name": "../x", "value": "v"}),
            ("audit.append", {"id": given.id, "event": {"no": "kind"}}),
        )
        for op, arguments in calls:
            with pytest.raises(UsageError):
                control.call(op, **arguments)
        assert control.call("sandbox.get", id=given.id) == made
        for op in ("sandbox.get", "budget.get", "sandbox.open", "audit.checkpoint"):
            with pytest.raises(NotFoundError):
                control.call(op, id="sb-00000000")

    def test_c8_the_journal_keeps_each_step(self, control: Control) -> None:
        """C8: steps are listed in order with their state; beginning, ending and undoing are idempotent."""
        given = new_record()
        control.call("sandbox.create", record=given.to_wire())
        for step, index in (("second", 1), ("first", 0), ("second", 1)):
            control.call("journal.begin", id=given.id, step=step, index=index)
        for _ in range(2):
            control.call("journal.done", id=given.id, step="first")
        assert control.call("journal.list", id=given.id) == [
            {"step": "first", "index": 0, "state": "done"},
            {"step": "second", "index": 1, "state": "begun"},
        ]
        with pytest.raises(NotFoundError):
            control.call("journal.done", id=given.id, step="never begun")
        for _ in range(2):
            control.call("journal.undone", id=given.id, step="second")
        assert [step["step"] for step in control.call("journal.list", id=given.id)] == ["first"]

    def test_c9_deleting_takes_everything_along_and_is_idempotent(
        self, control: Control, open_sandbox: Callable[..., Sandbox]
    ) -> None:
        """C9: a deleted sandbox has no record, journal, money or way in, and deleting again is fine."""
        sandbox = open_sandbox(ai_limit_nusd=100)
        control.call("journal.begin", id=sandbox.id, step="files", index=0)
        sandbox.client.call("budget.get")
        for _ in range(2):
            assert control.call("sandbox.delete", id=sandbox.id) == {}
        for op in ("sandbox.get", "budget.get"):
            with pytest.raises(NotFoundError):
                control.call(op, id=sandbox.id)
        with pytest.raises(KmError):
            sandbox.client.call("budget.get")
        assert control.call("journal.list", id=sandbox.id) == []
        again = new_record(id=sandbox.id)
        control.call("sandbox.create", record=again.to_wire())
        assert control.call("budget.get", id=sandbox.id)["ai"]["limit_nusd"] is None

    def test_c10_a_token_opens_its_own_sandbox_only(
        self, control: Control, open_sandbox: Callable[..., Sandbox]
    ) -> None:
        """C10: no other token, no missing one, no old one; nothing of the operator's, nothing of others'."""
        mine, other = open_sandbox(ai_limit_nusd=100), open_sandbox(ai_limit_nusd=200)
        assert mine.client.call("budget.get")["ai"]["limit_nusd"] == 100
        for token in (other.token, canary(), "", mine.token + "x"):
            with ControlClient(mine.socket, token=token) as client, pytest.raises(KmError):
                client.call("budget.get")
        for op, arguments in (
            ("budget.get", {"id": other.id}),
            (
                "ledger.reserve",
                {"call_id": "c", "model": "m", "provider": "p", "amount_nusd": 1, "id": other.id},
            ),
            ("sandbox.list", {}),
            ("sandbox.get", {"id": mine.id}),
            ("budget.add", {"id": mine.id, "ai_nusd": 5}),
            ("secret.list", {}),
            ("shutdown", {}),
        ):
            with pytest.raises(KmError):
                mine.client.call(op, **arguments)
        assert control.call("budget.get", id=other.id)["ai"]["reserved_nusd"] == 0
        fresh = control.call("sandbox.open", id=mine.id)
        assert fresh["token"] != mine.token
        with ControlClient(mine.socket, token=mine.token) as client, pytest.raises(KmError):
            client.call("budget.get")
        mine.client.close()
        with pytest.raises(KmError):
            mine.client.call("budget.get")
        with ControlClient(mine.socket, token=fresh["token"]) as client:
            assert client.call("budget.get")["ai"]["limit_nusd"] == 100

    def test_c16_secrets_are_kept_and_never_shown(
        self, control: Control, open_sandbox: Callable[..., Sandbox]
    ) -> None:
        """C16: lists show names and fingerprints; a sandbox gets what its plan's hosts call for, here nothing."""
        value = canary()
        control.call("secret.set", name="contract-key", value=value)
        listed = control.call("secret.list")
        assert [item["name"] for item in listed] == ["contract-key"]
        assert value not in repr(listed)
        sandbox = open_sandbox()
        assert sandbox.client.call("secret.for", names=["contract-key", "other"]) == {}
        with pytest.raises(NotFoundError) as caught:
            control.call("secret.delete", name="no-such-secret")
        assert value not in repr(caught.value.to_dict())
        control.call("secret.delete", name="contract-key")
        assert control.call("secret.list") == []

    def test_c17_evidence_grows_and_cannot_be_forged(
        self, control: Control, open_sandbox: Callable[..., Sandbox]
    ) -> None:
        """C17: events are numbered on, checkpoints too; a sandbox cannot record what others do."""
        sandbox = open_sandbox()
        first = control.call("audit.append", id=sandbox.id, event={"kind": "exec", "argv": ["true"]})
        second = control.call("audit.append", id=sandbox.id, event={"kind": "exec", "argv": ["true"]})
        assert second["seq"] > first["seq"]
        assert second["hash"] != first["hash"]
        sandbox.client.call("event", kind="policy_denied", detail={"host": "x"})
        for kind in OWN_EVENTS:
            with pytest.raises(PolicyDenied):
                sandbox.client.call("event", kind=kind, detail={})
        sandbox.client.call("audit.head", writer="gate", seq=1, hash="0" * 64)
        control.call("audit.checkpoint", id=sandbox.id)
        before = control.call("audit.anchor", id=sandbox.id)
        control.call("audit.append", id=sandbox.id, event={"kind": "exec", "argv": []})
        control.call("audit.checkpoint", id=sandbox.id)
        assert control.call("audit.anchor", id=sandbox.id)["number"] > before["number"]
        with pytest.raises(GuardError):
            control.call("audit.purge", id=sandbox.id)
        control.call("sandbox.delete", id=sandbox.id)
        assert control.call("audit.anchor", id=sandbox.id)["number"] > before["number"]
        control.call("audit.purge", id=sandbox.id)
        assert control.call("audit.anchor", id=sandbox.id) is None

    def test_c18_reports_of_a_supervisor_change_the_state(
        self, control: Control, open_sandbox: Callable[..., Sandbox]
    ) -> None:
        """C18: creator and destroyer end their own states; in between the supervisor's word counts."""
        sandbox = open_sandbox()
        sandbox.client.call("state", state="running", reason="", resources={"pod": 1})
        assert control.call("sandbox.get", id=sandbox.id)["state"] == "creating"
        control.call("sandbox.update", id=sandbox.id, changes={"state": "running"}, expect={})
        for state in ("creating", "destroying", "paused", "flying"):
            with pytest.raises(UsageError):
                sandbox.client.call("state", state=state, reason="", resources={})
        sandbox.client.call("state", state="frozen", reason="gate lost", resources={})
        record = control.call("sandbox.get", id=sandbox.id)
        assert (record["state"], record["reason"]) == ("frozen", "gate lost")
        control.call("sandbox.update", id=sandbox.id, changes={"state": "destroying"}, expect={})
        sandbox.client.call("state", state="running", reason="", resources={})
        assert control.call("sandbox.get", id=sandbox.id)["state"] == "destroying"
        lease = sandbox.client.call("lease", holder="pod")
        assert lease["state"] == "destroying"
        with pytest.raises(GuardError):
            sandbox.client.call("lease", holder="gate")

    def test_c19_a_crash_loses_nothing_that_was_answered(
        self,
        control: Control,
        connect: Callable[[], Control],
        crash: Callable[[], None],
        open_sandbox: Callable[..., Sandbox],
    ) -> None:
        """C19: after a kill records, journal, money, reservations, secrets and tokens are as they were."""
        sandbox = open_sandbox(ai_limit_nusd=1000, alias="kept")
        control.call("journal.begin", id=sandbox.id, step="files", index=0)
        control.call("secret.set", name="kept-key", value=canary())
        sandbox.reserve("c1", 300)
        sandbox.reserve("c2", 200)
        sandbox.settle("c2", 150)
        questions: tuple[tuple[str, dict[str, Any]], ...] = (
            ("sandbox.list", {}),
            ("journal.list", {"id": sandbox.id}),
            ("budget.get", {"id": sandbox.id}),
            ("secret.list", {}),
        )
        before = [control.call(op, **arguments) for op, arguments in questions]
        crash()
        control.close()
        again = connect()
        assert [again.call(op, **arguments) for op, arguments in questions] == before
        sandbox.client.close()
        assert sandbox.settle("c1", 100)["spent_nusd"] == 250
        sandbox.settle("c1", 100)
        assert again.call("budget.get", id=sandbox.id)["ai"]["spent_nusd"] == 250

    def test_c20_it_can_be_told_to_look_and_to_end(self, control: Control) -> None:
        """C20: `tick` and a dry `reconcile` answer and remove nothing; `shutdown` is answered."""
        given = new_record()
        control.call("sandbox.create", record=given.to_wire())
        assert control.call("tick") == {}
        findings = control.call("reconcile", dry_run=True)
        assert isinstance(findings, list)
        assert control.call("sandbox.get", id=given.id)["state"] == "creating"
        assert control.call("shutdown") == {}
