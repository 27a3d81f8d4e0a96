"""What every enforcer promises; subclass `EnforcerContract`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from km_core.testing.pm import manager_with
from km_core.testing.probes import must_override

if TYPE_CHECKING:
    from collections.abc import Mapping

MODES = ("proxy", "ebpf", "both")
"""What ``spec.network.enforcement`` can say (spec/profile.md section 4)."""


class Trial(Protocol):
    """
    Egress that is enforced for real, from where the sandbox would stand.

    The plan behind it allows one destination and nothing else.
    """

    def allowed(self) -> bool:
        """Try the allowed destination with a new connection; say whether an answer came back."""

    def denied(self) -> bool:
        """Try a destination that the plan does not name; say whether an answer came back."""

    def kill(self) -> None:
        """End what enforces, the hard way."""


class EnforcerContract:
    """
    Promises E1 to E5.

    Must override: `plugin`, and `trial` unless `supports_trial` is False.

    Attributes:
        supports_trial: whether enforcement can be tried on this machine.
        watch_s: how long access is looked for after what enforces has died.
    """

    supports_trial = True
    watch_s = 3.0

    @pytest.fixture
    def plugin(self) -> Any:
        """The module with km_enforcers."""
        must_override("plugin", "return the module with km_enforcers")

    @pytest.fixture
    def trial(self) -> Trial:
        """Enforcement in force."""
        if not self.supports_trial:
            pytest.skip("supports_trial = False")
        must_override("trial", "return a Trial of your enforcement, or declare supports_trial = False")

    @pytest.fixture
    def modes(self, plugin: Any) -> Mapping[str, str]:
        """What the plugin offers."""
        return manager_with(plugin).enforcers()

    def test_e1_the_modes_are_those_a_profile_can_name(self, modes: Mapping[str, str]) -> None:
        """E1: at least one mode, and each is a value of ``spec.network.enforcement``."""
        assert modes, "the plugin offers no enforcement mode"
        for mode in modes:
            assert mode in MODES, f"no profile can ask for {mode!r}: known are {', '.join(MODES)}"

    def test_e2_nothing_else_is_offered(self, plugin: Any, modes: Mapping[str, str]) -> None:
        """E2: the offer is the same every time, and says nothing of modes it does not enforce."""
        assert dict(manager_with(plugin).enforcers()) == dict(modes)
        for mode in ("", "none", "off", "disabled", "any", "*"):
            assert mode not in modes, f"{mode!r} would be no enforcement at all"

    def test_e3_what_the_plan_allows_passes_and_nothing_else(self, trial: Trial) -> None:
        """E3: the allowed destination answers, another does not."""
        assert trial.allowed(), "the allowed destination is not reached: nothing can be said about the rest"
        assert not trial.denied(), "a destination that the plan does not name was reached"

    def test_e4_without_what_enforces_there_is_no_access(self, trial: Trial) -> None:
        """E4: when the process that enforces dies, access ends; it never opens."""
        assert trial.allowed(), "the allowed destination is not reached: nothing can be said about its loss"
        trial.kill()
        ends = time.monotonic() + self.watch_s
        while time.monotonic() < ends:
            assert not trial.denied(), "it fails open: a denied destination is reached"
            time.sleep(0.1)
        assert not trial.allowed(), "nothing enforces any more, and traffic still passes"

    def test_e5_its_checks_say_what_is_wrong(self, plugin: Any) -> None:
        """E5: health checks end with a known word, and say what to do when something is wrong."""
        for name, check in manager_with(plugin).doctor_checks().items():
            result = check.run()
            assert result.status in {"OK", "WARN", "ERROR", "SKIPPED"}, f"{name}: {result.status!r}"
            assert result.message, f"{name} says nothing"
            assert result.status != "ERROR" or result.remediation, f"{name} says no remedy"
