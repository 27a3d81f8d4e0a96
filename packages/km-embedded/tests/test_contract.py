"""The embedded control plane keeps what the kit asks of every control plane, with a real kmd."""

from __future__ import annotations

import pytest

from km_core.testing.control import ControlPlaneContract
from km_core.testing.sidecar import SidecarContract
from km_embedded import plugin as embedded


@pytest.fixture(autouse=True)
def nothing_happens_by_itself(monkeypatch):
    """No expiry and no recovery starts while a contract looks at records that nothing runs behind."""
    monkeypatch.setenv("KM_KMD_TICK_S", "3600")
    monkeypatch.setenv("KM_KMD_POD_GRACE_S", "3600")
    monkeypatch.setenv("KM_MAX_SANDBOXES", "1000")


class TestEmbedded(ControlPlaneContract):
    @pytest.fixture
    def offer(self):
        (offer,) = embedded.km_control_planes()
        return offer


class TestKmd(SidecarContract):
    @pytest.fixture
    def plugin(self):
        return embedded
