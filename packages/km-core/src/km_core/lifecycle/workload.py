"""What a profile runs and writes inside its sandbox: initCommands and configFiles."""

from __future__ import annotations

import base64
import contextlib
import os
import shlex
import signal
import sys
from typing import TYPE_CHECKING

from km_core.errors import ProvisionError

_PIECE = 48 * 1024
_LONGEST = 100 * 1024

if TYPE_CHECKING:
    from collections.abc import Iterator

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
        with _apart():
            code = substrate.exec(
                box,
                [box.plan.workload.shell, "-c", command],
                env=workload_env(box),
                cwd=box.plan.workload.working_dir,
                root=root,
                tty=False,
            )
        if code == 128 + signal.SIGINT:
            # Ctrl-C reaches the command inside; it was meant for the whole creation.
            raise KeyboardInterrupt
        if code != 0:
            raise ProvisionError(
                f"initCommands[{index}] ended with exit code {code}",
                where=f"spec.execution.initCommands[{index}]",
                why=command if len(command) <= 200 else command[:200] + "…",
                hint="what it printed stands above",
            )


def write_config_files(substrate: Substrate, box: Box) -> None:
    """
    Write the profile's configFiles, owned by the sandbox's user.

    Content travels base64 in pieces (the kernel takes 128 KiB an argument, execve(2)), so that no
    quoting can break it; it is visible in the sandbox's own process list only.

    Raises:
        ProvisionError: a file could not be written.
    """
    for file in box.plan.workload.files:
        target = shlex.quote(file.path)
        directory = shlex.quote(file.path.rpartition("/")[0] or "/")
        content = file.content.encode()
        scripts = [f"umask 022; mkdir -p {directory} && : > {target}"]
        for start in range(0, len(content), _PIECE):
            piece = base64.b64encode(content[start : start + _PIECE]).decode()
            scripts.append(f"printf %s {piece} | base64 -d >> {target}")
        scripts.append(f"chmod {file.mode:o} {target}")
        for script in _joined(scripts):
            with _apart():
                code = substrate.exec(
                    box, ["/bin/sh", "-c", script], env=workload_env(box), cwd="/", root=False, tty=False
                )
            if code != 0:
                raise ProvisionError(
                    f"the file {file.path} cannot be written inside",
                    where=f'spec.execution.configFiles["{file.path}"]',
                    hint="choose a path below /workspace, /home/sandbox or /tmp",
                )


def _joined(scripts: list[str]) -> list[str]:
    """Join scripts into as few commands as fit into one argument each."""
    commands = [f"set -e; {scripts[0]}"]
    for script in scripts[1:]:
        if len(commands[-1]) + len(script) < _LONGEST:
            commands[-1] += f"; {script}"
        else:
            commands.append(f"set -e; {script}")
    return commands


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """
    Give what runs in the block no input, and stderr for its output.

    stdout belongs to the command's own answer (one JSON document with ``--json``), and stdin may be the
    operator's terminal.
    """
    sys.stdout.flush()
    kept = (os.dup(0), os.dup(1))
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.dup2(nothing, 0)
        os.dup2(2, 1)
        yield
    finally:
        for number, descriptor in enumerate(kept):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(nothing)
