"""Find kmd, or start it: any number of commands at once, one kmd."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from km_core.control.rpc import ControlClient
from km_core.errors import ControlUnavailableError, KmError
from km_embedded.files import private_dir

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from km_core.config import Config

WAIT_S = 20.0
"""How long kmd may take until it answers."""
_POLL_S = 0.02
COMMAND = (sys.executable, "-P", "-m", "km_embedded.kmd", "--daemon")

_KEPT = frozenset(
    {
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "LANG",
        "TZ",
        "TMPDIR",
        "VIRTUAL_ENV",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
    }
)
_KEPT_PREFIXES = ("KM_", "XDG_", "LC_", "DOCKER_", "PYTHON")


def connect(config: Config) -> ControlClient:
    """
    Return a connection to kmd with the operator's rights; starts kmd when nobody answers.

    Raises:
        ControlError: a directory of km cannot be used.
        ControlUnavailableError: kmd could not be started or does not answer.
    """
    private_dir(config.home, follow=True)
    private_dir(config.runtime_dir)
    deadline = time.monotonic() + WAIT_S
    while True:
        client = _answering(config)
        if client is not None:
            return client
        started = _start(config)
        # Not endless either when each kmd that starts is gone before it answers.
        if time.monotonic() >= deadline:
            raise ControlUnavailableError(
                "kmd starts and does not answer" if started else "kmd holds its lock and does not answer",
                where=str(config.runtime_dir / "kmd.sock"),
                hint=f"look into {config.home / 'kmd.log'}, or end it with km daemon stop",
            )
        time.sleep(_POLL_S)


def kept_environment(env: Mapping[str, str], config: Config) -> dict[str, str]:
    """Return what kmd keeps of the caller's environment: places, no credentials."""
    kept = {name: value for name, value in env.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}
    return kept | {"KM_HOME": str(config.home), "KM_RUNTIME_DIR": str(config.runtime_dir)}


def _answering(config: Config) -> ControlClient | None:
    client = ControlClient(config.runtime_dir / "kmd.sock")
    try:
        client.call("ping")
    except KmError:
        client.close()
        return None
    return client


def _start(config: Config, command: Sequence[str] = COMMAND) -> bool:
    """
    Start kmd if nobody holds its lock; returns whether it was started.

    The lock is taken here and handed to kmd as a descriptor: between the look and the start there is
    no moment in which a second one could begin.

    Raises:
        ControlUnavailableError: it ended before it answered.
    """
    from km_embedded.kmd import take_lock

    lock = take_lock(config)
    if lock is None:
        return False
    try:
        done = subprocess.run(
            [*command, "--lock-fd", str(lock)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd="/",
            env=kept_environment(os.environ, config),
            pass_fds=(lock,),
            timeout=WAIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ControlUnavailableError(
            "kmd could not be started", where=str(config.home), why=type(error).__name__
        ) from error
    finally:
        os.close(lock)
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise ControlUnavailableError(
            "kmd could not be started",
            where=str(config.home),
            why=lines[0][:500] if lines else f"it ended with code {done.returncode}",
            hint=lines[1][:500] if len(lines) > 1 else f"look into {config.home / 'kmd.log'}",
        )
    return True
