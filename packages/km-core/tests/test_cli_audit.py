"""``km audit tail`` and ``km logs`` on chains that are written meanwhile."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys

import pytest

from km_core.audit import ChainWriter, DecisionLog
from km_core.types import Verdict

KM = [sys.executable, "-c", "import sys; sys.argv[0] = 'km'; from km_core.cli.main import main; main()"]
DENIED = Verdict(False, "builtin:default-deny", "dns", "no rule of the profile allows this name")
ALLOWED = Verdict(True, "allowedHosts[0] a.test", "dns", "allowed by the profile")


@pytest.fixture
def home(tmp_path):
    directory = tmp_path / "h" / "audit" / "host"
    directory.mkdir(parents=True, mode=0o700)
    return tmp_path


@pytest.fixture
def chain(home):
    path = home / "h" / "audit" / "host" / "gate.jsonl"
    with ChainWriter(path, writer="gate", sandbox_id="host") as made:
        yield made


def started(home, *arguments):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("KM_", "_KM_"))}
    return subprocess.Popen(
        [*KM, *arguments],
        env={**kept, "KM_HOME": str(home / "h"), "KM_RUNTIME_DIR": str(home / "r")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def km(home, *arguments):
    process = started(home, *arguments)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return out.decode().splitlines()


def next_line(process):
    readable, _, _ = select.select([process.stdout], [], [], 30)
    assert readable, "nothing came"
    return json.loads(process.stdout.readline())


def test_the_tail_is_the_newest_records(home, chain):
    for number in range(30):
        chain.append({"kind": "gate_started", "pid": number + 1})

    assert [json.loads(line)["pid"] for line in km(home, "audit", "tail", "host", "-n", "3", "--json")] == [
        28,
        29,
        30,
    ]
    assert len(km(home, "audit", "tail", "host")) == 20
    assert km(home, "audit", "tail", "host", "-n", "0") == []


def test_following_goes_on_as_records_come_and_ends_with_0(home, chain):
    chain.append({"kind": "gate_started", "pid": 1})
    chain.append({"kind": "gate_started", "pid": 2})
    process = started(home, "audit", "tail", "host", "-n", "1", "--follow", "--json")
    try:
        assert next_line(process)["pid"] == 2
        for number in (3, 4):
            chain.append({"kind": "gate_started", "pid": number})
            assert next_line(process)["pid"] == number
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.communicate()


def test_denied_shows_what_was_refused_and_nothing_else(home, chain):
    log = DecisionLog(chain)
    log.record(ALLOWED, kind="dns_query", name="a.test")
    log.record(DENIED, kind="dns_query", name="b.test\x1b[2J", detail="A")
    chain.append({"kind": "gate_stopped"})

    shown = [json.loads(line) for line in km(home, "logs", "host", "--denied", "--json")]
    assert [(record["verdict"], record["rule"]) for record in shown] == [("deny", "builtin:default-deny")]
    text = km(home, "logs", "host", "--denied")
    assert len(text) == 1
    assert "[builtin:default-deny]" in text[0]
    assert "\x1b" not in text[0]


def test_a_line_that_is_still_being_written_is_not_shown(home, chain):
    chain.append({"kind": "gate_started", "pid": 1})
    with chain.path.open("ab") as other:
        other.write(b'{"kind": "half')
    assert len(km(home, "audit", "tail", "host", "--json")) == 1
