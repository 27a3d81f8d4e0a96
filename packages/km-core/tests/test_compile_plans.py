"""
Plans as bytes: golden ones, and the same ones whatever process, place, language or Python makes them.

``golden_plans/NAME.SUBSTRATE.json`` is written anew by

    KM_UPDATE_GOLDEN=1 pytest packages/km-core/tests/test_compile_plans.py
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import km_core
from km_core.cli.main import main
from km_core.compile.artifacts import write_artifacts
from km_core.compile.pipeline import Overrides, plan_from_file
from km_core.config import load_config
from km_core.errors import KmError, ProfileError
from km_core.plan import SandboxPlan
from km_core.plugins import load_plugins

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
GOLDEN = HERE / "golden_plans"
PROFILES = {
    "quickstart": ROOT / "profiles" / "quickstart.yaml",
    "full-width": HERE / "data_full_width.yaml",
}
NEEDED = ("km-net-proxy", "km-host", "km-substrate-local", "km-substrate-docker")
KM = "import sys; sys.argv[0] = 'km'; from km_core.cli.main import main; main()"


def lacking():
    for name in NEEDED:
        try:
            version(name)
        except PackageNotFoundError:
            yield name


pytestmark = pytest.mark.skipif(bool(list(lacking())), reason=f"needs {', '.join(lacking())}")


def compiled(name, substrate, home):
    config = load_config({"KM_HOME": str(home)})
    return plan_from_file(PROFILES[name], config, load_plugins(), Overrides(substrate=substrate)).plan


@pytest.mark.parametrize("substrate", ["local", "docker"])
@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_becomes_the_plan_of_its_golden_file(name, substrate, tmp_path):
    file = GOLDEN / f"{name}.{substrate}.json"
    plan = compiled(name, substrate, tmp_path)
    found = plan.to_json().replace(f"=={version('km-core')}", "==VERSION")
    if os.environ.get("KM_UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(found, encoding="utf-8")

    assert file.read_text(encoding="utf-8") == found
    assert SandboxPlan.from_data(json.loads(plan.to_json())) == plan


def test_the_full_width_profile_writes_every_section_that_acts_or_is_harmless_here(tmp_path):
    plan = compiled("full-width", "local", tmp_path)

    assert {"spec.cli.noBedrock", "spec.runtime.spot", "spec.otp.secrets"} <= set(plan.inert)
    assert (("alpha", "ä ö ü"), ("middle", "m"), ("team/owner", "42"), ("zebra", "z")) == plan.labels
    assert 123_456_789 == plan.budget.ai_limit_nusd
    assert plan.to_json().isascii()


def km(arguments, *, cwd, python=sys.executable, **env):
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("KM_", "LC_", "PYTHON"))
    }
    done = subprocess.run(
        [python, "-c", KM, *arguments],
        env={**kept, **env},
        cwd=cwd,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    return done.stdout


SURROUNDINGS = [
    {"LC_ALL": "C", "PYTHONHASHSEED": "0", "TZ": "UTC"},
    {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "1", "TZ": "Pacific/Kiritimati", "PYTHONUTF8": "0"},
    {"LC_ALL": "tr_TR.UTF-8", "PYTHONHASHSEED": "4294967295", "TZ": "America/St_Johns", "LANG": "de_DE"},
    {"LC_ALL": "POSIX", "PYTHONHASHSEED": "7", "HOME": "/nonexistent", "USER": "nobody", "COLUMNS": "20"},
]


@pytest.mark.parametrize("name", PROFILES)
def test_surroundings_do_not_reach_a_plan(name, tmp_path):
    expected = compiled(name, "local", tmp_path).to_json().encode()
    elsewhere = tmp_path / "a place"
    elsewhere.mkdir()
    for number, surroundings in enumerate(SURROUNDINGS):
        cwd = (ROOT, Path("/"), elsewhere, HERE)[number]
        file = str(PROFILES[name]) if number % 2 else os.path.relpath(PROFILES[name], cwd)
        found = km(
            ["compile", file, "--substrate", "local"],
            cwd=cwd,
            KM_HOME=str(tmp_path / str(number)),
            **surroundings,
        )

        assert expected == found, surroundings


STANDIN = """
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (Exception,), {})
"""


def interpreter(wanted):
    """A Python of a minor version: on the path, beside this one, or known to uv; empty without one."""
    # Version managers keep interpreters side by side: look next to the one that runs this.
    beside = Path(sys.base_prefix).parent.glob(f"*{wanted}*/bin/python{wanted}")
    candidates = [shutil.which(f"python{wanted}"), *(str(path) for path in sorted(beside))]
    if uv := shutil.which("uv"):
        asked = subprocess.run(
            [uv, "python", "find", "--no-python-downloads", wanted],
            capture_output=True,
            text=True,
            check=False,
        )
        candidates.append(asked.stdout.strip())
    for candidate in candidates:
        if not candidate:
            continue
        ask = [candidate, "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        answer = subprocess.run(ask, capture_output=True, text=True, check=False)
        if answer.returncode == 0 and answer.stdout.strip() == wanted:
            return candidate
    return ""


@pytest.mark.parametrize("wanted", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("name", PROFILES)
def test_the_version_of_python_does_not_reach_a_plan(name, wanted, tmp_path):
    """Our sources and the pure parts of what they need, run by another interpreter."""
    python = interpreter(wanted)
    if not python:
        pytest.skip(f"no Python {wanted} on the path, beside this one or known to uv")
    expected = compiled(name, "docker", tmp_path).to_json().encode()
    sources = [str(path) for path in sorted((ROOT / "packages").glob("*/src"))]
    libraries = str(Path(pytest.__file__).parents[1])
    # Compiled for this Python, and imported by a decoder that compiling a profile never runs.
    standins = tmp_path / "standins"
    standins.mkdir()
    if wanted != "{}.{}".format(*sys.version_info[:2]):
        for library in ("brotli", "zstandard"):
            (standins / f"{library}.py").write_text(STANDIN)
    found = km(
        ["compile", str(PROFILES[name]), "--substrate", "docker"],
        cwd=tmp_path,
        python=python,
        KM_HOME=str(tmp_path / "home"),
        PYTHONPATH=os.pathsep.join([*sources, str(standins), libraries]),
        PYTHONDONTWRITEBYTECODE="1",
    )

    assert expected == found


def test_a_plan_holds_no_time_no_machine_and_no_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/very/private/home")
    text = "".join(compiled(name, "local", tmp_path).to_json() for name in PROFILES)

    assert str(tmp_path) not in text
    assert "/very/private" not in text
    assert str(ROOT) not in text
    assert socket.gethostname() not in text or len(socket.gethostname()) < 4
    assert time.strftime("%Y-%m-%d") not in text
    assert {"cpus": None, "explicit": [], "memory_bytes": None, "pids": None} == json.loads(
        compiled("quickstart", "local", tmp_path).to_json()
    )["limits"]


def test_what_the_operator_asks_for_is_in_the_plan_and_explicit(tmp_path):
    config = load_config({"KM_HOME": str(tmp_path)})
    asked = Overrides(substrate="local", memory="2G", pids=64)
    limits = plan_from_file(PROFILES["quickstart"], config, load_plugins(), asked).plan.limits

    assert (2 * 2**30, None, 64, ("memory", "pids")) == (
        limits.memory_bytes,
        limits.cpus,
        limits.pids,
        limits.explicit,
    )


def test_a_ceiling_given_on_the_command_line_is_claimed_like_a_written_one(tmp_path, monkeypatch):
    """Where nothing enforces a budget, ``--ai`` is refused and not dropped."""
    from km_core.compile import pipeline
    from km_core.compile.claims import ClaimSource, core_source
    from km_core.types import Answer, Claim

    refusal = Claim("spec.budget.ai", ("local",), Answer.REFUSED, "km-strict", "no meter")
    sources = (core_source(), ClaimSource("km-strict", (refusal,)))
    monkeypatch.setattr(pipeline, "claim_sources", lambda _plugins: sources)
    profile = tmp_path / "p.yaml"
    lines = PROFILES["quickstart"].read_text(encoding="utf-8")
    profile.write_text(re.sub(r"\n  budget:\n(?:    .*\n?)*", "\n", lines), encoding="utf-8")
    config = load_config({"KM_HOME": str(tmp_path)})

    assert plan_from_file(profile, config, load_plugins(), Overrides()).plan.budget.ai_limit_nusd is None
    with pytest.raises(ProfileError) as caught:
        plan_from_file(profile, config, load_plugins(), Overrides(ai="5"))
    assert ["spec.budget.ai.maxSpendUSD"] == [problem.path for problem in caught.value.problems]


def test_out_appears_whole_and_json_is_one_document(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KM_HOME", str(tmp_path / "home"))
    out = tmp_path / "deep" / "plan"
    arguments = ["compile", str(PROFILES["quickstart"]), "--out", str(out)]

    assert 0 == main(arguments)
    assert 0 == main([*arguments, "--json"])
    data = json.loads(capsys.readouterr().out.partition("\n")[2])
    plan = SandboxPlan.from_data(data["plan"])
    assert plan.to_json() == (out / "plan.json").read_text(encoding="utf-8")
    assert plan.digest() == data["digest"]
    assert ["plan.json"] == os.listdir(out)
    assert ["plan"] == os.listdir(out.parent)


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    out = tmp_path / "out"
    write_artifacts(out, {"plan.json": "old\n"})
    (out / "mine.txt").write_text("kept")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KmError, match="cannot be written"):
        write_artifacts(out, {"plan.json": "new\n"})
    with pytest.raises(KmError):
        write_artifacts(tmp_path / "other", {"plan.json": "new\n"})

    assert "old\n" == (out / "plan.json").read_text()
    assert {"mine.txt", "plan.json"} == set(os.listdir(out))
    assert ["out"] == os.listdir(tmp_path)


def test_out_that_is_a_file_or_cannot_be_made_is_one_error(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("x")
    with pytest.raises(KmError, match="cannot be written"):
        write_artifacts(tmp_path / "file" / "below", {"plan.json": ""})
    with pytest.raises(KmError, match="cannot be written"):
        write_artifacts(tmp_path / "file", {"plan.json": ""})
    assert "x" == (tmp_path / "file").read_text()


def test_the_packages_own_version_is_what_requirements_name():
    assert version("km-core") == km_core.__version__


def test_a_gate_whose_meters_cannot_be_had_is_no_enforcer(tmp_path, monkeypatch):
    """Its plan would leave out what the gate gives to clients, or a host it would count."""
    import types

    from km_core import hookimpl
    from km_core.plugins import PluginInfo, PluginRegistry, new_manager

    module = types.ModuleType("gate")

    def km_enforcers():
        return ("proxy",)

    def km_meters():
        raise ImportError("no decoder")

    module.km_enforcers, module.km_meters = hookimpl(km_enforcers), hookimpl(km_meters)
    manager = new_manager()
    manager.register(module, name="gate")
    registry = PluginRegistry(manager, (PluginInfo("gate", "km-gate", "1", "gate", "ok"),))

    with pytest.raises(ProfileError) as caught:
        plan_from_file(PROFILES["quickstart"], load_config({"KM_HOME": str(tmp_path)}), registry, Overrides())
    (problem,) = caught.value.problems
    assert problem.path in {"spec.network.enforcement", "spec.runtime.substrate"}
    assert "km-net-proxy" in problem.hint
