"""
The pytest plugin of km-core: fixtures for tests of plugins.

Every pytest run in an environment that holds km-core imports this module: it imports pytest alone.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    from km_core.control.steps import StepContext
    from km_core.plugins import PluginRegistry
    from km_core.testing.cli import KmRunner

# Before any contract is imported: its assertions then show both sides, wherever km-core is installed.
pytest.register_assert_rewrite(
    *(
        f"km_core.testing.{name}"
        for name in (
            "agent",
            "cli",
            "control",
            "control_spending",
            "enforcer",
            "meter",
            "meter_reading",
            "notifier",
            "sidecar",
            "substrate",
            "substrate_life",
        )
    )
)


@pytest.fixture
def km_home() -> Iterator[Path]:
    """A fresh ``KM_HOME`` whose path is short enough for sockets; its ``KM_RUNTIME_DIR`` is ``run`` beside it."""
    from km_core.testing.probes import short_directory

    root = short_directory()
    home = root / "home"
    home.mkdir(mode=0o700)
    (root / "run").mkdir(mode=0o700)
    yield home
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def km(km_home: Path) -> Iterator[KmRunner]:
    """Run ``km`` commands in `km_home`; the control plane they start is stopped at the end."""
    from km_core.testing.cli import KmRunner

    runner = KmRunner(km_home, km_home.parent / "run")
    yield runner
    if any((km_home.parent / "run").iterdir()):
        runner("daemon", "stop")


@pytest.fixture
def step_context(km_home: Path) -> StepContext:
    """What a lifecycle step is given: a small plan, an empty state directory, a fake control plane."""
    from km_core.config import load_config
    from km_core.control.steps import StepContext
    from km_core.inspection.sample import sample
    from km_core.testing.fakes import FakeControlPlane, fake_offer

    config = load_config({"KM_HOME": str(km_home), "KM_RUNTIME_DIR": str(km_home.parent / "run")})
    control = fake_offer(FakeControlPlane(config)).connect(config)
    directory = config.sandbox_dir("sb-0000000a")
    directory.mkdir(mode=0o700, parents=True)
    return StepContext("sb-0000000a", sample()["plan"], directory, control)


@pytest.fixture
def plugin_manager() -> Callable[..., PluginRegistry]:
    """Give `km_core.testing.pm.manager_with`: a registry of just the plugins you name."""

    def make(*plugins: Any) -> PluginRegistry:
        from km_core.testing.pm import manager_with

        return manager_with(*plugins)

    return make
