from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest

from km_core.errors import ProvisionError
from km_core.lifecycle.workload import run_init_commands, write_config_files
from km_core.plan import PlanFile, SandboxPlan, WorkloadPlan


class HostSubstrate:
    """Runs commands right here: what they would do inside."""

    capabilities = frozenset({"exec"})

    def __init__(self):
        self.longest = 0

    def exec(self, box, argv, **_):
        self.longest = max(self.longest, *(len(argument) for argument in argv))
        return subprocess.run(argv, check=False, stderr=subprocess.DEVNULL).returncode


def box(**workload):
    return SimpleNamespace(
        plan=SandboxPlan("p", "", "sb", "local", workload=WorkloadPlan(working_dir="/", **workload))
    )


@pytest.mark.parametrize(
    "content",
    ["", "a 'quoted' $(line)\n", "\u00e9" * 3, "x" * 262144],
    ids=["empty", "quoted", "unicode", "long"],
)
def test_a_config_file_arrives_byte_for_byte_whatever_it_holds(tmp_path, content):
    target = tmp_path / "it's here" / "file"
    substrate = HostSubstrate()

    write_config_files(substrate, box(files=(PlanFile(str(target), content, 0o640),)))

    assert content == target.read_text()
    assert 0o640 == target.stat().st_mode & 0o777
    assert substrate.longest < 128 * 1024


def test_a_file_that_cannot_be_written_names_its_field():
    with pytest.raises(ProvisionError) as caught:
        write_config_files(HostSubstrate(), box(files=(PlanFile("/proc/nowhere/file", "x"),)))

    assert 'spec.execution.configFiles["/proc/nowhere/file"]' == caught.value.where


def test_the_first_failing_init_command_stops_the_rest_and_is_named(tmp_path):
    commands = (f"touch {tmp_path}/a", "exit 3", f"touch {tmp_path}/b")

    with pytest.raises(ProvisionError, match=r"initCommands\[1\] ended with exit code 3"):
        run_init_commands(HostSubstrate(), box(init_commands=commands))

    assert ["a"] == [path.name for path in tmp_path.iterdir()]
