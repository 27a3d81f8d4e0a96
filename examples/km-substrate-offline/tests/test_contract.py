"""The substrate keeps what every substrate promises."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from km_core.testing.substrate import SubstrateContract

from km_substrate_offline import kernel
from km_substrate_offline import plugin as the_plugin
from km_substrate_offline.checks import check_namespaces
from km_substrate_offline.substrate import OfflineSubstrate

if TYPE_CHECKING:
    from types import ModuleType

    from km_core.control.substrate import Substrate

pytestmark = pytest.mark.skipif(
    not kernel.supported() or check_namespaces().status != "OK", reason="this host makes no namespaces"
)

PROFILE = """\
apiVersion: klankermaker.ai/v1alpha1
kind: SandboxProfile
metadata:
  name: contract
spec:
  lifecycle: {ttl: 1h, idleTimeout: 30m, teardownPolicy: destroy}
  runtime: {substrate: offline, instanceType: none, region: us-east-1}
  execution: {shell: /bin/sh, workingDir: /workspace}
  sourceAccess: {mode: none}
  network:
    egress: {allowedDNSSuffixes: [], allowedHosts: []}
  identity: {roleSessionDuration: 1h, allowedRegions: [us-east-1], sessionPolicy: minimal}
"""


class TestSubstrate(SubstrateContract):
    """The promises of substrates."""

    supports_pause = False
    supports_network = False
    supports_root = False
    enforces_deadline = True

    @pytest.fixture
    def substrate(self) -> Substrate:
        return OfflineSubstrate()

    @pytest.fixture
    def plugin(self) -> ModuleType:
        return the_plugin

    @pytest.fixture
    def profile_text(self) -> str:
        return PROFILE
