"""README command 1, whole: with the network unplugged, twice, and killed in the middle."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from km_core.config import default_runtime_dir

ROOT = Path(__file__).resolve().parents[2]
WITHIN_S = 15.0
"""The main job's limit, in seconds, once the clone is set up."""
BUSY_FACTOR = 4
"""Other tests run at the same time."""

pytestmark = [pytest.mark.namespaces, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", autouse=True)
def set_up() -> None:
    if not (ROOT / ".venv" / ".km-setup").exists():
        pytest.skip("this clone is not set up: run scripts/setup")
    subprocess.run([ROOT / "scripts" / "setup", "--quiet", "--no-image"], check=True, capture_output=True)


def unplugged(*command: str) -> list[str]:
    """Wrap a command so that it sees a loopback and no other network."""
    return ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """A home and a directory for temporary files of the demo's own, to find what it leaves there."""
    (tmp_path / "home").mkdir()
    (tmp_path / "tmp").mkdir()
    return {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"), "NO_COLOR": "1"}


def quickstart(places: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        unplugged(str(ROOT / "scripts" / "quickstart")),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | places,
    )


def in_the_clone() -> str:
    return subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=all"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_the_main_job_passes_offline_twice_and_leaves_nothing(places: dict[str, str]) -> None:
    before = in_the_clone()
    for _ in range(2):
        started = time.monotonic()
        done = quickstart(places)
        elapsed = time.monotonic() - started
        assert done.returncode == 0, done.stderr + done.stdout
        assert "all checks passed" in done.stdout
        assert "\033" not in done.stdout + done.stderr
        assert elapsed < BUSY_FACTOR * WITHIN_S, elapsed
    assert in_the_clone() == before
    for name in ("HOME", "TMPDIR"):
        # Where an engine answers, the lock of the base image's builder stands in the user's cache.
        left = (path.relative_to(places[name]) for path in Path(places[name]).rglob("*"))
        assert [path for path in left if path.parts[0] != ".cache"] == []
    home = ROOT / ".cache" / "quickstart" / "home"
    assert not home.exists()
    assert not default_runtime_dir(home, os.environ).exists()


def test_a_run_that_was_killed_is_cleaned_up_by_the_next_one(places: dict[str, str]) -> None:
    process = subprocess.Popen(
        unplugged(str(ROOT / "scripts" / "quickstart")),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "on local" in line:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)
    assert (ROOT / ".cache" / "quickstart" / "home").exists()
    done = quickstart(places)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "all checks passed" in done.stdout


def test_a_user_without_root_gets_one_list_of_packages(tmp_path: Path) -> None:
    """In a user namespace without a mapping `id -u` is not 0; the search path lacks two programs."""
    for name in (
        "bash",
        "sh",
        "id",
        "dirname",
        "cat",
        "sort",
        "python3",
        "git",
        "ip",
        "sha256sum",
        "cut",
        "mktemp",
        "env",
    ):
        found = subprocess.run(["which", name], capture_output=True, text=True, check=False).stdout.strip()
        if found:
            (tmp_path / name).symlink_to(found)
    done = subprocess.run(
        [shutil.which("unshare") or "unshare", "-U", str(tmp_path / "bash"), str(ROOT / "scripts" / "setup")],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": str(tmp_path), "HOME": os.environ.get("HOME", "/")},
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "apt-get install" in line]
    assert {"bubblewrap", "curl"} <= set(line.split())


def test_setup_of_a_current_clone_changes_nothing() -> None:
    stamp = ROOT / ".venv" / ".km-setup"
    before = stamp.stat().st_mtime_ns
    started = time.monotonic()
    subprocess.run([ROOT / "scripts" / "setup", "--no-image"], check=True, capture_output=True)
    assert time.monotonic() - started < 5
    assert stamp.stat().st_mtime_ns == before
