"""Health checks for ``km doctor``."""

from __future__ import annotations

import subprocess
import sys

from km_core.types import CheckResult

from km_substrate_offline import kernel

_PROBE = "from km_substrate_offline import kernel; kernel.unshare(kernel.NAMESPACES)"


def check_namespaces() -> CheckResult:
    """Make namespaces in a process that ends at once."""
    if not kernel.supported():
        return CheckResult("ERROR", "this system is not Linux on x86_64 or aarch64")
    done = subprocess.run(
        [sys.executable, "-P", "-c", _PROBE], capture_output=True, text=True, timeout=10, check=False
    )
    if done.returncode == 0:
        return CheckResult("OK", "user, network, process and mount namespaces can be made")
    last = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    return CheckResult("ERROR", f"namespaces cannot be made: {last}", "allow unprivileged user namespaces")
