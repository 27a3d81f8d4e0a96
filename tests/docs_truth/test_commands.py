"""Every command is documented, and every command that a page shows is there and, where it only reads, works."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from sitepages import commands, reading

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/*/README.md")])
ENTRIES = {entry.path: entry for entry in commands.entries()}
ALIASES = commands.aliases()
READ_ONLY = {"validate", "compile", "explain", "plugins", "profiles", "schema", "diff", "completion"}
WRITES = {("plugins", "new"), ("compile", "--out"), ("schema", "--out")}
OWN_RUNNER = {"docs/tutorial/plugin.md"}
"""Pages that a test of their own follows word for word, in an environment of its own."""


def shown_lines() -> list[tuple[str, str]]:
    found = {
        (str(page.relative_to(ROOT)), line)
        for page in PAGES
        for line in reading.command_lines(page.read_text(encoding="utf-8"))
    }
    found |= {(" ".join(path), line) for path, entry in ENTRIES.items() for line in entry.examples}
    return sorted(found)


@pytest.mark.parametrize("path", sorted(ENTRIES), ids=" ".join)
def test_every_command_is_described_with_every_option_and_an_example(path: tuple[str, ...]) -> None:
    entry = ENTRIES[path]

    assert entry.help, "no help text"
    assert [option.opts for option in entry.options if not option.help] == []
    if not isinstance(entry.command, click.Group):
        assert entry.examples or path == ("km", "completion"), "no example in the epilog"


def test_every_command_has_its_place_on_a_generated_page() -> None:
    text = "\n".join(commands.pages().values())

    assert [
        entry.name for entry in ENTRIES.values() if f"# `{entry.name}`" not in text and len(entry.path) > 1
    ] == []
    for entry in ENTRIES.values():
        for option in entry.options:
            assert all(f"`{name}`" in text for name in option.opts)


@pytest.mark.parametrize(("page", "line"), shown_lines(), ids=lambda value: value)
def test_every_shown_command_and_its_options_exist(page: str, line: str) -> None:
    words = shlex.split(
        line.split("<", maxsplit=1)[0].split(">", maxsplit=1)[0].replace("'", "").replace('"', ""),
        comments=True,
    )[1:]
    if "--" in words:
        words = words[: words.index("--")]
    path: tuple[str, ...] = ("km",)
    rest = list(words)
    while rest and not rest[0].startswith("-"):
        name = ALIASES.get(rest[0], rest[0]) if len(path) == 1 else rest[0]
        if (*path, name) not in ENTRIES:
            break
        path, rest = (*path, name), rest[1:]
    entry = ENTRIES[path]
    top_level = {"--version", "--help", "-h", "--log-level"}

    assert not (isinstance(entry.command, click.Group) and rest and not rest[0].startswith("-")), (
        f"{entry.name} has no command {rest[0]}"
    )
    known = {name for o in entry.command.get_params(entry.context) for name in (*o.opts, *o.secondary_opts)}
    for word in rest:
        if re.match(r"--?[a-z]", word):
            assert word.partition("=")[0] in known | top_level, f"{entry.name} has no option {word}"


def console_pages() -> list[Path]:
    return [
        page
        for page in PAGES
        if reading.sessions(page.read_text(encoding="utf-8"))
        and str(page.relative_to(ROOT)) not in OWN_RUNNER
    ]


def only_reads(command: str) -> bool:
    words = command.split()
    if words[:1] != ["km"] or len(words) < 2 or re.search(r"[|<>;&]", command):
        return False
    return (words[1] in READ_ONLY or words[1] in {"--version", "--help"}) and not any(
        words[1] == first and second in words for first, second in WRITES
    )


def matches(shown: str, printed: str) -> bool:
    """Compare output; ``...`` in what is shown stands for anything within a line, or for lines."""
    pattern = re.escape(shown).replace(r"\.\.\.", ".*")
    return re.fullmatch(pattern, printed, re.DOTALL) is not None


@pytest.mark.parametrize("page", console_pages(), ids=lambda p: str(p.relative_to(ROOT)))
def test_what_a_page_shows_is_what_its_commands_print(page: Path, tmp_path: Path) -> None:
    """Commands that only read are run in a folder with the page's own files; the output must match."""
    text = page.read_text(encoding="utf-8")
    for name, content in reading.files(text).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles", dirs_exist_ok=True)
    env = {name: value for name, value in os.environ.items() if not name.startswith("KM_")}
    env |= {
        "KM_HOME": str(tmp_path / ".km"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LC_ALL": "C.UTF-8",
    }
    for session in reading.sessions(text):
        for shown in session:
            if not only_reads(shown.command):
                continue
            done = subprocess.run(
                ["bash", "-c", shown.command],
                cwd=tmp_path,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
                timeout=60,
                check=False,
            )
            printed = done.stdout.strip("\n")
            refused = "error:" in shown.output

            assert (done.returncode != 0) == refused, f"{shown.command}\n{printed}"
            if shown.output:
                assert matches(shown.output, printed), (
                    f"{shown.command}\nshown:\n{shown.output}\nprinted:\n{printed}"
                )


def test_the_readmes_scripts_are_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    scripts = [
        line.split()[0] for body in reading.code(text, "sh") for line in body.splitlines() if line.strip()
    ]
    scripts = [word for word in scripts if word.startswith("scripts/")]

    assert scripts[:2] == ["scripts/quickstart", "scripts/test"]
    for script in scripts:
        assert (ROOT / script).stat().st_mode & 0o111, script
