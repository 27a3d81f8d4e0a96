"""What a profile runs and writes inside its sandbox: initCommands and configFiles."""

from __future__ import annotations

import base64
import shlex
from typing import TYPE_CHECKING

from km_core.errors import ProvisionError

if TYPE_CHECKING:
    from km_core.control.substrate import Box, Substrate


def workload_env(box: Box) -> dict[str, str]:
    """Return the environment every command inside gets besides what the substrate sets."""
    return dict(box.plan.workload.env)


def run_init_commands(substrate: Substrate, box: Box) -> None:
    """
    Run the profile's initCommands in order, each in the profile's shell.

    Raises:
        ProvisionError: a command ended with another code than 0; the rest is not run.
    """
    root = "root" in substrate.capabilities
    for index, command in enumerate(box.plan.workload.init_commands):
        code = substrate.exec(
            box,
            [box.plan.workload.shell, "-c", command],
            env=workload_env(box),
            cwd=box.plan.workload.working_dir,
            root=root,
            tty=False,
        )
        if code != 0:
            raise ProvisionError(
                f"initCommands[{index}] ended with exit code {code}",
                where=f"spec.execution.initCommands[{index}]",
                why=command if len(command) <= 200 else command[:200] + "…",
                hint="km logs shows its output",
            )


def write_config_files(substrate: Substrate, box: Box) -> None:
    """
    Write the profile's configFiles, owned by the sandbox's user.

    Content travels base64 inside one script per file, so that no quoting can break it; it is visible
    in the sandbox's own process list only.

    Raises:
        ProvisionError: a file could not be written.
    """
    for file in box.plan.workload.files:
        encoded = base64.b64encode(file.content.encode()).decode()
        target = shlex.quote(file.path)
        directory = shlex.quote(file.path.rpartition("/")[0] or "/")
        script = (
            f"set -e; umask 022; mkdir -p {directory}; "
            f"printf %s {encoded} | base64 -d > {target}; chmod {file.mode:o} {target}"
        )
        code = substrate.exec(
            box, ["/bin/sh", "-c", script], env=workload_env(box), cwd="/", root=False, tty=False
        )
        if code != 0:
            raise ProvisionError(
                f"the file {file.path} cannot be written inside",
                where=f'spec.execution.configFiles["{file.path}"]',
                hint="choose a path below /workspace, /home/sandbox or /tmp",
            )
