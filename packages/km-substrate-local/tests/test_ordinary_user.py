"""The same suite for an operator who is not root."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NOBODY = "65534"


@pytest.mark.namespaces
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("need_sandboxes")
@pytest.mark.parametrize(
    "module", ["test_isolation.py", "test_exec.py", "test_supervision.py", "test_limits.py"]
)
def test_the_suite_holds_for_an_ordinary_user(module):
    if os.getuid() != 0:
        pytest.skip("this run is an ordinary user's already")
    done = subprocess.run(
        [
            sys.executable, str(HERE / "as_user.py"), NOBODY,
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib",
            str(HERE / module),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
