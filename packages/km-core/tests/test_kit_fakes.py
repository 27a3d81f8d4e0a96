"""The kit's own fakes pass the contracts that plugins have to pass."""

from __future__ import annotations

import pytest

from km_core.testing.control import ControlPlaneContract
from km_core.testing.fake_control import FakeControlPlane, fake_offer


class TestFakeControlPlane(ControlPlaneContract):
    @pytest.fixture
    def planes(self, config):
        made = [FakeControlPlane(config)]
        yield made
        made[-1].close()

    @pytest.fixture
    def offer(self, planes):
        from km_core.control.protocols import ControlPlaneOffer

        return ControlPlaneOffer("fake", "for tests", lambda config: fake_offer(planes[-1]).connect(config))

    @pytest.fixture
    def crash(self, planes, config):
        def kill():
            planes[-1].close()
            planes.append(FakeControlPlane(config))

        return kill
