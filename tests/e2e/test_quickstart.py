"""README command 1, whole: with the network unplugged, twice, and killed in the middle."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WITHIN_S = 15.0
"""The main job's limit once the clone is set up; a busy machine gets three times as much."""

pytestmark = [pytest.mark.namespaces, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", autouse=True)
def set_up() -> None:
    if not (ROOT / ".venv" / ".km-setup").exists():
        pytest.skip("this clone is not set up: run scripts/setup")
    subprocess.run([ROOT / "scripts" / "setup", "--quiet", "--no-image"], check=True, capture_output=True)


def unplugged(*command: str) -> list[str]:
    """Wrap a command so that it sees a loopback and no other network."""
    return ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]


def outside_the_cache() -> set[str]:
    """What the demo could leave: files of the clone and of the usual places for temporary ones."""
    listed = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=all"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return {
        *listed,
        *(str(path) for place in ("/tmp", "/run", "/dev/shm") for path in Path(place).glob("*km*")),
        *(str(path) for path in (Path.home() / ".km").glob("*")),
    }


def quickstart(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        unplugged(str(ROOT / "scripts" / "quickstart"), *arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"NO_COLOR": "1"},
    )


def test_the_main_job_passes_offline_twice_and_leaves_nothing() -> None:
    before = outside_the_cache()
    for _ in range(2):
        started = time.monotonic()
        done = quickstart()
        elapsed = time.monotonic() - started
        assert done.returncode == 0, done.stderr + done.stdout
        assert "all checks passed" in done.stdout
        assert "\033" not in done.stdout + done.stderr
        assert elapsed < 3 * WITHIN_S, elapsed
        reported = re.search(r"in ([\d.]+) s$", done.stdout, re.MULTILINE)
        assert reported is not None
    assert outside_the_cache() - before == set()
    assert not (ROOT / ".cache" / "quickstart" / "home").exists()


def test_a_run_that_was_killed_is_cleaned_up_by_the_next_one() -> None:
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
    done = quickstart()
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
        ["unshare", "-U", str(tmp_path / "bash"), str(ROOT / "scripts" / "setup")],
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
