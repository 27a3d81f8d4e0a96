"""Commands: exit codes, streams, terminals, signals, and what must not cross."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from km_core.errors import ControlUnavailableError, GuardError
from km_host.exec_client import run_command
from km_host.inside import frames

pytestmark = pytest.mark.namespaces


def wait_for(condition, timeout=10.0):
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return value


@pytest.mark.parametrize("code", [0, 1, 2, 7, 125, 126, 127, 128, 255])
def test_exit_codes_pass_through(sandbox, code):
    assert sandbox.run("/bin/sh", "-c", f"exit {code}") == (code, "", "")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_command_killed_by_a_signal_gives_128_and_its_number(sandbox, number):
    assert sandbox.run("/bin/sh", "-c", f"kill -{int(number)} $$")[0] == 128 + number


def test_streams_stay_apart(sandbox):
    assert sandbox.run("/bin/sh", "-c", "echo out; echo err >&2") == (0, "out\n", "err\n")


def test_input_arrives_whole_and_ends(sandbox):
    data = os.urandom(1024).hex().encode() * 2000
    code, out, _ = sandbox.run("/usr/bin/sha256sum", stdin=data)
    import hashlib

    assert (code, out.split()[0]) == (0, hashlib.sha256(data).hexdigest())


def test_output_larger_than_any_buffer_arrives_whole(sandbox):
    code, out, _ = sandbox.run("/bin/sh", "-c", "head -c 20000000 /dev/zero | tr '\\0' x")
    assert (code, len(out)) == (0, 20_000_000)


def test_output_goes_both_ways_at_once(sandbox):
    data = b"x" * 3_000_000
    code, out, _ = sandbox.run("/bin/cat", stdin=data)
    assert (code, len(out)) == (0, len(data))


def test_a_program_that_is_not_there_is_127_and_named(sandbox):
    code, _, err = sandbox.run("/no/such/program")
    assert code == 127
    assert "/no/such/program: No such file" in err


def test_a_program_that_may_not_run_is_126(sandbox):
    code, _, err = sandbox.run("/etc/hostname")
    assert (code, "Permission denied" in err) == (126, True)


def test_a_directory_that_is_not_there_is_named(sandbox):
    code, _, err = sandbox.run("/bin/true", cwd="/no/such/place")
    assert code == 126
    assert "/no/such/place" in err


def test_arguments_and_variables_arrive_as_they_are(sandbox):
    words = ["a b", "", "ü€", "$HOME", "`id`", "x\ny", "--", "-rf"]
    code = "import sys, os, json; print(json.dumps([sys.argv[1:], os.environ['V']]))"
    _, out, _ = sandbox.run("/usr/bin/python3", "-c", code, *words, env={"V": "1=2 \"'"})
    assert json.loads(out) == [words, "1=2 \"'"]


def test_programs_are_found_on_the_sandboxs_path(sandbox):
    assert sandbox.run("true")[0] == 0


def test_working_directory_is_used(sandbox):
    assert sandbox.run("/bin/pwd", cwd="/workspace")[1] == "/workspace\n"


def test_dev_stdout_can_be_opened(sandbox):
    assert (
        sandbox.sh("echo one > /dev/stdout; echo two | tee /dev/stderr > /dev/null; cat < /dev/stdin")
        == "one\n"
    )


def test_commands_are_their_own_session_leaders(sandbox):
    assert (
        sandbox.python("import os; print(os.getsid(0) == os.getpid() or os.getsid(0) == os.getppid())")
        == "True"
    )


def test_default_signals_are_restored(sandbox):
    out = sandbox.sh("grep -E 'SigBlk|SigIgn' /proc/self/status")
    assert out.split()[1::2] == ["0" * 16, "0" * 16]


def test_orphans_are_reaped(sandbox):
    sandbox.sh("for i in 1 2 3 4 5; do (sleep 0.05 &) ; done")
    time.sleep(0.4)
    assert "Z" not in sandbox.sh("ps -eo stat=")


def test_a_background_child_does_not_hold_the_command(sandbox):
    begin = time.monotonic()
    assert sandbox.run("/bin/sh", "-c", "sleep 20 & echo started")[1] == "started\n"
    assert time.monotonic() - begin < 5
    sandbox.run("/usr/bin/pkill", "sleep")


def test_many_commands_at_once_do_not_mix(sandbox):
    import threading

    answers = {}

    def one(number):
        answers[number] = sandbox.run("/bin/sh", "-c", f"echo {number}; exit {number}")

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: (number, f"{number}\n", "") for number in range(8)}


def test_root_is_refused(sandbox):
    with pytest.raises(GuardError, match="no root user"):
        sandbox.substrate.exec(sandbox.box, ["id"], env={}, cwd="/", root=True, tty=False)


def test_a_sandbox_that_does_not_run_is_said_so(tmp_path):
    with pytest.raises(ControlUnavailableError, match="is not running"):
        run_command(tmp_path / "exec.sock", ["true"], env={}, cwd="/", terminal=False)


# Signals and hang-ups.


def start_client(sandbox, *argv, tty=False, **streams):
    code = (
        "import json, sys; from pathlib import Path; from km_host.exec_client import run_command\n"
        "a = json.loads(sys.argv[1]); sys.exit(run_command(Path(a[0]), a[1], env={}, cwd='/', terminal=a[2]))"
    )
    arguments = json.dumps([str(sandbox.box.runtime_dir / "exec.sock"), list(argv), tty])
    return subprocess.Popen([sys.executable, "-c", code, arguments], **streams)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_passed_on(sandbox, number):
    script = f"trap 'echo got; exit 42' {int(number)}; echo ready; while :; do sleep 0.05; done"
    with start_client(
        sandbox, "/bin/sh", "-c", script, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as client:
        assert client.stdout.readline() == b"ready\n"
        client.send_signal(number)
        assert client.stdout.readline() == b"got\n"
        assert client.wait(10) == 42


def test_a_client_that_is_killed_takes_its_command_along(sandbox):
    with start_client(
        sandbox,
        "/bin/sh",
        "-c",
        "echo ready; exec sleep 3333",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as client:
        assert client.stdout.readline() == b"ready\n"
        client.kill()
    wait_for(lambda: sandbox.run("/usr/bin/pgrep", "-f", "sleep 3333")[0] == 1)


def test_a_reader_that_goes_away_ends_the_writer(sandbox):
    with start_client(
        sandbox, "/usr/bin/yes", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as client:
        client.stdout.read(10)
        client.stdout.close()
        assert client.wait(10) == 128 + signal.SIGPIPE


# Terminals.


class Terminal:
    """An operator's terminal with a client on it."""

    def __init__(self, sandbox, *argv, rows=40, columns=100):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.client = start_client(
            sandbox, *argv, tty=True, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        self.text = ""

    def type(self, text):
        os.write(self.master, text.encode())

    def expect(self, text, timeout=10):
        deadline = time.monotonic() + timeout
        while text not in self.text:
            ready, _, _ = select.select([self.master], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"{text!r} did not come: {self.text!r}"
            self.text += os.read(self.master, 65536).decode(errors="replace")
        self.text = self.text.partition(text)[2]

    def resize(self, rows, columns):
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.client.send_signal(signal.SIGWINCH)

    def wait(self):
        deadline = time.monotonic() + 10
        while self.client.poll() is None:
            assert time.monotonic() < deadline
            ready, _, _ = select.select([self.master], [], [], 0.05)
            if ready:
                os.read(self.master, 65536)
        return self.client.returncode

    def close(self):
        if self.client.poll() is None:
            self.client.kill()
            self.client.wait()
        for descriptor in (self.master, self.slave):
            os.close(descriptor)


@pytest.fixture
def terminal(sandbox):
    made = []

    def make(*argv, **options):
        made.append(Terminal(sandbox, *argv, **options))
        return made[-1]

    yield make
    for item in made:
        item.close()


def test_a_terminal_is_a_terminal_of_the_right_size(terminal):
    shell = terminal("/bin/bash", "--norc", "-i")
    shell.type("tty; stty size; test -t 0 && test -t 1 && test -t 2 && echo yes-it-is\n")
    shell.expect("/dev/pts/")
    shell.expect("40 100")
    shell.expect("yes-it-is")
    shell.type("exit 5\n")
    assert shell.wait() == 5


def test_a_change_of_the_window_arrives(terminal):
    shell = terminal("/bin/bash", "--norc", "-i")
    shell.type("trap 'stty size' WINCH; echo is-$((1+1))\n")
    shell.expect("is-2")
    shell.resize(33, 77)
    shell.type("stty size\n")
    shell.expect("33 77")
    shell.type("exit\n")
    shell.wait()


def test_interrupt_reaches_the_foreground_job_and_not_the_client(terminal):
    shell = terminal("/bin/bash", "--norc", "-i")
    shell.type("echo go-$((1+1)); sleep 100\n")
    shell.expect("go-2")
    time.sleep(0.3)
    shell.type("\x03")
    shell.type("echo code-$?-end\n")
    shell.expect("code-130-end")
    shell.type("exit 0\n")
    assert shell.wait() == 0


def test_the_operators_terminal_is_restored(terminal):
    shell = terminal("/bin/sh", "-c", "stty raw -echo; exit 3")
    assert shell.wait() == 3
    assert termios.tcgetattr(shell.slave) == shell.before


def test_input_cannot_be_pushed_back_into_a_terminal(sandbox, terminal):
    code = "import fcntl\ntry: fcntl.ioctl(0, 0x5412, b'x')\nexcept OSError as e: print('errno', e.errno)\nelse: print('pushed')"
    shell = terminal("/usr/bin/python3", "-c", code)
    shell.expect("errno 1")
    assert shell.wait() == 0


def test_the_operators_descriptors_are_not_inside(terminal):
    shell = terminal("/bin/sh", "-c", "ls -l /proc/self/fd | grep -c pts; readlink /proc/self/fd/0; echo end")
    shell.expect("/dev/pts/0")
    assert shell.wait() == 0


def test_a_lost_terminal_hangs_its_commands_up(sandbox, terminal):
    shell = terminal("/bin/sh", "-c", "echo ready; exec sleep 4444")
    shell.expect("ready")
    shell.client.kill()
    shell.client.wait()
    wait_for(lambda: sandbox.run("/usr/bin/pgrep", "-f", "sleep 4444")[0] == 1)


# What a client may ask.


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"argv": []},
        {"argv": [""]},
        {"argv": "id"},
        {"argv": ["a\0b"]},
        {"argv": ["id"], "env": {"A=B": "c"}},
        {"argv": ["id"], "env": {"A": 1}},
        {"argv": ["id"], "cwd": "relative"},
        {"argv": ["id"], "rows": 70000, "tty": True},
        {"argv": ["id"], "columns": "80", "tty": True},
    ],
    ids=str,
)
def test_requests_that_make_no_sense_are_refused(sandbox, request_):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(sandbox.box.runtime_dir / "exec.sock"))
        frames.send(client, request_)
        message, descriptors = frames.receive(client, max_descriptors=3)
    assert message["error"]["code"] == "usage"
    assert descriptors == []


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\0\0\0\2[]", b"GET / HTTP/1.1\r\n\r\n"])
def test_noise_on_the_socket_harms_nobody(sandbox, data):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(sandbox.box.runtime_dir / "exec.sock"))
        with contextlib.suppress(OSError):
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            client.recv(1000)
    assert sandbox.run("/bin/true")[0] == 0


def test_a_client_cannot_hand_descriptors_in(sandbox):
    with socket.socket(socket.AF_UNIX) as client, Path(os.devnull).open("rb") as null:
        client.connect(str(sandbox.box.runtime_dir / "exec.sock"))
        frames.send(client, {"argv": ["true"]}, (null.fileno(),))
        assert frames.receive(client, max_descriptors=3)[0]["error"]["code"] == "usage"


def test_the_socket_is_the_operators_alone(sandbox):
    path = sandbox.box.runtime_dir / "exec.sock"
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0
