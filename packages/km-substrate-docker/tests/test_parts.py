"""What needs no engine: package sources, wheel tags, the user overlay, and what is refused up front."""

from __future__ import annotations

import io
import os
import socket
import ssl
import stat
import tarfile

import pytest
from docker.errors import NotFound
from hypothesis import given
from hypothesis import strategies as st

from km_core.errors import ProvisionError
from km_core.plan import LimitsPlan
from km_host import trust
from km_substrate_docker.base.closure import Part, Target, base_digest, gate_closure
from km_substrate_docker.base.rootfs import package_sources, without_credentials
from km_substrate_docker.containers import WORKLOAD_CAPABILITIES, Limits, limit_gaps
from km_substrate_docker.engine import connect, home_digest, socket_path
from km_substrate_docker.handover import rendezvous
from km_substrate_docker.hostfiles import Owners, share_socket, with_user
from km_substrate_docker.overlay import overlay
from km_substrate_docker.preflight import engine_fault

DEB822 = """
# comment
Types: deb
URIs: https://user:pw@mirror.example/debian
Suites: bookworm bookworm-updates
Components: main

Types: deb-src
URIs: https://mirror.example/debian
Suites: bookworm

Types: deb
Enabled: no
URIs: https://off.example/debian
Suites: bookworm

Types: deb
URIs: https://vendor.example/apt
Suites: stable
"""
IMAGE = Target((3, 11), (2, 36), "x86_64")
FIT = {
    "OSType": "linux",
    "KernelVersion": os.uname().release,
    "SecurityOptions": ["name=seccomp,profile=default"],
}


def test_only_enabled_sources_of_the_release_are_used(tmp_path):
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / "a.sources").write_text(DEB822)
    (tmp_path / "sources.list.d" / "vendor.list.disabled").write_text("deb https://x.example bookworm main\n")
    (tmp_path / "sources.list").write_text(
        "# deb https://no.example bookworm main\n"
        "deb [arch=amd64 signed-by=/k.gpg] https://m.example/d bookworm-security main\n"
        "deb https://m.example/d trixie main\ndeb-src https://m.example/d bookworm main\n"
    )

    found = package_sources(tmp_path, "bookworm")

    assert sorted(found) == ["a.sources", "sources.list"]
    assert found["sources.list"].count("\n") == 1
    assert "mirror.example" in found["a.sources"]
    assert not any(word in found["a.sources"] for word in ("off.example", "vendor.example", "deb-src"))


def test_the_images_sources_hold_no_credentials():
    text = "deb https://user:p%40ss@mirror.example/debian bookworm main\nURIs: http://token@m.example/x https://plain.example/\n"

    clean = without_credentials(text)

    assert (
        clean
        == "deb https://mirror.example/debian bookworm main\nURIs: http://m.example/x https://plain.example/\n"
    )


@pytest.mark.parametrize(
    ("tag", "fits"),
    [
        ("py3-none-any", True),
        ("cp311-cp311-manylinux_2_17_x86_64", True),
        ("cp38-abi3-manylinux_2_34_x86_64", True),
        ("cp312-abi3-manylinux_2_34_x86_64", False),
        ("cp311-cp311-manylinux_2_39_x86_64", False),
        ("cp312-cp312-manylinux_2_17_x86_64", False),
        ("cp311-cp311-manylinux_2_17_aarch64", False),
        ("cp311-cp311-musllinux_1_2_x86_64", False),
        ("cp311-cp311-macosx_11_0_arm64", False),
        ("cp311-cp311-linux_x86_64", False),
    ],
)
def test_installed_files_are_copied_only_where_their_wheel_fits_the_image(tag, fits):
    assert Part("x", "1", "", False, (tag,)).fits(IMAGE) is fits


