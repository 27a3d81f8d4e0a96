"""``docs/tutorial/plugin.md``, carried out word for word in a clean environment."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

from standins.clean_venv import ROOT, CleanVenv, build_wheels

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest

PAGE = ROOT / "docs" / "tutorial" / "plugin.md"
DISTRIBUTION = "km-notify-tally"
BLOCK = re.compile(
    r"(?:`(?P<file>[\w./]+)`:\n\n)?^```(?P<kind>[^\n]+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
"""A fenced block; one behind a line that ends with a file's name and a colon is that file's new content."""
MARK = "km-tutorial-end-of-command"


class Shell:
    """One shell for the whole page, so that ``cd`` and ``export`` last."""

    def __init__(self, venv: CleanVenv, directory: Path) -> None:
        self._errors = (directory / "errors").open("w+")
        self._process = subprocess.Popen(
            ["bash"],
            cwd=directory,
            env=venv.env | {"KM_HOME": str(directory / "km-home")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def run(self, command: str) -> tuple[int, str]:
        """Return exit code and standard output; pip warns on the other stream of an operator's odd index."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\necho; echo {MARK} $?\n")
        self._process.stdin.flush()
        lines: list[str] = []
        for line in self._process.stdout:
            if line.startswith(MARK):
                return int(line.split()[1]), "".join(lines).rstrip("\n")
            lines.append(line)
        raise AssertionError(f"the shell ended: {command}")

    def close(self) -> None:
        """End it."""
        self._process.communicate()
        self._errors.close()

    def errors(self) -> str:
        """Return what all commands so far said on standard error."""
        self._errors.seek(0)
        return self._errors.read()


def blocks() -> Iterator[tuple[str, str, str]]:
    for match in BLOCK.finditer(PAGE.read_text(encoding="utf-8")):
        yield match["kind"], match["file"] or "", match["text"]


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a block with the output that the page shows."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output.rstrip("\n")


def matches(shown: str, printed: str) -> bool:
    """Compare output with the page's, in which ``...`` stands for anything."""
    pattern = "".join(".*" if part == "..." else re.escape(part) for part in re.split(r"(\.\.\.)", shown))
    return re.fullmatch(pattern, printed, re.DOTALL) is not None


def test_the_page_shows_output_for_what_it_claims() -> None:
    assert matches("a ... c\n...", "a b c\nmore")
    assert not matches("a", "b")
    assert len(list(blocks())) >= 9


def test_the_tutorial_works_word_for_word(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    wheels = build_wheels(tmp_path_factory.mktemp("wheels"), ROOT / "packages" / "km-core")
    venv = CleanVenv(tmp_path / "venv", wheels)
    venv.install("km-core")
    work = tmp_path / "work"
    work.mkdir()
    tree = work / DISTRIBUTION
    shell = Shell(venv, work)
    try:
        for kind, file, text in blocks():
            if kind == "console":
                for command, shown in commands(text):
                    code, printed = shell.run(command)
                    assert code == 0, f"$ {command}\n{printed}\n{shell.errors()}"
                    assert matches(shown, printed), f"$ {command}\nshown:\n{shown}\nprinted:\n{printed}"
            elif file:
                (tree / file).write_text(text, encoding="utf-8")
            elif kind in {"python", "toml"}:
                files = [path.read_text() for path in tree.rglob("*") if path.suffix in {".py", ".toml"}]
                assert any(text in content for content in files), f"not in the distribution:\n{text}"
    finally:
        shell.close()
