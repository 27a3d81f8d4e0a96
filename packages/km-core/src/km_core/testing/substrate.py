"""What every substrate promises; subclass `SubstrateContract`."""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve

from km_core.control.substrate import Leftover
from km_core.errors import KmError
from km_core.plan import LimitsPlan
from km_core.testing.inside import BROKEN, REFUSED, begin, run
from km_core.testing.pm import manager_with
from km_core.testing.substrate_life import Access, SubstrateLife

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from km_core.config import Config
    from km_core.control.substrate import Box, Substrate
    from km_core.plan import SandboxPlan

__all__ = ["Access", "SubstrateContract"]

CAPABILITIES = frozenset({"exec", "tty", "stop", "pause", "limits", "root"})
ARGUMENTS = (
    "plain",
    "",
    "two words",
    'it\'s "quoted"',
    "$HOME `id` $(id) ${x}",
    "*.py ? [a] ~ {a,b}",
    "line\nbreak\ttab",
    "-n",
    "--",
    "; exit 9 #",
    "back\\slash",
    "ünïcødé 世界 🜁",
    "x" * 5000,
)
"""Arguments that a shell, a split or an encoding would change."""


class SubstrateContract(SubstrateLife):
    """
    Promises S1 to S19; S9 to S19 stand in `km_core.testing.substrate_life`.

    Must override: `substrate`, and `access` while `supports_network` is set.  May override: `config`,
    `plan`, `plugin` and `profile_text` (both, to have a profile tried), `breakages`.

    Attributes:
        supports_stop: whether a sandbox can be stopped and resumed.
        supports_pause: whether it can be frozen on this host.
        supports_network: whether a sandbox can reach anything at all.
        supports_root: whether commands can run as root inside.
        enforces_deadline: whether the substrate ends a sandbox by itself when nobody else does.
        gone_s: how long what is being removed may take to go.
        deadline_slack_s: how long after its deadline a sandbox may live.
        kill_delays: moments of a create, in seconds, at which its process is killed.
    """

    @pytest.fixture
    def plugin(self) -> Any:
        """The plugin that offers the substrate; with `profile_text` it is tried with a profile."""
        return None

    @pytest.fixture
    def profile_text(self) -> str:
        """A profile that the substrate accepts."""
        return ""

    def test_s1_it_says_what_it_is(self, substrate: Substrate) -> None:
        """S1: a name for profiles and the command line, and capabilities that km knows."""
        assert re.fullmatch(r"[a-z][a-z0-9-]*", substrate.name), substrate.name
        assert substrate.capabilities <= CAPABILITIES, substrate.capabilities - CAPABILITIES
        assert ("pause" in substrate.capabilities) or not self.supports_pause
        assert ("stop" in substrate.capabilities) or not self.supports_stop

    def test_s2_looking_for_problems_changes_nothing(
        self, substrate: Substrate, plan: SandboxPlan, config: Config
    ) -> None:
        """S2: `problems` finds none for the contract's plan, makes nothing and says the same every time."""
        before = _tree(config.home, config.runtime_dir)
        first = list(substrate.problems(plan, config))
        assert [item for item in first if item.severity == "error"] == []
        assert list(substrate.problems(plan, config)) == first
        assert _tree(config.home, config.runtime_dir) == before
        assert list(substrate.leftovers(config)) == []

    def test_s3_what_it_cannot_do_is_refused_by_name(
        self, substrate: Substrate, plan: SandboxPlan, config: Config
    ) -> None:
        """S3: a mode, a root user or a limit that it does not have is a problem with path and remedy."""
        impossible = {
            "spec.network.enforcement": evolve(plan, network=evolve(plan.network, enforcement="km-contract"))
        }
        if not self.supports_root:
            workload = evolve(plan.workload, privileged=True)
            impossible["spec.execution.privileged"] = evolve(plan, workload=workload)
        if "limits" not in substrate.capabilities:
            limits = LimitsPlan(memory_bytes=2**30, explicit=("memory",))
            impossible["limits.memory"] = evolve(plan, limits=limits)
        for path, asked in impossible.items():
            found = [item for item in substrate.problems(asked, config) if item.severity == "error"]
            assert path in {item.path for item in found}, f"{path} is neither enforced nor refused: {found}"
            assert all(item.message for item in found)

    def test_s4_a_profile_for_it_becomes_a_plan(
        self, substrate: Substrate, plugin: Any, profile_text: str, config: Config, tmp_path: Path
    ) -> None:
        """S4: a profile that the substrate accepts compiles with this plugin alone, and has no problems."""
        if plugin is None or not profile_text:
            pytest.skip("no `plugin` and `profile_text` fixtures: no profile was given")
        from km_core.compile.pipeline import Overrides, plan_from_file

        path = tmp_path / "profile.yaml"
        path.write_text(profile_text, encoding="utf-8")
        registry = manager_with(plugin)
        assert substrate.name in registry.substrates()
        compiled = plan_from_file(path, config, registry, Overrides(substrate=substrate.name))
        problems = substrate.problems(compiled.plan, config)
        assert [item for item in problems if item.severity == "error"] == []

    def test_s5_arguments_variables_and_directory_arrive_unchanged(
        self, box: Box, substrate: Substrate
    ) -> None:
        """S5: what is given to a command is what it gets, byte for byte."""
        ran = run(substrate, box, "/bin/sh", "-c", "for a; do printf '%s\\0' \"$a\"; done", "sh", *ARGUMENTS)
        assert (ran.code, ran.stderr) == (0, b"")
        assert ran.stdout == b"".join(os.fsencode(argument) + b"\0" for argument in ARGUMENTS)
        value = "a b\n$HOME 'q' =ü"
        ran = run(substrate, box, "/bin/sh", "-c", 'printf %s "$KM_CONTRACT"', env={"KM_CONTRACT": value})
        assert ran.stdout == value.encode()
        assert run(substrate, box, "/bin/sh", "-c", "echo x > made", cwd="/workspace").code == 0
        assert (box.state_dir / "workspace" / "made").read_text(encoding="utf-8") == "x\n"
        assert run(substrate, box, "/bin/pwd", cwd="/usr").text == "/usr\n"

    def test_s6_exit_codes_and_streams_are_the_commands_own(self, box: Box, substrate: Substrate) -> None:
        """S6: codes pass unchanged, output and errors stay apart, and what is not there is said to be so."""
        for code in (0, 1, 7, 126, 200, 255):
            ran = run(substrate, box, "/bin/sh", "-c", f"echo out; echo err >&2; exit {code}")
            assert (ran.code, ran.stdout, ran.stderr) == (code, b"out\n", b"err\n")
        assert run(substrate, box, "/bin/sh", "-c", "kill -KILL $$").code == 137
        for argv, cwd in ((("km-contract-no-such-program",), "/"), (("true",), "/km-contract/nowhere")):
            ran = run(substrate, box, *argv, cwd=cwd)
            assert ran.code not in {0, BROKEN}, f"{argv} in {cwd}: {ran}"

    def test_s7_streams_flow_while_the_command_runs(self, box: Box, substrate: Substrate) -> None:
        """S7: output is there when it is written and input when it is sent, not at the end."""
        running = begin(substrate, box, "/bin/sh", "-c", "echo ready; read a; echo got $a; sleep 60")
        try:
            assert running.read(20) == b"ready\n"
            running.write(b"this\n")
            assert running.read(20) == b"got this\n"
        finally:
            running.kill()
        data = os.urandom(1 << 20) + b"\0\r\n\x04\xff"
        ran = run(substrate, box, "cat", stdin=data)
        assert hashlib.sha256(ran.stdout).digest() == hashlib.sha256(data).digest()
        assert run(substrate, box, "true", stdin=data).code == 0

    def test_s8_what_is_not_understood_is_refused(
        self, box: Box, make_box: Callable[..., Box], substrate: Substrate, config: Config
    ) -> None:
        """S8: no command in a sandbox that was not made, no root where there is none, no foreign leftovers."""
        other = make_box()
        for attempt in (substrate.start, substrate.pause):
            with pytest.raises(KmError) as caught:
                attempt(other)
            assert caught.value.what
        assert run(substrate, other, "true").code == REFUSED
        substrate.stop(other)
        assert substrate.status(other)["running"] is False
        if not self.supports_root:
            assert run(substrate, box, "true", root=True).code == REFUSED
        for strange in (
            Leftover("sb-deadbeef", "km-contract", str(os.getpid())),
            Leftover("../../etc", "runtime directory", "/etc"),
            Leftover(box.id, "km-contract", "-1"),
        ):
            try:
                substrate.remove_leftover(config, strange)
            except KmError:
                continue
        status = substrate.status(box)
        assert json.loads(json.dumps(status)) == status, "status is not plain JSON data"
        assert status["running"] is True
        assert {"running", "enforcement", "limits", "gate", "pod"} <= status.keys()
        assert run(substrate, box, "true").code == 0


def _tree(*directories: Path) -> list[str]:
    return sorted(str(path) for directory in directories for path in directory.rglob("*"))
