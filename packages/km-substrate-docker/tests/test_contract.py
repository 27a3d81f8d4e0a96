"""Docker sandboxes keep what the kit asks of every substrate, with a real supervisor and a fake gate."""

from __future__ import annotations

import os
import signal

import pytest

from km_core.testing.inside import run
from km_core.testing.substrate import SubstrateContract
from km_substrate_docker.substrate import DockerSubstrate

ASK = "exec 3<>/dev/tcp/192.0.2.1/80 && timeout 5 cat <&3"


class FakeGateAccess:
    """The fake gate answers every connection: whoever gets a word went through it."""

    def __init__(self, substrate):
        self.substrate = substrate

    def allowed(self, box):
        return run(self.substrate, box, "/bin/bash", "-c", ASK).stdout != b""

    def kill(self, box):
        os.kill(self.substrate.status(box)["pod"]["pid"], signal.SIGKILL)


@pytest.mark.docker
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("fake_gate")
class TestDocker(SubstrateContract):
    supports_root = True
    gone_s = 30.0
    kill_delays = (0.0, 0.3, 1.0)

    @pytest.fixture
    def substrate(self):
        return DockerSubstrate()

    @pytest.fixture
    def access(self, substrate):
        return FakeGateAccess(substrate)
