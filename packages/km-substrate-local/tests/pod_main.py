"""A supervisor with the fake gate and short times: ``python pod_main.py pod ID``."""

from __future__ import annotations

import sys
from pathlib import Path

from km_host.gatekeeper import GateTiming
from km_host.lifeline import LifelineTiming
from km_host.pod import main
from km_substrate_local.pod_backend import LocalPodBackend

GATE = (sys.executable, str(Path(__file__).with_name("fake_gate.py")))

if __name__ == "__main__":
    sys.exit(
        main(
            sys.argv[2:],
            load=lambda context: LocalPodBackend(context, gate_command=GATE),
            gate_timing=GateTiming(ready_s=5, ping_s=0.2, silent_s=1.0, window_s=20),
            lifeline_timing=LifelineTiming(lease_s=0.2, retry_s=0.2, silent_s=1.0),
            # Never a real control plane: what would start one leaves a mark instead.
            ensure=("/bin/sh", "-c", 'echo x >> "$KM_HOME/ensured"'),
        )
    )
