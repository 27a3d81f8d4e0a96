"""``km plugins``: as an operator runs it, on real distributions with planted defects."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from km_core.cli.main import main
from km_core.inspection.inspect import core_range
from km_core.testing.pm import manager_with

KM = (sys.executable, "-m", "km_core.cli.main")
GOOD = """
from km_core import hookimpl
from km_core.types import Sidecar
KM_PLUGIN_API = 1

@hookimpl
def km_sidecars():
    return [Sidecar("planted", "planted_plugin:main", "does nothing")]
"""
CLAIM = """
from km_core import hookimpl
from km_core.types import Answer, Claim
KM_PLUGIN_API = 1

@hookimpl
def km_field_claims():
    return [Claim("spec.budget.ai", ("x",), Answer.ENFORCED, "me"), Claim({path!r}, ("x",), Answer.INERT, "me")]
"""


class Planted:
    """A site directory with one plugin, and ``km`` with that directory on its path."""

    def __init__(self, root):
        self.site = root / "site"
        self.site.mkdir()
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("KM_")}
        self.env |= {
            "KM_HOME": str(root / "home"),
            "KM_RUNTIME_DIR": str(root / "run"),
            "PYTHONPATH": str(self.site),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def plant(
        self, source, *, requires="km-core>=0.1,<0.2", licence="MIT", typed=True, name="planted", dist=""
    ):
        package = self.site / f"{name}_plugin"
        package.mkdir(exist_ok=True)
        (package / "__init__.py").write_text(textwrap.dedent(source))
        if typed:
            (package / "py.typed").touch()
        dist = dist or f"km-{name}"
        info = self.site / f"{dist.replace('-', '_')}-4.5.dist-info"
        info.mkdir(exist_ok=True)
        lines = [
            "Metadata-Version: 2.4",
            f"Name: {dist}",
            "Version: 4.5",
            "Summary: A planted plugin.",
            *([f"License-Expression: {licence}"] if licence else []),
            *([f"Requires-Dist: {requires}"] if requires else []),
            "Project-URL: Documentation, https://docs.example/planted",
        ]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        (info / "entry_points.txt").write_text(
            f"[km.plugins]\n{name} = {name}_plugin\n\n[km.commands]\n{name}-do = {name}_plugin:do\n"
        )
        return self

    def km(self, *arguments, **env):
        return subprocess.run(
            [*KM, *arguments],
            env=self.env | env,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    def check(self, what="planted", **env):
        """Return exit code and what is wrong, by check."""
        done = self.km("plugins", "check", what, "--json", **env)
        data = json.loads(done.stdout)
        assert data["ok"] is (done.returncode == 0)
        assert {"plugin", "check", "status", "message", "hint"} == set(data["findings"][0])
        wrong = {f["check"]: f["message"] for f in data["findings"] if f["status"] in {"error", "warning"}}
        return done.returncode, wrong


@pytest.fixture
def planted(tmp_path):
    return Planted(tmp_path)


def test_a_good_plugin_passes_and_is_shown_with_all_that_is_known_of_it(planted):
    planted.plant(GOOD)

    assert (0, {}) == planted.check()
    done = planted.km("plugins", "info", "planted", "--json")
    data = json.loads(done.stdout)
    assert ("km-planted", "4.5", 1, "ok", "km-planted==4.5", "https://docs.example/planted", 0) == tuple(
        data[key]
        for key in ("distribution", "version", "api", "status", "requirement", "documentation", "claims")
    )
    assert {"km_sidecars": ["planted"]} == data["hooks"]
    assert ({"planted": "planted_plugin:main"}, ["planted-do"]) == (data["sidecars"], data["commands"])
    text = planted.km("plugins", "info", "planted").stdout
    assert "km-planted 4.5" in text
    listed = json.loads(planted.km("plugins", "list", "--json").stdout)
    assert "ok" == next(each["status"] for each in listed if each["name"] == "planted")


@pytest.mark.parametrize(
    ("source", "check", "message"),
    [
        ("raise SystemExit(3)", "import", "fails: SystemExit: 3"),
        ("import os\nos._exit(0)", "import", "ends the process that imports it, with exit code 0"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "import", "signal 11"),
        ("import time\ntime.sleep(60)", "import", "hangs: no answer within 1 s"),
        ("import os\nos.write(1, b'x')" + GOOD, "silent-import", "prints to standard output"),
        ("print('x')" + GOOD, "silent-import", "prints to standard output"),
        ("import nacl" + GOOD, "light-import", "imports nacl at module level"),
        ("import time\nwhile time.process_time() < 1.2: pass" + GOOD, "import-time", "of processor time"),
        (GOOD.replace("= 1\n", "= 9\n", 1), "contract", "states plugin API 9"),
        (GOOD.replace("@hookimpl", "").replace("km_sidecars", "sidecars"), "contract", "implements no hook"),
        (GOOD.replace("km_sidecars()", "km_sidecars(plan)"), "contract", "asks km_sidecars for the argument"),
        (GOOD.replace('"planted",', '"Not A Word",'), "answer", "whose name is not a word"),
        (GOOD.replace("[Sidecar", "5 or [Sidecar"), "answer", "where an iterable is expected"),
        (
            GOOD.replace("    return [", "    import os; os.write(1, b'x')\n    return ["),
            "silent-hooks",
            "prints",
        ),
        (GOOD.replace('"does nothing"', "str(__import__('random').random())"), "pure", "something else"),
        (GOOD.replace("planted_plugin:main", "no_such_module:main"), "target", "which is not there"),
        (CLAIM.format(path="spec.budget.aii"), "claims", "claims spec.budget.aii, which is no field"),
    ],
)
def test_a_planted_defect_is_found_and_named(planted, source, check, message):
    planted.plant(source)

    code, wrong = planted.check(KM_PLUGIN_TIMEOUT_S="1")

    assert 1 == code
    assert message in wrong.get(check, ""), wrong


def test_what_raises_is_placed_and_no_hint_leads_back_to_the_check(planted):
    planted.plant(GOOD.replace("    return [", "    import json; json.loads('{')\n    return ["))
    done = planted.km("plugins", "check", "planted")
    assert "error: planted (km-planted): answer: km_sidecars failed: JSONDecodeError" in done.stdout
    assert "  hint: raised in " in done.stdout
    assert "planted_plugin/__init__.py, line 8\n" in done.stdout

    planted.plant(GOOD.replace("[Sidecar", "5 or [Sidecar"), dist="km-planted")
    done = planted.km("plugins", "check", "planted")
    assert "where an iterable is expected" in done.stdout
    assert "km plugins check" not in done.stdout


def test_defects_of_the_metadata_are_found(planted):
    planted.plant(GOOD, requires="", licence="", typed=False)

    code, wrong = planted.check()

    assert 1 == code
    assert {"requires-core", "licence", "typed"} == set(wrong)


def test_a_name_and_an_offer_that_another_distribution_has_are_found(planted):
    planted.plant(GOOD)
    planted.plant(GOOD, name="second")

    code, wrong = planted.check("second")
    assert (1, True) == (code, "already offered by plugin planted (km-planted 4.5)" in wrong["unique"])
    # Of the first of the two it names the other, not itself alone.
    assert "plugin second (km-second 4.5): " in planted.check("planted")[1]["unique"]
    planted.plant(GOOD, dist="km-rival")
    code, wrong = planted.check("planted")
    assert (1, True) == (code, "registers the name planted too" in wrong["entry-point"])


def test_a_source_tree_is_checked_without_installing_it(planted, tmp_path):
    tree = tmp_path / "km-fresh"
    (tree / "src" / "fresh").mkdir(parents=True)
    (tree / "src" / "fresh" / "__init__.py").write_text(GOOD.replace("planted_plugin:main", "fresh:main"))
    (tree / "src" / "fresh" / "py.typed").touch()
    project = '[project]\nname = "km-fresh"\nlicense = "MIT"\ndependencies = ["km-core>=0.1,<0.2"]\n'
    (tree / "pyproject.toml").write_text(project + '[project.entry-points."km.plugins"]\nfresh = "fresh"\n')

    assert (0, {}) == planted.check(str(tree))
    done = planted.km("plugins", "check", str(tree))
    assert "1 plugin, all well" in done.stdout
    (tree / "pyproject.toml").write_text(project)
    done = planted.km("plugins", "check", str(tree))
    assert (2, True) == (done.returncode, "no entry point in the group km.plugins" in done.stderr)


def test_what_is_neither_a_plugin_nor_a_directory_is_not_found(planted):
    planted.plant(GOOD)

    for command in ("check", "info"):
        done = planted.km("plugins", command, "plantd")
        assert (5, True) == (done.returncode, "did you mean planted?" in done.stderr)


def test_a_plugin_that_hangs_holds_km_up_no_longer_than_the_limit(planted):
    planted.plant(GOOD.replace("    return [", "    while True: pass\n    return ["))

    began = time.monotonic()
    done = planted.km("plugins", "info", "planted", KM_PLUGIN_TIMEOUT_S="0.5")

    assert time.monotonic() - began < 15
    assert "km_sidecars hangs: no answer within 0.5 s" in done.stderr
    assert "failed: km_sidecars hangs" in done.stdout


def test_commands_that_only_read_go_on_without_a_plugin_that_fails_and_say_so(planted):
    planted.plant("print('{}')\nraise RuntimeError('sk-ant-abcdefghijklmnop')")
    profile = Path(__file__).with_name("data_quickstart.yaml")

    done = planted.km("validate", str(profile), "--json")

    assert 0 == done.returncode
    assert json.loads(done.stdout)["valid"]
    assert "warning: plugin planted (km-planted 4.5): cannot be imported: RuntimeError" in done.stderr
    assert "sk-ant" not in done.stderr
    quiet = planted.km("validate", str(profile), KM_BLOCK_PLUGINS="planted")
    assert (0, False) == (quiet.returncode, "planted" in quiet.stderr)


def test_a_place_that_a_broken_plugin_would_provide_is_refused_with_what_broke(planted):
    planted.plant("KM_PLUGIN_API = 2", name="elsewhere", dist="km-substrate-elsewhere")
    profile = Path(__file__).with_name("data_quickstart.yaml")

    done = planted.km("validate", str(profile), "--substrate", "elsewhere")

    assert 1 == done.returncode
    assert "km-substrate-elsewhere 4.5 is installed but failed to load: states plugin API 2" in done.stderr
    assert "install km-substrate-elsewhere" not in done.stderr


def test_the_trace_names_each_call(planted):
    planted.plant(GOOD)

    done = planted.km("plugins", "info", "planted", "--json", KM_TRACE_PLUGINS="1")

    json.loads(done.stdout)
    assert re.search(r"trace: plugin planted: import: [0-9.]+ ms: ok\n", done.stderr)
    assert re.search(r"trace: plugin planted: km_sidecars: [0-9.]+ ms: ok, 1 item\n", done.stderr)


@pytest.mark.parametrize(
    ("requires", "problem"),
    [
        ("km-core>=0.1,<0.2", ""),
        ("km_core (>=0.1,<0.2)", ""),
        ("KM.Core[testing]~=0.1.0; python_version > '3'", ""),
        ("km-core==0.1.*", ""),
        ("km-core>=0.1.2,<0.2", "does not accept this km-core"),
        ("km-core>=0.2,<0.3", "does not accept this km-core"),
        ("km-core~=0.2.0", "does not accept this km-core"),
        ("km-core>=0.1", "any future"),
        ("km-core<0.2", "any old"),
        ("km-core", "any old"),
        ("km-core-extras>=0.1,<0.2", "does not depend on km-core"),
        ("attrs", "does not depend on km-core"),
    ],
)
def test_the_range_of_km_core_is_read_as_installers_read_it(requires, problem):
    found, hint = core_range([requires], "0.1.0")

    assert problem in found
    assert bool(found) == bool(problem)
    assert hint == ('write "km-core>=0.1,<0.2"' if problem else "")


def test_with_nothing_installed_there_is_nothing_to_check_and_no_claim_that_all_is_well(
    monkeypatch, capsys, tmp_path
):
    monkeypatch.setenv("KM_HOME", str(tmp_path))
    monkeypatch.setattr("km_core.inspection.find_subjects", lambda what: ())
    monkeypatch.setattr("km_core.plugins.load_plugins", manager_with)

    assert 0 == main(["plugins", "check"])
    assert ("", "No plugins are installed.\n") == capsys.readouterr()
    assert 0 == main(["doctor"])
    captured = capsys.readouterr()
    assert ("", True) == (captured.out, captured.err.startswith("Nothing to check: no installed plugin"))