def test_the_closure_has_the_gate_and_its_libraries_but_no_substrate():
    names = {part.name for part in gate_closure()}

    assert {"km-core", "km-host", "km-net-proxy", "attrs", "cryptography", "uvloop", "cffi"} <= names
    assert not any(name.startswith(("km-substrate-", "km-embedded", "docker", "pytest")) for name in names)


def test_the_bases_digest_is_stable_and_short():
    base_digest.cache_clear()
    first = base_digest()
    base_digest.cache_clear()

    assert base_digest() == first
    assert len(first) == 12


ACCOUNTS = st.lists(
    st.from_regex(r"\A[a-z]{1,8}:x:[0-9]{1,5}:[0-9]{1,5}::/:/bin/sh\Z")
    | st.just("sandbox:x:7:7::/evil:/bin/false"),
    max_size=8,
).map("\n".join)


@given(passwd=ACCOUNTS, group=ACCOUNTS)
def test_the_sandboxs_user_is_the_first_and_only_one_of_its_name(passwd, group):
    users, groups = with_user(passwd, group, 1000, 1000)

    for text in (users, groups):
        lines = text.splitlines()
        assert lines[0].startswith("sandbox:x:1000:")
        assert sum(line.startswith("sandbox:") for line in lines) == 1
        assert text.endswith("\n")
    assert {line for line in passwd.splitlines() if not line.startswith("sandbox:")} <= set(
        users.splitlines()
    )


def test_the_workload_gets_no_capability_beyond_owners_users_and_low_ports():
    reaching = {
        "NET_RAW",
        "NET_ADMIN",
        "SYS_ADMIN",
        "SYS_PTRACE",
        "BPF",
        "SYS_MODULE",
        "MKNOD",
        "SETPCAP",
        "SETFCAP",
        "ALL",
    }

    assert reaching.isdisjoint(WORKLOAD_CAPABILITIES)


def test_limits_default_to_half_the_host():
    info = {"MemTotal": 8 << 30, "NCPU": 6}

    assert Limits.of(LimitsPlan(), info) == Limits(4 << 30, 3.0, 512)
    assert Limits.of(LimitsPlan(memory_bytes=1 << 20, cpus=0.5, pids=9), info) == Limits(1 << 20, 0.5, 9)
    assert limit_gaps({"MemoryLimit": True, "CpuCfsQuota": True, "PidsLimit": True}) == ()
    assert limit_gaps({}) == ("memory", "cpus", "pids")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"KernelVersion": "0.0"}, "another machine"),
        ({"OSType": "windows"}, "another machine"),
        ({"SecurityOptions": ["name=seccomp", "name=rootless"]}, "rootless"),
        ({"SecurityOptions": ["name=seccomp", "name=userns"]}, "remapped"),
        ({"SecurityOptions": []}, "system calls"),
    ],
)
def test_an_engine_that_cannot_confine_is_refused(change, words):
    fault = engine_fault(FIT | change)

    assert fault is not None
    assert words in str(fault)
    assert engine_fault(FIT) is None


def test_only_a_local_engine_is_one():
    assert socket_path("unix:///run/x.sock") == "/run/x.sock"
    for host in ("tcp://127.0.0.1:2375", "ssh://host", "npipe:////./pipe/x", "http://x"):
        with pytest.raises(ProvisionError, match="on this machine"):
            socket_path(host)


def test_an_absent_engine_is_told_without_loading_the_sdk(tmp_path):
    with pytest.raises(ProvisionError, match="no Docker engine answers"), connect(f"unix://{tmp_path}/none"):
        pass


def test_two_homes_have_two_labels(tmp_path):
    assert home_digest(tmp_path / "a") != home_digest(tmp_path / "b")
    assert home_digest(tmp_path / "a") == home_digest(tmp_path / "x" / ".." / "a")


