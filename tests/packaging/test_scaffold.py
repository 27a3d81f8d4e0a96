"""``km plugins new``: what it writes passes its own tests, strict types and ``km plugins check`` untouched."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from km_core.errors import GuardError, KmError, UsageError
from km_core.scaffold import KINDS, check_name, render, write_distribution
from km_core.scaffold.render import core_range

BIN = Path(sys.executable).parent
NAMES = {
    "substrate": "km-substrate-cellar",
    "enforcer": "km-enforcer-cellar",
    "notifier": "km-notify-cellar",
    "meter": "km-meter-wine-cellar",
    "agent": "km-agent-cellar",
    "control-plane": "km-control-plane-cellar",
}


def km(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "km"), *words], cwd=cwd, env=os.environ | env, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_passes_everything_untouched(kind: str, tmp_path: Path) -> None:
    done = km("plugins", "new", NAMES[kind], "--kind", kind, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    tree = tmp_path / NAMES[kind]
    found = sorted(str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file())

    assert sorted(report["files"]) == found
    assert report["written"] is True
    env = os.environ | {"PYTHONPATH": str(tree / "src")}
    for command in (
        [sys.executable, "-m", "pytest", "-q"],
        [sys.executable, "-m", "mypy"],
        [sys.executable, "-m", "ruff", "check", "."],
        [str(BIN / "km"), "plugins", "check", "."],
    ):
        ran = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_say_who_made_them_and_for_which_km(kind: str) -> None:
    files = render(check_name(NAMES[kind], kind), author="Ada <ada@example.org>", core_version="0.7.3")
    project = tomllib.loads(files["pyproject.toml"])["project"]

    assert project["authors"] == [{"name": "Ada", "email": "ada@example.org"}]
    assert project["dependencies"] == ["km-core>=0.7,<0.8"]
    assert "Copyright (c) Ada\n" in files["LICENSE"]
    assert f"src/{project['name'].replace('-', '_')}/py.typed" in files
    headings = re.findall(r"^#+ (.*)$", files["README.md"], re.MULTILINE)
    assert headings == [
        project["name"],
        "What it does",
        "Profile fields it owns",
        "Sidecars",
        "Metrics and events",
        "Health checks",
        "Examples",
    ]
    assert not [path for path, text in files.items() if re.search("<<[a-z]|TODO", text) or "MODULE" in path]


def test_the_range_ends_where_the_interface_may_change() -> None:
    assert core_range("0.1.0") == ">=0.1,<0.2"
    assert core_range("1.4.2") == ">=1.4,<2"
    assert core_range("0.3.0.dev1") == ">=0.3,<0.4"


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("notify-mine", UsageError),
        ("km-", UsageError),
        ("km-a b", UsageError),
        ("km-../x", UsageError),
        ("km-ü", UsageError),
        ("km-" + "x" * 70, UsageError),
        ("km-notify-9", UsageError),
        ("km-core", GuardError),
        ("KM_Embedded", GuardError),
        ("km-net-proxy", GuardError),
    ],
)
def test_a_name_that_cannot_be_or_is_taken_is_refused(name: str, error: type[KmError]) -> None:
    with pytest.raises(error) as caught:
        check_name(name, "notifier")
    assert caught.value.hint or caught.value.why


def test_a_name_is_brought_into_its_canonical_form() -> None:
    names = check_name("KM_Notify..Mine", "notifier")

    assert (names.dist, names.module, names.plugin, names.word) == (
        "km-notify-mine",
        "km_notify_mine",
        "notify-mine",
        "mine",
    )


@pytest.mark.parametrize("author", ['a"b', "x <y>", "line\nbreak", "back\\slash", "<only@mail.example>"])
def test_an_author_that_would_break_the_metadata_is_refused(author: str) -> None:
    with pytest.raises(UsageError):
        render(check_name("km-notify-mine", "notifier"), author=author)


def test_a_directory_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")

    for name in ("full", "file", "link"):
        done = km("plugins", "new", "km-notify-mine", "--kind", "notifier", "--out", name, cwd=tmp_path)
        assert done.returncode == 4, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full", "link"]
    assert (tmp_path / "full" / "mine").read_text() == "x"


def test_an_empty_directory_is_filled_and_a_dry_run_makes_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    words = ("plugins", "new", "km-agent-mine", "--kind", "agent", "--out", "empty")

    done = km(*words, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0
    assert "empty/pyproject.toml" in done.stdout
    assert list((tmp_path / "empty").iterdir()) == []
    assert km(*words, cwd=tmp_path).returncode == 0
    assert (tmp_path / "empty" / "pyproject.toml").exists()


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KmError):
        write_distribution({"a": "x", "a/b": "cannot be"}, tmp_path / "new")
    with pytest.raises(KmError):
        write_distribution({"a": "x"}, tmp_path / "no" / "parent")

    assert list(tmp_path.iterdir()) == []
