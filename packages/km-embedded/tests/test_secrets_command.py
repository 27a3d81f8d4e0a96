"""``km secrets`` as people type it, with a real kmd behind it."""

from __future__ import annotations

import json
import subprocess
import sys

VALUE = "sk-very-secret-0123456789"


def km(daemon, *args, given=""):
    """Run the command; returns code, stdout and stderr, none of which may hold the value."""
    env = {
        "KM_HOME": str(daemon.config.home),
        "KM_RUNTIME_DIR": str(daemon.config.runtime_dir),
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": ":".join(path for path in sys.path if path),
    }
    done = subprocess.run(
        [sys.executable, "-m", "km_core.cli.main", "secrets", *args],
        input=given, capture_output=True, text=True, env=env, check=False, timeout=60,
    )  # fmt: skip
    assert VALUE not in done.stdout + done.stderr
    return done.returncode, done.stdout, done.stderr


def test_a_secret_is_set_shown_rotated_and_deleted_without_its_value(daemon):
    daemon.connect()
    assert km(daemon, "set", "my-key", given=VALUE)[0] == 0
    code, first, _ = km(daemon, "get", "my-key", "--fingerprint")
    assert (code, len(first.strip())) == (0, 8)
    code, out, _ = km(daemon, "rotate", "my-key", "--json", given=f"{VALUE}-2")
    changed = json.loads(out)
    assert (code, changed["before"]) == (0, first.strip())
    assert changed["after"] != changed["before"]
    assert km(daemon, "rotate", "my-key", given=f"{VALUE}-2")[0] == 4
    assert km(daemon, "rotate", "other-key", given=VALUE)[0] == 5
    assert km(daemon, "rotate", "my-key", "--reread")[0] == 2
    assert km(daemon, "rotate", "My Key", given=VALUE)[0] == 2
    (listed,) = json.loads(km(daemon, "list", "--json")[1])
    assert (listed["name"], listed["fingerprint"], listed["used"]) == ("my-key", changed["after"], [])
    assert km(daemon, "delete", "my-key", "--yes")[0] == 0
    assert km(daemon, "get", "my-key", "--json")[0] == 5


def test_a_value_given_as_an_argument_is_refused_and_not_repeated(daemon):
    for args in (
        ("set", "my-key", VALUE),
        ("rotate", "my-key", VALUE, "x"),
        ("set", "my-key", f"--value={VALUE}"),
    ):
        code, _, err = km(daemon, *args, given=VALUE)
        assert code == 2
        assert "standard input" in err or "No such option" in err


def test_a_secret_of_a_command_is_listed_with_its_place(daemon):
    program = [sys.executable, "-c", "import base64; print('from-a-manager')"]
    text = json.dumps({"secrets": {"kept-key": {"command": program}}})
    daemon.connect()
    (daemon.config.home / "config.yaml").write_text(text)
    code, out, _ = km(daemon, "get", "kept-key", "--json")
    shown = json.loads(out)
    assert (code, shown["source"], len(shown["fingerprint"])) == (0, "command", 8)
    assert km(daemon, "set", "kept-key", given=VALUE)[0] == 4
    assert km(daemon, "rotate", "kept-key", "--reread")[0] == 0
    assert "by a command" in km(daemon, "list")[1]
