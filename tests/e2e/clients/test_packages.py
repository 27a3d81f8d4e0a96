"""Package clients and git install from registries of the operator's, through tunnels, told nothing else."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from standins.clients import CRATES, GIT, archive_of, fetched, unpack

if TYPE_CHECKING:
    from standins.world import Sandbox

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]
LOCAL_ONLY = pytest.mark.parametrize(
    "substrate", [pytest.param("local", marks=pytest.mark.namespaces)], indirect=True, scope="module"
)
GREETING = "import km_greeting; print(km_greeting.TEXT)"


@pytest.mark.usefixtures("nothing_refused")
def test_git_clones_over_https(box: Sandbox) -> None:
    box.run("git", "clone", "-q", f"https://{GIT}/project.git").assert_ok()
    log = box.run("git", "-C", "project", "log", "--format=%s").assert_ok()
    assert log.stdout == "the stand-in's commit\n"


def test_git_is_refused_where_the_profile_does_not_allow_it(box: Sandbox) -> None:
    outcome = box.run("git", "clone", "-q", "https://denied.test/project.git")
    assert outcome.code == 128, outcome


@pytest.mark.usefixtures("nothing_refused")
def test_pip_installs_from_the_operators_index(box: Sandbox) -> None:
    box.run("python3", "-m", "venv", "venv").assert_ok()
    box.run("venv/bin/pip", "install", "-q", "km-greeting").assert_ok()
    assert box.run("venv/bin/python", "-c", GREETING).assert_ok().stdout == "hello from the index\n"


@pytest.mark.usefixtures("nothing_refused")
def test_uv_installs_from_the_operators_index(box: Sandbox) -> None:
    unpack(box, archive_of(fetched("python/bin/uv"), "uv"))
    box.run("./uv", "venv", "-q", "--python", "python3", "uvenv").assert_ok()
    box.run("./uv", "pip", "install", "-q", "--python", "uvenv/bin/python", "km-greeting").assert_ok()
    assert box.run("uvenv/bin/python", "-c", GREETING).assert_ok().stdout == "hello from the index\n"


@LOCAL_ONLY
@pytest.mark.usefixtures("nothing_refused")
def test_npm_installs_from_the_operators_registry(box: Sandbox) -> None:
    if box.run("npm", "--version").code != 0:
        pytest.skip("no npm in the sandbox: an optional client")
    # With its audit and its question about funding, as npm does it unasked.
    box.run("npm", "install", "--prefix", "/workspace/npm", "km-greeting").assert_ok()
    source = "console.log(require('/workspace/npm/node_modules/km-greeting'))"
    assert box.run("node", "-e", source).assert_ok().stdout == "hello from the registry\n"


@pytest.mark.usefixtures("nothing_refused")
def test_cargo_takes_a_crate_from_a_sparse_index(box: Sandbox) -> None:
    unpack(box, archive_of(cargo(), "cargo"))
    registry = f'[registries.stand-in]\nindex = "sparse+https://{CRATES}/"\n'
    manifest = '[package]\nname = "app"\nversion = "1.0.0"\nedition = "2021"\n[dependencies]\n'
    box.run("mkdir", "-p", "app/.cargo", "app/src").assert_ok()
    box.put("app/.cargo/config.toml", registry)
    box.put("app/Cargo.toml", manifest + 'km-greeting = { version = "1", registry = "stand-in" }\n')
    box.put("app/src/lib.rs", "")
    box.run("sh", "-c", "cd app && ../cargo vendor -q").assert_ok()
    assert box.run("cat", "app/vendor/km-greeting/src/lib.rs").assert_ok().stdout == "pub fn hello() {}\n"


def cargo() -> Path:
    """Return the program itself: what stands in the path may be rustup's, which chooses one."""
    program = shutil.which("cargo")
    if program is None:
        pytest.skip("no cargo on this machine: an optional client")
    rustup = shutil.which("rustup")
    if rustup is not None:
        found = subprocess.run([rustup, "which", "cargo"], capture_output=True, text=True, check=False)
        program = found.stdout.strip() or program
    return Path(program)
