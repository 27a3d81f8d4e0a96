"""Control planes with one planted defect each; `Honest` has none."""

from __future__ import annotations

import pytest

from km_core.control.protocols import ControlPlaneOffer
from km_core.testing import fake_ledger, fake_policy, fake_sandbox_ops
from km_core.testing.control import ControlPlaneContract
from km_core.testing.fakes import FakeControlPlane, fake_offer


class Base(ControlPlaneContract):
    Made = FakeControlPlane

    @pytest.fixture(autouse=True)
    def defect(self, monkeypatch):
        self.plant(monkeypatch)

    def plant(self, monkeypatch):
        pass

    @pytest.fixture
    def planes(self, config):
        made = [self.Made(config)]
        yield made
        made[-1].close()

    @pytest.fixture
    def offer(self, planes):
        return ControlPlaneOffer("fake", "toy", lambda config: fake_offer(planes[-1]).connect(config))

    @pytest.fixture
    def crash(self, planes, config):
        def kill():
            planes[-1].close()
            planes.append(self.Made(config))

        return kill


class TestHonest(Base):
    pass


class TestReservesTooMuch(Base):
    def plant(self, monkeypatch):
        monkeypatch.setattr(fake_ledger, "admits", lambda pool, amount: amount <= (pool.limit_nusd or amount))


class TestSettlesTwice(Base):
    def plant(self, monkeypatch):
        def settle(budget, call_id, cost, usage):
            budget["ended"].pop(call_id, None)
            honest(budget, call_id, cost, usage)

        honest = fake_ledger.settle
        monkeypatch.setattr(fake_ledger, "settle", settle)


class TestLosesASettlement(Base):
    class Made(FakeControlPlane):
        saved = 0

        def save(self):
            # What a sandbox's own socket changed is in memory only.
            if self.saved or not any(entry["budget"]["ended"] for entry in self.state["sandboxes"].values()):
                super().save()


class TestUpdatesWithoutLooking(Base):
    class Made(FakeControlPlane):
        def _update(self, peer, id, changes, expect=None):  # noqa: A002 - the wire's word
            return super()._update(peer, id, changes, {})


class TestOpensToAnyToken(Base):
    class Made(FakeControlPlane):
        def _opens(self, sandbox_id, token):
            return True


class TestKeepsTheOldToken(Base):
    class Made(FakeControlPlane):
        def _open(self, peer, id):  # noqa: A002 - the wire's word
            answer = super()._open(peer, id)
            self.old = {*getattr(self, "old", set()), answer["token"]}
            return answer

        def _opens(self, sandbox_id, token):
            return token in self.old


class TestShowsSecrets(Base):
    class Made(FakeControlPlane):
        def _secret_list(self, peer):
            return [{"name": name, **item} for name, item in self.state["secrets"].items()]


class TestForgetsNothing(Base):
    class Made(FakeControlPlane):
        kept = None

        def _delete(self, peer, id):  # noqa: A002 - the wire's word
            self.kept = self.state["sandboxes"].get(id, {}).get("budget") or self.kept
            return super()._delete(peer, id)

        def _create(self, peer, record):
            wire = super()._create(peer, record)
            if self.kept:
                self.state["sandboxes"][wire["id"]]["budget"] = self.kept
            return wire


class TestMixesTheJournal(Base):
    class Made(FakeControlPlane):
        def _steps(self, peer, id):  # noqa: A002 - the wire's word
            return list(self.state["sandboxes"].get(id, {}).get("journal", {}).values())


class TestSpendsAfterTheDeadline(Base):
    def plant(self, monkeypatch):
        honest = fake_sandbox_ops.deadline
        monkeypatch.setattr(fake_sandbox_ops, "deadline", lambda record: max(honest(record), 1e11))


class TestLetsEventsBeForged(Base):
    def plant(self, monkeypatch):
        monkeypatch.setattr(fake_sandbox_ops, "_OWN", frozenset())


class TestBelievesTheSupervisor(Base):
    def plant(self, monkeypatch):
        monkeypatch.setattr(fake_sandbox_ops, "may_report", lambda current, reported: True)


class TestAppliesToWhateverPlan(Base):
    def plant(self, monkeypatch):
        def apply(self, peer, id, policy, profile, expect):  # noqa: A002, PLR0917 - the wire's word
            return honest(self, peer, id, policy, profile, self._plane.record(id).plan_digest)

        honest = fake_policy.FakePolicies._apply
        monkeypatch.setattr(fake_policy.FakePolicies, "_apply", apply)


class TestAppliesWithoutAProfile(Base):
    def plant(self, monkeypatch):
        def apply(self, peer, id, policy, profile, expect):  # noqa: A002, PLR0917 - the wire's word
            if profile == "x":
                profile = "other: 1\n"
            return honest(self, peer, id, policy, profile, expect)

        honest = fake_policy.FakePolicies._apply
        monkeypatch.setattr(fake_policy.FakePolicies, "_apply", apply)


class TestTellsGatesTheOldPolicy(Base):
    def plant(self, monkeypatch):
        def current(self, sandbox_id):
            return self.__dict__.setdefault("first", {}).setdefault(sandbox_id, honest(self, sandbox_id))

        honest = fake_policy.FakePolicies.current
        monkeypatch.setattr(fake_policy.FakePolicies, "current", current)


class TestGrantsToEverybody(Base):
    def plant(self, monkeypatch):
        def grants(self, sandbox_id):
            return [grant for each in self._plane.state["sandboxes"] for grant in honest(self, each)]

        honest = fake_policy.FakePolicies.grants
        monkeypatch.setattr(fake_policy.FakePolicies, "grants", grants)


class TestGrantsWhatIsWritten(Base):
    def plant(self, monkeypatch):
        monkeypatch.setattr(fake_policy, "grant_entry", lambda text: text)


class TestTakesNothingBack(Base):
    def plant(self, monkeypatch):
        monkeypatch.setattr(
            fake_policy.FakePolicies,
            "_deny",
            lambda self, _peer, id, entry: self.show(id),  # noqa: A006 - the wire's word
        )


class TestGrantsForEver(Base):
    def plant(self, monkeypatch):
        def allow(self, peer, id, entry, seconds):  # noqa: A002 - the wire's word
            return honest(self, peer, id, entry, seconds + 3600)

        honest = fake_policy.FakePolicies._allow
        monkeypatch.setattr(fake_policy.FakePolicies, "_allow", allow)
