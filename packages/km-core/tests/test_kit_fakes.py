"""The kit's own fakes pass the contracts that plugins have to pass."""

from __future__ import annotations

import os
import signal

import pytest

from km_core.control.protocols import ControlPlaneOffer
from km_core.plan import HostRule, NetworkPlan, SandboxPlan
from km_core.testing.control import ControlPlaneContract
from km_core.testing.fakes import FakeControlPlane, FakeSubstrate, fake_offer
from km_core.testing.substrate import SubstrateContract


class TestFakeControlPlane(ControlPlaneContract):
    @pytest.fixture
    def planes(self, config):
        made = [FakeControlPlane(config)]
        yield made
        made[-1].close()

    @pytest.fixture
    def offer(self, planes):
        return ControlPlaneOffer("fake", "for tests", lambda config: fake_offer(planes[-1]).connect(config))

    @pytest.fixture
    def crash(self, planes, config):
        def kill():
            planes[-1].close()
            planes.append(FakeControlPlane(config))

        return kill


class FakeAccess:
    def __init__(self, substrate):
        self.substrate = substrate

    def allowed(self, box):
        return self.substrate.reaches(box, "allowed.example")

    def kill(self, box):
        os.kill(self.substrate.status(box)["gate"]["pid"], signal.SIGKILL)


class TestFakeSubstrate(SubstrateContract):
    @pytest.fixture
    def substrate(self):
        return FakeSubstrate()

    @pytest.fixture
    def plan(self):
        network = NetworkPlan(hosts=(HostRule("allowed.example", "exact"),))
        return SandboxPlan("contract", "0" * 64, "sb", "fake", network=network)

    @pytest.fixture
    def access(self, substrate):
        return FakeAccess(substrate)
