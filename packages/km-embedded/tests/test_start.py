"""Starting, finding and ending kmd."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from km_core.control.rpc import ControlClient
from km_core.errors import ConfigError, ControlError, ControlUnavailableError
from km_embedded.kmd import ALREADY_RUNS, take_lock
from km_embedded.plugin import km_control_planes, km_sidecars
from km_embedded.settings import Settings
from km_embedded.start import connect, kept_environment
from km_embedded.store import Database
from km_embedded.store.schema import MIGRATIONS

A = "sb-0000000a"


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_many_commands_at_once_start_one_kmd(daemon):
    pids = []

    def work():
        client = connect(daemon.config)
        pids.append(client.call("ping")["pid"])
        client.close()

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) == 12
    assert len(set(pids)) == 1


def test_kmd_is_in_a_session_of_its_own_with_nothing_of_its_starter(daemon, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-must-not-linger")
    secret = os.open("/etc/hostname", os.O_RDONLY)
    os.set_inheritable(secret, True)
    daemon.connect()
    os.close(secret)
    pid = daemon.pid()
    assert os.getsid(pid) == pid or os.getsid(pid) != os.getsid(0)
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"sk-must-not-linger" not in environment
    assert str(daemon.config.home).encode() in environment
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    targets = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
    assert "/etc/hostname" not in targets
    assert "Umask:\t0077" in Path(f"/proc/{pid}/status").read_text()


def test_everything_kmd_makes_is_private(daemon, record_for):
    client = daemon.connect()
    client.call("sandbox.create", record=record_for(A, time.time()))
    client.call("sandbox.open", id=A)
    client.call("secret.set", name="a-key", value="x")
    client.call("audit.checkpoint", id=A)
    for root in (daemon.config.home, daemon.config.runtime_dir):
        assert root.stat().st_mode & 0o777 == 0o700
        for path in root.rglob("*"):
            assert path.lstat().st_mode & 0o077 == 0, path


def test_a_runtime_directory_that_is_a_link_is_refused(config, tmp_path):
    config.runtime_dir.symlink_to(tmp_path)
    with pytest.raises(ControlError, match="cannot be used"):
        connect(config)
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_others_may_write_to_is_refused(config):
    config.home.mkdir()
    config.home.chmod(0o777)
    with pytest.raises(ControlError, match="others may write"):
        connect(config)


def test_why_kmd_did_not_start_reaches_the_command(config):
    config.home.mkdir(mode=0o700)
    Database(
        config.home / "km.db", migrations=(*MIGRATIONS, ("CREATE TABLE extra (a INTEGER) STRICT",))
    ).close()
    with pytest.raises(
        ControlUnavailableError, match=f"schema {len(MIGRATIONS) + 1}, this km knows {len(MIGRATIONS)}"
    ) as caught:
        connect(config)
    assert "upgrade km" in caught.value.hint
    assert take_lock(config) is not None


def test_a_second_kmd_steps_back(daemon):
    daemon.connect()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "km_embedded.kmd"],
        env=kept_environment(os.environ, daemon.config),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (ALREADY_RUNS, "kmd runs already\n")


def test_kmd_ends_when_nobody_needs_it(daemon, monkeypatch, record_for):
    monkeypatch.setenv("KM_KMD_IDLE_S", "0.5")
    monkeypatch.setenv("KM_KMD_TICK_S", "0.1")
    client = daemon.connect()
    pid = daemon.pid()
    time.sleep(1.0)
    assert alive(pid), "a client is connected"
    client.call("sandbox.create", record=record_for(A, time.time()))
    client.close()
    time.sleep(1.0)
    assert alive(pid), "a sandbox exists"
    with ControlClient(daemon.config.runtime_dir / "kmd.sock") as again:
        again.call("sandbox.delete", id=A)
    assert until(lambda: not alive(pid))
    assert not (daemon.config.runtime_dir / "kmd.sock").exists()
    assert daemon.connect().call("sandbox.list") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_kmd_cleanly(daemon, number):
    daemon.connect()
    pid = daemon.pid()
    os.kill(pid, number)
    assert until(lambda: not alive(pid))
    assert '"event": "ended"' in (daemon.config.home / "kmd.log").read_text()
    assert not (daemon.config.home / "km.db-wal").exists()


def test_shutdown_is_answered_before_kmd_ends(daemon):
    client = daemon.connect()
    pid = daemon.pid()
    assert client.call("shutdown") == {}
    assert until(lambda: not alive(pid))
    assert daemon.connect().call("ping")["pid"] != pid


def test_a_stopped_kmd_that_holds_its_lock_is_named(config, monkeypatch):
    from km_embedded import start

    connect(config).close()
    with ControlClient(config.runtime_dir / "kmd.sock") as client:
        pid = client.call("ping")["pid"]
    monkeypatch.setattr(start, "WAIT_S", 0.3)
    (config.runtime_dir / "kmd.sock").unlink()
    with pytest.raises(ControlUnavailableError, match="holds its lock"):
        connect(config)
    os.kill(pid, signal.SIGTERM)
    assert until(lambda: not alive(pid))


def test_kmd_keeps_places_and_no_credentials_of_its_starters_environment(config):
    kept = kept_environment(
        {
            "PATH": "/bin",
            "KM_LOG_LEVEL": "debug",
            "AWS_SECRET_ACCESS_KEY": "x",
            "LD_PRELOAD": "y",
            "KM_HOME": "z",
        },
        config,
    )
    assert kept == {
        "PATH": "/bin",
        "KM_LOG_LEVEL": "debug",
        "KM_HOME": str(config.home),
        "KM_RUNTIME_DIR": str(config.runtime_dir),
    }


def test_settings_are_positive_numbers():
    assert Settings.from_env({"KM_KMD_IDLE_S": "2.5"}).idle_exit_s == 2.5
    for text in ("0", "-1", "soon", "nan", "inf"):
        with pytest.raises(ConfigError, match="KM_KMD_IDLE_S"):
            Settings.from_env({"KM_KMD_IDLE_S": text})


def test_the_plugin_offers_a_control_plane_and_its_process(daemon):
    (plane,) = km_control_planes()
    (sidecar,) = km_sidecars()
    assert (plane.name, sidecar.name, sidecar.target) == ("embedded", "kmd", "km_embedded.kmd:main")
    control = plane.connect(daemon.config)
    assert control.call("ping")["pid"] == daemon.pid()
    control.close()


def test_kmd_leaves_no_core_file_and_cannot_be_read_by_its_user(daemon):
    daemon.connect()
    limits = Path(f"/proc/{daemon.pid()}/limits").read_text()
    line = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert line.split()[4:6] == ["0", "0"]
    # Only the kernel's root owns what says more of a process that is not dumpable.
    assert Path(f"/proc/{daemon.pid()}/environ").stat().st_uid == 0
