"""What the pages say exists: commands, files, links, profiles, hooks, operations."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("packages/*/README.md")])
KM = str(Path(sys.executable).with_name("km"))


def code_lines(text: str) -> list[str]:
    blocks = re.findall(r"^```(?:sh|console|bash)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_named_files_of_the_repository_exist(page: Path) -> None:
    words = re.findall(
        r"`((?:scripts|tests|packages|profiles|docs|bench|\.ci)/[\w./-]+)`", page.read_text(encoding="utf-8")
    )
    assert [word for word in words if not (ROOT / word).exists()] == []


def test_the_readmes_commands_are_there() -> None:
    lines = code_lines((ROOT / "README.md").read_text(encoding="utf-8"))
    scripts = [line.split()[0] for line in lines if line.startswith("scripts/")]
    assert scripts[:2] == ["scripts/quickstart", "scripts/test"]
    for script in scripts:
        assert (ROOT / script).stat().st_mode & 0o111, script


def km_commands() -> list[str]:
    found = set()
    for page in PAGES:
        for line in code_lines(page.read_text(encoding="utf-8")):
            for part in re.split(r"&&|\||;|\$\(", line):
                words = part.replace("|", " ").split()
                if words[:1] == ["km"]:
                    found.add(part.strip())
    return sorted(found)


@pytest.mark.parametrize("line", km_commands())
def test_every_km_command_in_the_pages_is_understood(line: str) -> None:
    """Subcommands and options in examples exist; the commands are not run."""
    words = line.split("--help", maxsplit=1)[0].split()[1:]
    path = []
    for word in words:
        if not re.fullmatch(r"[a-z]+", word) or len(path) == 2:
            break
        path.append(word)
    done = None
    while path:
        done = subprocess.run([KM, *path, "--help"], capture_output=True, text=True, timeout=30, check=False)
        if done.returncode == 0:
            break
        path.pop()
    assert done is not None
    assert done.returncode == 0, (line, done.stderr)
    for option in [
        w.partition("=")[0]
        for w in words[: words.index("--") if "--" in words else None]
        if w.startswith("--")
    ]:
        assert option in done.stdout, (line, option)


@pytest.mark.parametrize("profile", sorted((ROOT / "profiles").glob("*.yaml")), ids=lambda p: p.name)
def test_sample_profiles_are_valid(profile: Path) -> None:
    done = subprocess.run(
        [KM, "validate", str(profile), "--json"], capture_output=True, text=True, timeout=30, check=False
    )
    report = json.loads(done.stdout)
    assert done.returncode == 0, report
    assert [p for p in report["problems"] if p["severity"] != "info"] == []


def test_the_quick_starts_agent_is_a_program() -> None:
    import yaml

    profile = yaml.safe_load((ROOT / "profiles" / "quickstart.yaml").read_text(encoding="utf-8"))
    compile(profile["spec"]["execution"]["configFiles"]["/workspace/agent.py"], "agent.py", "exec")
