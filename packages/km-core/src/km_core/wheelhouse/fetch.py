"""Wheels from the operator's own index, with the operator's own pip and its configuration."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from km_core.audit.redact import redact_text
from km_core.wheelhouse.sources import find, is_editable, last_line
from km_core.wheelhouse.wheels import WheelhouseError, content_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from km_core.wheelhouse.wheels import Wheel

_ASK_S = 60.0
_FETCH_S = 900.0


def find_pip() -> list[str]:
    """
    Return the command of a pip that resolves for this interpreter.

    First this environment's own; else one on the path, told to work for this interpreter (pip 22.3 or
    newer); else the one that the operator's uv brings.

    Raises:
        WheelhouseError: there is none.
    """
    here = ["--python", sys.executable]
    tried: list[list[str]] = [[sys.executable, "-m", "pip"]]
    tried += [[found, "-m", "pip", *here] for name in ("python3", "python") if (found := shutil.which(name))]
    tried += [[found, *here] for name in ("pip", "pip3") if (found := shutil.which(name))]
    tried += [[found, "tool", "run", "pip", *here] for name in ("uv",) if (found := shutil.which(name))]
    for command in tried:
        try:
            done = subprocess.run(
                [*command, "--version"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_ASK_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return command
    raise WheelhouseError(
        "no pip is found that can fetch wheels for this interpreter",
        hint="install pip 22.3 or newer (on Debian: python3-pip)",
    )


def fetch(
    built: Sequence[Path], wanted: Sequence[str], versions: Mapping[str, str], work: Path
) -> list[Path]:
    """
    Resolve and download: *built* and *wanted* with all that they require, wheels only.

    A name that *built* provides is never asked of an index, whoever requires it: pip takes the file that
    it was given.

    Args:
        built: wheel files.
        wanted: requirements to fetch.
        versions: what is installed here, so that a host gets what the operator runs.
        work: an empty directory.

    Returns:
        Every wheel of the set.

    Raises:
        WheelhouseError: pip cannot resolve or fetch; its last words are in it.
    """
    target, list_file, limits = work / "fetched", work / "wanted.txt", work / "versions.txt"
    target.mkdir()
    list_file.write_text("".join(f"{item}\n" for item in [*map(str, built), *wanted]), encoding="utf-8")
    limits.write_text(
        "".join(f"{name}=={version}\n" for name, version in sorted(versions.items())), encoding="utf-8"
    )
    command = [*find_pip(), "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--only-binary", ":all:", "--dest", str(target)]
    command += ["--constraint", str(limits), "--requirement", str(list_file)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_FETCH_S,
            check=False,
            # Asking for hashes is what this answers; it cannot be a condition of it.
            env={name: value for name, value in os.environ.items() if name != "PIP_REQUIRE_HASHES"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WheelhouseError("pip does not answer", why=redact_text(str(error))[:500]) from error
    if done.returncode != 0:
        raise WheelhouseError(
            "pip cannot fetch the wheels",
            why=_why(done.stderr),
            hint="the index of your pip configuration must have wheels of the versions installed here",
        )
    return sorted(target.iterdir())


def same_as_installed(wheel: Wheel, path: Path) -> bool:
    """
    Say whether a fetched wheel holds the files that are installed here under its name and version.

    So a distribution of another origin that has the same name is not taken for it.  An editable install
    has no files to compare with and counts as the same.
    """
    dist = find(wheel.name)
    if dist is None or dist.version != wheel.version or is_editable(dist):
        return True
    installed = {
        str(file): f"{file.hash.mode}={file.hash.value}" for file in dist.files or () if file.hash is not None
    }
    return all(installed.get(name) == digest for name, digest in content_of(path).items())


def _why(stderr: str) -> str:
    """Return pip's reason: its first error, or its last line."""
    errors = [line for line in stderr.splitlines() if line.startswith("ERROR: ")]
    if "ERROR: Exception:" in errors:
        return last_line(stderr)  # of a traceback: what was raised
    return last_line(errors[0].removeprefix("ERROR: ") if errors else stderr)
