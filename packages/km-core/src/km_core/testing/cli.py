"""A runner for ``km`` that says what was run when an assertion fails."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_PROGRAM = (sys.executable, "-m", "km_core.cli.main")


@frozen(repr=False)
class Outcome:
    """
    What a command came to.

    Attributes:
        arguments: what followed ``km``.
        code: exit code; negative for a signal.
        stdout: decoded, with damaged bytes replaced.
        stderr: likewise.
    """

    arguments: tuple[str, ...]
    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The one JSON document on standard output."""
        try:
            return json.loads(self.stdout)
        except ValueError as error:
            raise AssertionError(f"standard output is not one JSON document ({error})\n{self!r}") from None

    def assert_ok(self) -> Outcome:
        """Fail unless the command ended with code 0; returns the outcome."""
        assert self.code == 0, repr(self)
        return self

    def assert_failed(self, code: int = 1, path: str = "") -> Outcome:
        """
        Fail unless the command ended with *code* and said why; returns the outcome.

        Args:
            code: the expected exit code (DESIGN section 9).
            path: a dotted path, or another text, that must stand in the diagnostics.
        """
        assert self.code == code, f"expected exit code {code}\n{self!r}"
        assert "Traceback" not in self.stderr, repr(self)
        assert self.stderr.strip() or self.stdout.strip(), f"it failed without a word\n{self!r}"
        assert path in self.stderr or path in self.stdout, f"{path!r} is not named\n{self!r}"
        return self

    def __repr__(self) -> str:
        """Return the command as it would be typed, and what it printed."""
        return (
            f"$ km {shlex.join(self.arguments)}\nexit code {self.code}\n"
            f"--- standard output\n{self.stdout}--- standard error\n{self.stderr}---"
        )


@frozen
class KmRunner:
    """
    Runs ``km`` in a process of its own, with a ``KM_HOME`` of its own.

    Attributes:
        home: the state directory.
        runtime_dir: directory for sockets.
        env: further variables.
        timeout_s: how long a command may take.
    """

    home: Path
    runtime_dir: Path
    env: Mapping[str, str] = {}
    timeout_s: float = 120.0

    def __call__(
        self, *arguments: str | Path, stdin: str = "", cwd: Path | None = None, **env: str
    ) -> Outcome:
        """Run one command; *env* adds variables for it alone."""
        words = tuple(str(argument) for argument in arguments)
        done = subprocess.run(
            [*_PROGRAM, *words],
            input=stdin.encode(),
            capture_output=True,
            cwd=cwd,
            env=self._environment() | env,
            timeout=self.timeout_s,
            check=False,
        )
        return Outcome(
            words, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("KM_", "_KM_"))}
        places = {"KM_HOME": str(self.home), "KM_RUNTIME_DIR": str(self.runtime_dir), "NO_COLOR": "1"}
        return kept | places | dict(self.env)
