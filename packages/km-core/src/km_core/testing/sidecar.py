"""What every long-running process promises; subclass `SidecarContract`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

from km_core.testing.pm import manager_with
from km_core.testing.probes import canary, must_override

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from km_core.types import Sidecar

_RUN = (
    "import sys; from importlib import import_module; from km_core.sidecars import runner\n"
    "module, _, function = sys.argv[1].partition(':')\n"
    "runner.resolve = lambda name: getattr(import_module(module), function)\n"
    "sys.exit(runner.main(sys.argv[2:]))\n"
)
"""``km-sidecar`` with one target, whatever is installed."""


class SidecarContract:
    """
    Promises R1 to R4.

    Must override: `plugin`.  Each runner is tried with an argument that it cannot know.

    Attributes:
        deadline_s: how long a runner may take to refuse what it cannot understand.
    """

    deadline_s = 20.0

    @pytest.fixture
    def plugin(self) -> Any:
        """The module with km_sidecars."""
        must_override("plugin", "return the module with km_sidecars")

    @pytest.fixture
    def sidecars(self, plugin: Any) -> Mapping[str, Sidecar]:
        """What the plugin offers, by name."""
        found = manager_with(plugin).sidecars()
        assert found, "the plugin offers no sidecar"
        return found

    def test_r1_runners_have_plain_names_and_a_summary(self, sidecars: Mapping[str, Sidecar]) -> None:
        """R1: a name is one lower-case word, the summary one line."""
        for name, sidecar in sidecars.items():
            assert re.fullmatch(r"[a-z][a-z0-9-]*", name), name
            assert sidecar.summary, f"{name} has no summary"
            assert "\n" not in sidecar.summary

    def test_r2_targets_are_there_and_nothing_runs_at_import(self, sidecars: Mapping[str, Sidecar]) -> None:
        """R2: each target is a function, and importing its module starts nothing."""
        for name, sidecar in sidecars.items():
            module, colon, function = sidecar.target.partition(":")
            assert colon, f"{name}: the target is not module:function"
            done = subprocess.run(
                [sys.executable, "-c", f"import {module}"],
                capture_output=True,
                timeout=self.deadline_s,
                check=False,
            )
            assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), name
            assert callable(getattr(import_module(module), function, None)), sidecar.target

    def test_r3_what_is_not_understood_is_refused_in_words(
        self, sidecars: Mapping[str, Sidecar], tmp_path: Path
    ) -> None:
        """R3: an unknown argument ends the runner with an error, at once and without a traceback."""
        for name, sidecar in sidecars.items():
            done = self._run(sidecar, tmp_path, {})
            assert done.returncode not in {0, None}, f"{name} runs with an argument it does not know"
            assert b"Traceback" not in done.stderr, f"{name}: {done.stderr.decode(errors='replace')}"
            assert done.stderr.strip() or done.stdout.strip(), f"{name} failed without a word"

    def test_r4_credentials_around_it_are_not_printed(
        self, sidecars: Mapping[str, Sidecar], tmp_path: Path
    ) -> None:
        """R4: what stands in the environment is not repeated in output or files."""
        secret = canary()
        for name, sidecar in sidecars.items():
            done = self._run(sidecar, tmp_path, {"KM_CONTRACT_TOKEN": secret, "ANTHROPIC_API_KEY": secret})
            assert secret.encode() not in done.stdout + done.stderr, f"{name} prints a credential"
            for path in tmp_path.rglob("*"):
                assert not path.is_file() or secret.encode() not in path.read_bytes(), (
                    f"{name} keeps it in {path}"
                )

    def _run(
        self, sidecar: Sidecar, home: Path, env: Mapping[str, str]
    ) -> subprocess.CompletedProcess[bytes]:
        places = {"KM_HOME": str(home / "h"), "KM_RUNTIME_DIR": str(home / "r")}
        return subprocess.run(
            [sys.executable, "-c", _RUN, sidecar.target, sidecar.name, "--km-contract-no-such-option"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, **places, **env},
            timeout=self.deadline_s,
            check=False,
        )
