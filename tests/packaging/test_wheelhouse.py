"""
Hosts get what their profile uses and nothing else: built, installed and run for three profiles.

The wheels of third parties come from this machine's own pip configuration; without a pip or an index the
tests are skipped.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from attrs import define
from standins.distributions import make_wheel

from km_core.wheelhouse import WheelhouseError
from km_core.wheelhouse.fetch import find_pip
from km_host.inside import frames

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
VERSION = (ROOT / "VERSION").read_text(encoding="utf-8").strip()
QUICKSTART = ROOT / "profiles" / "quickstart.yaml"
KM = Path(sys.executable).with_name("km")
OURS = {
    "km_embedded",
    "km_net_proxy",
    "km_substrate_docker",
    "km_substrate_local",
    "km_badge",
    "docker",
}
BASE = {"km-core", "km-host", "km-net-proxy"}

BADGE = '''
"""A plugin of somebody else: a section of the profile, and the sidecar that acts on it."""

from attrs import frozen

from km_core import hookimpl
from km_core.plan import PlanAdditions
from km_core.profile.kinds import PluginSection, Text, required
from km_core.types import Answer, Claim, Sidecar

KM_PLUGIN_API = 1


@frozen(kw_only=True)
class Badge:
    """What the badge says."""

    text: str = required("text", Text(min_length=1), "What it says.")


@hookimpl
def km_profile_sections():
    return [PluginSection("badge", Badge, "km-badge")]


@hookimpl
def km_field_claims():
    return [Claim("spec.badge", ("*",), Answer.ENFORCED, "km-badge")]


@hookimpl
def km_sidecars():
    return [Sidecar("badge", "km_badge:main", "shows the badge")]


@hookimpl
def km_compile(draft, profile):
    if "badge" in profile["spec"]:
        return PlanAdditions(runners=("badge",))


def main(arguments):
    print("badge", *arguments)
    return 0
'''


@define
class Host:
    """A clean virtual environment with a wheelhouse in it and nothing else."""

    bin: Path
    home: Path
    house: Path
    begun_at: float

    def run(self, *words: str, **rest: object) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": "/usr/bin:/bin", "KM_HOME": str(self.home), "HOME": str(self.home)}
        command = [str(self.bin / words[0]), *words[1:]]
        return subprocess.run(
            command,
            env=environment,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **{"stdin": subprocess.DEVNULL, **rest},
        )

    def distributions(self) -> set[str]:
        listed = json.loads(self.run("km", "plugins", "list", "--json").stdout)
        assert {plugin["status"] for plugin in listed} == {"ok"}, listed
        return {plugin["distribution"] for plugin in listed}

    def importable(self) -> set[str]:
        code = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
        done = self.run("python", "-c", code, *sorted(OURS))
        return set(re.findall(r"\w+", done.stdout))

    def held(self) -> set[str]:
        data = json.loads((self.house / "wheelhouse.json").read_text())
        return {wheel["name"] for wheel in data["wheels"]}


@pytest.fixture(scope="module")
def pip() -> list[str]:
    try:
        return find_pip()
    except WheelhouseError as error:
        pytest.skip(f"no wheels can be fetched here: {error}")


@pytest.fixture(scope="module")
def badge(tmp_path_factory: pytest.TempPathFactory, pip: list[str]) -> Path:
    """A directory with the third party's plugin installed from its wheel file."""
    folder = tmp_path_factory.mktemp("badge")
    wheel = folder / "km_badge-3.1-py3-none-any.whl"
    major, minor, _ = VERSION.split(".")
    wheel.write_bytes(
        make_wheel(
            "km-badge",
            "3.1",
            {"km_badge.py": BADGE},
            requires=(f"km-core>={major}.{minor},<{major}.{int(minor) + 1}",),
            entry_points="[km.plugins]\nbadge = km_badge\n",
        )
    )
    command = [*pip, "install", "-q", "--no-index", "--no-deps", "--no-compile", "--target"]
    subprocess.run([*command, str(folder / "site"), str(wheel)], check=True, capture_output=True)
    return folder / "site"


