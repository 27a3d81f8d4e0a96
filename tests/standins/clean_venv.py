"""Virtual environments that hold nothing but what a test puts there, from wheels of the workspace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def build_wheels(target: Path, *sources: Path) -> Path:
    """Build the distributions in *sources*; returns *target*, which holds their wheels."""
    for source in sources:
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)],
            cwd=source,
            check=True,
            capture_output=True,
        )
    return target


class CleanVenv:
    """
    A fresh virtual environment.

    Args:
        directory: where it is made.
        wheels: wheels of ours; everything else comes as the operator's pip is configured.
    """

    def __init__(self, directory: Path, wheels: Path) -> None:
        self.bin = directory / "bin"
        links = " ".join(filter(None, (str(wheels), os.environ.get("PIP_FIND_LINKS", ""))))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("KM_", "PYTHON"))}
        self.env = kept | {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "VIRTUAL_ENV": str(directory),
            "PIP_FIND_LINKS": links,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
            "NO_COLOR": "1",
        }
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)

    def install(self, *requirements: str) -> None:
        """Install with pip."""
        self.run("pip", "install", "--quiet", *requirements)

    def run(
        self, program: str, *words: str, cwd: Path | None = None, check: bool = True, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment."""
        done = subprocess.run(
            [str(self.bin / program), *words],
            cwd=cwd,
            env=self.env | env,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{program} {' '.join(words)}\n{done.stdout}\n{done.stderr}")
        return done