def test_a_rendezvous_takes_the_expected_process_once(home):
    with rendezvous(home / "s", mode=0o600) as meeting, socket.socket(socket.AF_UNIX) as peer:
        assert stat.S_IMODE((home / "s").stat().st_mode) == 0o600
        peer.connect(str(home / "s"))
        with meeting.accept(
            pid=os.getpid(), uid=os.geteuid(), still_running=lambda: "", timeout_s=5, what="the peer"
        ):
            assert not (home / "s").exists()


def test_a_rendezvous_refuses_another_process_and_does_not_wait_for_ever(home):
    with rendezvous(home / "s", mode=0o600) as meeting:
        with pytest.raises(ProvisionError, match="did not connect within"):
            meeting.accept(pid=1, uid=0, still_running=lambda: "", timeout_s=0.2, what="the peer")
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(home / "s"))
            with pytest.raises(ProvisionError, match="another process than the peer"):
                meeting.accept(pid=1, uid=0, still_running=lambda: "", timeout_s=5, what="the peer")


def test_a_shared_socket_follows_the_one_it_stands_for(home):
    def make():
        (home / "a").unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(home / "a"))
        sock.listen(1)
        return sock

    with make():
        assert share_socket(home / "a", home / "b", os.getegid())
        assert share_socket(home / "a", home / "b", os.getegid())
    with make():
        assert share_socket(home / "a", home / "b", os.getegid())
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(home / "b"))
    (home / "a").unlink()
    assert not share_socket(home / "a", home / "b", os.getegid())


class _Image:
    """As much of a container as the overlay asks for."""

    def __init__(self, pieces):
        self.pieces, self.given = pieces, 0
        self.attrs = {"Config": {"Env": None}}

    def get_archive(self, path):
        def stream():
            for _ in range(self.pieces):
                self.given += 1
                yield bytes(1024 * 1024)

        return stream(), {"linkTarget": ""}


def test_an_image_with_an_endless_user_list_is_refused_before_it_fills_the_memory():
    image = _Image(pieces=1000)
    with pytest.raises(ProvisionError, match="too large"):
        overlay(image, "pem", Owners.here(), "/workspace")
    assert image.given < 20


@pytest.mark.parametrize(
    ("folder", "made"),
    [("/workspace", []), ("/workspace/a", []), ("/workspace2", ["workspace2"]), ("/srv", ["srv"])],
)
def test_only_directories_that_are_not_shared_are_made_in_the_image(folder, made):
    data = overlay(_Image(pieces=1), "pem", Owners.here(), folder)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert [member.name for member in archive if member.isdir()] == made


class _Files:
    """A container of an image with these files, as the overlay reads them."""

    def __init__(self, files, env):
        self.files, self.attrs = files, {"Config": {"Env": env}}

    def get_archive(self, path):
        if path not in self.files:
            raise NotFound(path)
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            info = tarfile.TarInfo(path.rpartition("/")[2])
            info.size = len(self.files[path])
            archive.addfile(info, io.BytesIO(self.files[path]))
        return iter([buffer.getvalue()]), {"linkTarget": ""}


@pytest.mark.parametrize("place", ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"])
def test_inside_trusts_what_image_and_host_trust_in_every_form(place, tmp_path, monkeypatch):
    image, host, own = (ssl.DER_cert_to_PEM_cert(name) for name in (b"image", b"host", b"own"))
    (tmp_path / "host.pem").write_text(host)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "host.pem"))
    jdk = "/opt/java/openjdk/lib/security/cacerts"
    main = _Files({place: image.encode(), jdk: b"x"}, ["PATH=/bin", "JAVA_HOME=/opt/java/openjdk"])
    data = overlay(main, own, Owners.here(), "/workspace")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        bundle = archive.extractfile("etc/ssl/certs/ca-certificates.crt").read().decode()
        assert bundle == image + host + own
        assert archive.extractfile(jdk[1:]).read() == trust.java_store(bundle)
        # An image without Debian's store gets none: a JDK that is installed later makes its own.
        assert trust.JAVA_STORE[1:] not in archive.getnames()