@pytest.fixture(scope="module")
def km(
    badge: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The operator's km, with the third party's plugin beside ours."""
    home = tmp_path_factory.mktemp("home")

    def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(badge), "KM_HOME": str(home)} | variables
        return subprocess.run(
            [str(KM), *words], env=environment, capture_output=True, text=True, timeout=110, check=False
        )

    return run


@pytest.fixture(scope="module")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What is asked for, by name: arguments of km wheelhouse build."""
    own = tmp_path_factory.mktemp("profiles") / "badge.yaml"
    text = QUICKSTART.read_text(encoding="utf-8")
    own.write_text(f"{text}  badge:\n    text: hello\n", encoding="utf-8")
    return {
        "local": [str(QUICKSTART)],
        "docker": [str(QUICKSTART), "--substrate", "docker"],
        "badge": [str(own)],
    }


@pytest.fixture(scope="module")
def hosts(km, profiles, pip, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Host]:
    """One installed host for each profile, without an index, with hashes required."""
    made = {}
    for name, words in profiles.items():
        folder = tmp_path_factory.mktemp(name)
        house, begun_at = folder / "wheels", time.time()
        done = km("wheelhouse", "build", *words, "--out", str(house))
        if done.returncode and "pip cannot fetch" in done.stderr:
            pytest.skip(f"no index answers here: {done.stderr}")
        assert done.returncode == 0, done.stderr
        venv = folder / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
        command = [pip[0], *(["-m", "pip"] if "-m" in pip else []), "--python", str(venv / "bin" / "python")]
        command += ["install", "-q", "--no-compile", "--no-index", "--find-links", str(house)]
        command += ["--require-hashes", "-r", str(house / "requirements.txt")]
        # The operator's own further sources must not help out.
        environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "PIP_CONFIG_FILE": os.devnull}
        installed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert installed.returncode == 0, installed.stderr
        made[name] = Host(venv / "bin", folder / "home", house, begun_at)
    return made


def test_each_host_holds_exactly_what_its_profile_uses(hosts) -> None:
    assert hosts["local"].distributions() == BASE - {"km-core"} | {"km-substrate-local"}
    assert hosts["docker"].distributions() == BASE - {"km-core"} | {"km-substrate-docker"}
    assert hosts["badge"].distributions() == BASE - {"km-core"} | {"km-substrate-local", "km-badge"}


def test_no_other_plugin_can_be_imported_there(hosts) -> None:
    assert hosts["local"].importable() == {"km_net_proxy", "km_substrate_local"}
    assert hosts["docker"].importable() == {"km_net_proxy", "km_substrate_docker", "docker"}
    assert hosts["badge"].importable() == {"km_net_proxy", "km_substrate_local", "km_badge"}


def test_the_sets_differ_also_in_what_the_distributions_need(hosts) -> None:
    local, docker, badge = (hosts[name].held() for name in ("local", "docker", "badge"))

    assert "requests" in docker - local
    assert local - docker == {"km-substrate-local"}
    assert badge - local == {"km-badge"}
    assert not (local | docker | badge) & {"km-embedded", "pytest", "hypothesis", "pip"}


