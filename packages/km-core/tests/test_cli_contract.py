"""What scripts rely on: exit codes, one JSON document, no traceback, cheap help (DESIGN section 9)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import pytest

from km_core.cli import main as cli_main
from km_core.cli.main import cli, main
from km_core.cli.output import printable

KM = (sys.executable, "-m", "km_core.cli.main")
HEAVY = {
    "nacl",
    "yaml",
    "pluggy",
    "cattrs",
    "structlog",
    "boto3",
    "botocore",
    "bcc",
    "proxy",
    "dnslib",
    "sqlite3",
}


@pytest.fixture
def home():
    """A short KM_HOME of its own."""
    path = Path(tempfile.mkdtemp(prefix="kmc-"))
    yield path
    subprocess.run([*KM, "daemon", "stop"], env=environment(path), capture_output=True, check=False)
    shutil.rmtree(path, ignore_errors=True)


def environment(home, **more):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KM_", "_KM_"))}
    return {**kept, "KM_HOME": str(home / "h"), "KM_RUNTIME_DIR": str(home / "r"), **more}


def km(home, *arguments, text="", **env):
    return subprocess.run(
        [*KM, *arguments],
        env=environment(home, **env),
        capture_output=True,
        input=text,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "env"),
    [
        (["--help"], {}),
        (["--version"], {}),
        ([], {"_KM_COMPLETE": "bash_complete", "COMP_WORDS": "km ", "COMP_CWORD": "1"}),
        ([], {"_KM_COMPLETE": "bash_complete", "COMP_WORDS": "km cre", "COMP_CWORD": "1"}),
    ],
)
def test_help_version_and_completion_import_neither_plugins_nor_heavy_libraries(home, arguments, env):
    program = "import sys; sys.argv[0] = 'km'; from km_core.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program, *arguments],
        env=environment(home, **env),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}
    tops = {name.partition(".")[0] for name in imported}

    assert done.returncode == 0, done.stderr[-500:]
    assert "create" in done.stdout or arguments == ["--version"]
    assert HEAVY & tops == set()
    assert {name for name in tops if name.startswith("km_")} == {"km_core"}
    assert not {"km_core.plugins", "km_core.hookspecs", "km_core.profile"} & imported


def commands(group, path=()):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def test_every_command_says_what_it_does_and_shows_an_example():
    lacking = [" ".join(path) for path, command in commands(cli) if "km " not in (command.epilog or "")]
    silent = [" ".join(path) for path, command in commands(cli) if not command.help]

    assert ([], []) == (lacking, silent)


def test_the_list_of_an_empty_home_is_an_empty_document(home):
    done = km(home, "list", "--json")

    assert (0, []) == (done.returncode, json.loads(done.stdout))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["frobnicate", "--json"], 2),
        (["status", "--bogus", "--json"], 2),
        (["validate", "--json"], 2),
        (["status", "nobody", "--json"], 5),
        (["audit", "verify", "nobody", "--json"], 5),
        (["audit", "verify", "nobody", "--offline", "--json"], 5),
        (["budget", "add", "nobody", "--ai", "-1", "--json"], 2),
        (["budget", "add", "nobody", "--ai", "many", "--json"], 2),
        (["budget", "add", "nobody", "--json"], 2),
        (["create", "/nonexistent.yaml", "--json"], 1),
        (["create", "/", "--json"], 2),
        (["create", "/dev/null", "--alias", "Not An Alias", "--json"], 2),
        (["explain", "egress", "/nonexistent.yaml", "a.example", "--json"], 1),
        (["plugins", "info", "nobody", "--json"], 5),
    ],
)
def test_a_failure_with_json_is_one_document_on_stdout_and_a_text_on_stderr(home, arguments, code):
    done = km(home, *arguments)

    assert code == done.returncode, done
    assert {"code", "what", "where", "why", "hint"} == set(json.loads(done.stdout)["error"])
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["create", "-"], "kind: x"),
        (["secrets", "set", "UPPER"], "v"),
        (["secrets", "set", "a"], ""),
        (["secrets", "set", "a"], "two\nlines"),
        (["secrets", "set", "a", "--file", "/bin/true"], ""),
        (["secrets", "delete", "a"], ""),
        (["destroy"], ""),
        (["destroy", "x", "--all"], ""),
        (["exec", "nobody", "--", "true"], ""),
        (["logs", "nobody"], ""),
        (["validate", "/proc/self/mem"], ""),
        (["compile", "/"], ""),
    ],
)
def test_bad_input_ends_with_a_message(home, arguments, text):
    done = km(home, *arguments, text=text)

    assert done.returncode in {1, 2, 3, 5}, done
    assert "Traceback" not in done.stderr
    assert "Error" in done.stderr or "error" in done.stderr


def test_a_home_that_cannot_be_used_is_told_not_traced(home):
    (home / "file").write_text("")
    for place in (home / "file", Path("/proc/nowhere"), home / "file" / "below"):
        done = km(home, "list", "--json", KM_HOME=str(place))
        assert done.returncode in {1, 2}, done
        assert json.loads(done.stdout)["error"]["what"]
        assert "Traceback" not in done.stderr


def test_a_broken_configuration_is_a_usage_error_everywhere(home):
    (home / "h").mkdir(mode=0o700)
    (home / "h" / "config.yaml").write_text("max_sandboxes: [\n")
    for arguments in (
        ["list", "--json"],
        ["daemon", "status", "--json"],
        ["validate", "/dev/null", "--json"],
    ):
        done = km(home, *arguments)
        assert done.returncode == 2, done
        assert json.loads(done.stdout)["error"]["code"] == "config"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to somebody else")
def test_a_runtime_directory_of_somebody_else_is_not_used(home):
    (home / "r").mkdir(mode=0o777)
    os.chown(home / "r", 65534, 65534)
    done = km(home, "list")

    assert done.returncode == 1
    assert "belongs to uid 65534" in done.stderr
    for command in ("status", "stop"):
        told = km(home, "daemon", command)
        assert "belongs to" in told.stderr, told


def test_a_reader_that_leaves_early_gets_no_traceback(home):
    with subprocess.Popen(
        [*KM, "completion", "bash"],
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.close()
        _, err = process.communicate(timeout=30)

    assert "Traceback" not in err
    assert "Exception ignored" not in err


def test_what_nobody_expected_is_told_with_its_place_and_without_its_secrets(monkeypatch, capsys):
    @click.command()
    def broken():
        raise ZeroDivisionError("Authorization: Bearer sk-ant-0123456789abcdef")

    monkeypatch.setattr(cli_main, "_load", lambda _target: broken)
    assert main(["list", "--json"]) == 2  # it takes no such option
    capsys.readouterr()
    assert main(["list"]) == 1
    out, err = capsys.readouterr()

    assert out == ""
    assert "ZeroDivisionError" in err
    assert "test_cli_contract.py" in err
    assert "0123456789" not in err


def test_json_of_a_command_that_runs_inside_is_not_ours(home):
    done = km(home, "exec", "nobody", "--", "tool", "--json")

    assert (5, "") == (done.returncode, done.stdout)


def test_what_a_sandbox_wrote_cannot_command_the_terminal():
    assert "a\\x1b[2Jb" == printable("a\x1b[2Jb")
    assert "\\u202eevil" == printable("\u202eevil")
    assert "ö\tplain" == printable("ö\tplain")
