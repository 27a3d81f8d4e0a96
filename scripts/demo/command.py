"""Runs the real ``km`` command with a state directory of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT_S = 180.0


class CommandError(Exception):
    """A km command ended with another exit code than 0; the text is what it printed."""


@frozen
class Km:
    """
    The command of the environment this program runs in.

    Args:
        home: its ``KM_HOME``.
    """

    home: Path

    @property
    def env(self) -> dict[str, str]:
        """The environment it gets: the caller's own without any other ``KM_`` setting."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("KM_")}
        return kept | {"KM_HOME": str(self.home)}

    @property
    def program(self) -> str:
        """Path of the ``km`` beside the running interpreter."""
        return str(Path(sys.executable).with_name("km"))

    def run(self, *arguments: str, stdin: str = "", check: bool = True) -> str:
        """
        Run one command and return its standard output.

        Raises:
            CommandError: it failed and *check* is set.
        """
        done = subprocess.run(
            [self.program, *arguments],
            env=self.env,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if check and done.returncode != 0:
            shown = " ".join(["km", *arguments])
            raise CommandError(f"$ {shown}\n(exit {done.returncode})\n{done.stderr}{done.stdout}".rstrip())
        return done.stdout

    def data(self, *arguments: str) -> Any:
        """Run one command with ``--json`` and return the document."""
        return json.loads(self.run(*arguments, "--json"))

    def lines(self, *arguments: str) -> Iterator[dict[str, Any]]:
        """
        Run one command that prints JSON lines and yield them as they come.

        Raises:
            CommandError: it failed.
        """
        with subprocess.Popen(
            [self.program, *arguments],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            if process.stdout is None or process.stderr is None:
                raise CommandError("no pipes")
            for line in process.stdout:
                yield json.loads(line)
            errors = process.stderr.read()
        if process.returncode != 0:
            raise CommandError(f"$ km {' '.join(arguments)}\n(exit {process.returncode})\n{errors}".rstrip())