@pytest.mark.parametrize("name", ["local", "docker", "badge"])
def test_the_gate_of_a_host_starts_and_answers(hosts, name: str, tmp_path: Path) -> None:
    """Its whole code is imported; a bootstrap without listeners is what it refuses, fail closed."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "b"))
        listener.listen()
        with subprocess.Popen(
            [hosts[name].bin / "km-sidecar", "gate", "--connect", str(tmp_path / "b")],
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "KM_HOME": str(tmp_path)},
            stderr=subprocess.PIPE,
        ) as gate:
            listener.settimeout(30)
            channel, _ = listener.accept()
            with channel, channel.makefile("rb") as answers:
                channel.settimeout(30)
                channel.sendall(frames.encode({"sandbox_id": "sb-0"}))
                answer = json.loads(answers.readline())
            gate.communicate(timeout=30)

    assert answer["ready"] is False
    assert "0 descriptors came" in answer["error"]["what"]
    assert gate.returncode == 1


@pytest.mark.parametrize("name", ["local", "docker", "badge"])
def test_the_supervisor_of_a_host_starts_and_answers(hosts, name: str) -> None:
    with open(os.devnull, "rb") as nothing:
        done = hosts[name].run("km-sidecar", "pod", "sb-00000000", stdin=nothing)

    answer = json.loads(done.stdout)
    assert answer["error"]["what"], done.stderr
    assert "No module named" not in done.stdout + done.stderr


def test_the_backend_of_each_substrate_can_be_loaded_on_its_host_only(hosts) -> None:
    code = "from importlib.metadata import entry_points as e; print(sorted(p.load() and p.name for p in e(group='km.pods')))"
    found = {name: hosts[name].run("python", "-c", code).stdout.strip() for name in hosts}

    assert found == {"local": "['local']", "docker": "['docker']", "badge": "['local']"}


def test_a_sidecar_of_a_third_party_runs_where_the_profile_asks_for_it_only(hosts) -> None:
    assert hosts["badge"].run("km-sidecar", "badge", "on").stdout == "badge on\n"

    for name in ("local", "docker"):
        done = hosts[name].run("km-sidecar", "badge", "on")
        assert done.returncode == 5
        assert "no installed plugin offers the sidecar 'badge'" in done.stderr


def test_no_host_runs_a_control_plane(hosts) -> None:
    for host in hosts.values():
        assert host.run("km-sidecar", "kmd").returncode == 5


def test_every_wheelhouse_verifies_and_a_changed_one_is_named(hosts, km) -> None:
    for host in hosts.values():
        answer = json.loads(km("wheelhouse", "verify", str(host.house), "--json").stdout)
        assert answer["valid"], answer
        digest = answer["digest"]
        assert km("wheelhouse", "verify", str(host.house), "--digest", digest).returncode == 0
        assert km("wheelhouse", "verify", str(host.house), "--digest", "0" * 64).returncode == 1

    wheel = next(hosts["badge"].house.glob("km_badge-*.whl"))
    good = wheel.read_bytes()
    wheel.write_bytes(good + b"\0")
    try:
        done = km("wheelhouse", "verify", str(hosts["badge"].house))
        assert done.returncode == 1
        assert f"{wheel}: is not the wheel that the manifest lists" in done.stderr
    finally:
        wheel.write_bytes(good)


def sources_changed_since(moment: float) -> list[str]:
    """Name the files that are not what they were: wheels of them may differ."""
    paths = (path for path in (ROOT / "packages").glob("*/src/**/*") if path.is_file())
    return [
        str(path.relative_to(ROOT))
        for path in paths
        if path.suffix != ".pyc" and path.stat().st_mtime > moment
    ]


def test_building_again_gives_the_same_bytes_whatever_the_surroundings(hosts, km, profiles, tmp_path) -> None:
    again = tmp_path / "again"
    odd = {"LC_ALL": "C", "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "1"}
    done = km("wheelhouse", "build", *profiles["local"], "--out", str(again), **odd)

    assert done.returncode == 0, done.stderr
    if edited := sources_changed_since(hosts["local"].begun_at):
        pytest.skip(f"somebody edits the sources meanwhile: {edited[0]}")
    house = hosts["local"].house
    assert sorted(p.name for p in again.iterdir()) == sorted(p.name for p in house.iterdir())
    for path in again.iterdir():
        assert path.read_bytes() == (house / path.name).read_bytes(), path.name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_build_that_is_ended_leaves_no_half_of_a_wheelhouse(tmp_path, number: signal.Signals) -> None:
    out = tmp_path / "wheels"
    with subprocess.Popen(
        [KM, "wheelhouse", "build", str(QUICKSTART), "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"KM_HOME": str(tmp_path / "home")},
    ) as process:
        assert "build km-core" in process.stderr.readline()
        process.send_signal(number)
        process.communicate(timeout=30)

    assert process.returncode in {128 + signal.SIGTERM, -signal.SIGKILL}
    assert not out.exists()
    if number is signal.SIGTERM:
        assert list(tmp_path.glob(".wheels*")) == []


def test_a_dry_run_says_what_comes_from_where_and_makes_nothing(km, profiles, tmp_path) -> None:
    out = tmp_path / "wheels"
    words = ["--out", str(out), "--dry-run", "--json"]
    here = json.loads(km("wheelhouse", "build", *profiles["badge"], *words).stdout)
    index = json.loads(km("wheelhouse", "build", *profiles["badge"], *words, "--from", "index").stdout)

    everything = sorted(BASE | {"km-substrate-local", "km-badge"})
    assert [entry["name"] for entry in here["build"]] == everything
    assert (here["fetch"], index["build"]) == ([], [])
    assert [item.partition("==")[0] for item in index["fetch"]] == everything
    assert index["fetch"] == index["requirements"] == here["requirements"]
    assert not out.exists()


def test_the_index_is_refused_when_it_has_none_of_ours(km, profiles, tmp_path) -> None:
    """Nothing is half made, and pip's reason is told."""
    out = tmp_path / "wheels"
    variables = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    done = km("wheelhouse", "build", *profiles["local"], "--out", str(out), "--from", "index", **variables)

    assert done.returncode == 1
    assert "pip cannot fetch the wheels" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_wheelhouse_serves_as_the_index_of_the_next_one(hosts, km, profiles, tmp_path) -> None:
    """What was locked once can be taken from there, so no other source is needed."""
    variables = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(hosts["local"].house)}
    out = tmp_path / "wheels"
    done = km("wheelhouse", "build", *profiles["local"], "--out", str(out), "--from", "index", **variables)

    assert done.returncode == 0, done.stderr
    assert (out / "wheelhouse.json").read_bytes() == (hosts["local"].house / "wheelhouse.json").read_bytes()
