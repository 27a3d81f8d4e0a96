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


def km(home, *arguments, code=0):
    process = started(home, *arguments)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    return out.decode().splitlines()


def next_line(process):
    readable, _, _ = select.select([process.stdout], [], [], 30)
    assert readable, "nothing came"
    return json.loads(process.stdout.readline())


def text_line(process):
    """Not asked beforehand whether there is one: more than one may have come and wait in a buffer."""
    return process.stdout.readline().decode().rstrip("\n")


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


def test_a_record_that_is_no_decision_says_what_it_is_and_what_happened(home, chain):
    chain.append({"kind": "policy_changed", "cause": "allow", "entry": "a.test", "expires_at": 1.0})
    closed = {"layer": "http", "name": "a.test", "port": 443, "requests": 2, "bytes_up": 7, "bytes_down": 9}
    chain.append({"kind": "http_closed", **closed})

    changed, ended = km(home, "audit", "show", "host")

    assert changed.endswith("gate  policy_changed cause=allow entry=a.test until=1970-01-01T00:00:01Z")
    assert ended.endswith("gate  http_closed a.test:443 requests=2 bytes_up=7 bytes_down=9")


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


def test_an_hour_of_a_flood_is_shown_in_order_without_being_held_in_memory(home, chain):
    """Forty megabytes of two writers; the last records cost no more room than few."""
    long = "x y " * 1000
    with ChainWriter(home / "h" / "audit" / "host" / "kmd.jsonl", writer="kmd", sandbox_id="host") as kmd:
        for number in range(6000):
            chain.append({"kind": "gate_started", "error": long})
            if number % 2:
                kmd.append({"kind": "changed", "number": number, "long": long})
    used = subprocess.run(
        [sys.executable, "-c", _PEAK, *KM[2:], "audit", "tail", "host", "-n", "2", "--json"],
        env={**os.environ, "KM_HOME": str(home / "h"), "KM_RUNTIME_DIR": str(home / "r")},
        capture_output=True, check=True, timeout=120,
    )  # fmt: skip
    shown = [json.loads(line) for line in used.stdout.splitlines()]
    assert [record["writer"] for record in shown] == ["gate", "kmd"]
    assert int(used.stderr.split()[-1]) < 64 * 1024
    whole = json.loads("\n".join(km(home, "audit", "show", "host", "--json")))
    assert len(whole) == 9000
    assert [r["time"] for r in whole] == sorted(r["time"] for r in whole)


_PEAK = """
import sys
try:
    exec(sys.argv.pop(1))
finally:
    # VmHWM, not ru_maxrss: exec keeps the latter from the process that forked, a pytest of any size.
    status = open("/proc/self/status").read()
    print(status.split("VmHWM:")[1].split()[0], file=sys.stderr)
"""


def test_no_record_is_an_empty_document(home):
    assert json.loads("".join(km(home, "audit", "show", "host", "--json"))) == []


def test_what_is_no_record_is_shown_as_that_and_nothing_hangs(home, chain, tmp_path):
    chain.append({"kind": "gate_started", "pid": 1})
    directory = chain.path.parent
    os.mkfifo(directory / "pipe.jsonl")
    (directory / "link.jsonl").symlink_to("/etc/passwd")
    (directory / "directory.jsonl").mkdir()
    (directory / "odd.jsonl").write_bytes(
        b"\xff\xfe\n" + b"[" * 100_000 + b"\n" + b"x" * 900_000 + b'\n{"kind": "z\x1b[2J"}\n[1]\n'
    )
    kinds = sorted(
        record["kind"] for record in json.loads("\n".join(km(home, "audit", "show", "host", "--json")))
    )
    assert kinds == ["gate_started", *["unreadable_record"] * 5]
    assert "\x1b" not in "".join(km(home, "audit", "show", "host"))
    report = json.loads("\n".join(km(home, "audit", "verify", "host", "--offline", "--json", code=1)))
    assert {f["file"]: f["kind"] for f in report["findings"]} == dict.fromkeys(
        ("pipe.jsonl", "link.jsonl", "directory.jsonl", "odd.jsonl"), "unreadable"
    )


HOSTILE = [
    "a\nb", "a\rb", "\x1b]0;title\x07", "\x1b[2J\x1b[H", "\x9b31m", "\u202e\u2066", "\u2028\u2029", "\ud800", "\x00\x7f\x08", "\U000e0041",
]  # fmt: skip


@pytest.mark.parametrize("odd", HOSTILE)
def test_nothing_that_a_record_says_is_a_command_to_the_terminal_or_another_line(home, chain, odd):
    for field in ("name", "address", "rule", "reason", "detail", "layer", "kind"):
        chain.append({"kind": "connect", "verdict": "deny", field: f"<{odd}>", "port": 1})
    for arguments in (("logs", "host", "--denied"), ("audit", "show", "host"), ("audit", "tail", "host")):
        text = km(home, *arguments)
        assert len(text) == 7
        assert all(line.isprintable() for line in text)
        for line in km(home, *arguments[:-1], *arguments[-1:], "--json"):
            assert line.isascii()


@pytest.fixture
def stopped(home):
    """A sandbox's logs without the sandbox: `host` has none, so its place is borrowed."""
    logs = home / "h" / "sandboxes" / "host" / "logs"
    logs.mkdir(parents=True)
    return logs


def test_a_log_that_was_cut_is_shown_from_its_older_half_on_and_followed_over_the_cut(home, stopped):
    log = stopped / "gate.log"
    (stopped / "gate.log.1").write_text("line 98\nline 99\n")
    with log.open("a") as out:
        out.write("line 100\nhalf")
        out.flush()
        assert km(home, "logs", "host", "--stream", "gate") == ["line 98", "line 99", "line 100", "half"]
        process = started(home, "logs", "host", "--stream", "gate", "--follow")
        try:
            assert [text_line(process) for _ in range(3)] == ["line 98", "line 99", "line 100"]
            out.write(" and half\n")
            out.flush()
            assert text_line(process) == "half and half"
            os.truncate(log, 0)
            out.write("after\n")
            out.flush()
            assert text_line(process) == "after"
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()
            process.communicate()


def test_a_processs_log_is_one_object_a_line_too_and_has_no_verdicts(home, stopped):
    (stopped / "gate.log").write_text('{"event": "x"}\nplain \x1b[2J\n[1]\n')
    shown = [json.loads(line) for line in km(home, "logs", "host", "--stream", "gate", "--json")]
    assert shown == [
        {"event": "x"},
        {"stream": "gate", "line": "plain \x1b[2J"},
        {"stream": "gate", "line": "[1]"},
    ]
    km(home, "logs", "host", "--stream", "gate", "--denied", code=2)
