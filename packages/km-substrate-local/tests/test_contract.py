"""Local sandboxes keep what the kit asks of every substrate, with a real supervisor and a fake gate."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from km_core.testing.inside import run
from km_core.testing.substrate import SubstrateContract
from km_substrate_local.substrate import LocalSubstrate

POD = (sys.executable, str(Path(__file__).with_name("pod_main.py")), "pod")
ASK = "exec 3<>/dev/tcp/192.0.2.1/80 && timeout 5 cat <&3"


class FakeGateAccess:
    """The fake gate answers every connection: whoever gets its line went through it."""

    def __init__(self, substrate):
        self.substrate = substrate

    def allowed(self, box):
        return b"SAW 192.0.2.1 80" in run(self.substrate, box, "/bin/bash", "-c", ASK).stdout

    def kill(self, box):
        os.kill(self.substrate.status(box)["pod"]["pid"], signal.SIGKILL)


@pytest.mark.namespaces
@pytest.mark.usefixtures("need_sandboxes")
class TestLocal(SubstrateContract):
    supports_pause = os.geteuid() == 0
    enforces_deadline = True

    @pytest.fixture
    def substrate(self):
        return LocalSubstrate(pod_command=POD)

    @pytest.fixture
    def access(self, substrate):
        return FakeGateAccess(substrate)
