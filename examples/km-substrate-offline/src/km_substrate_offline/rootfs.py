"""What a sandbox sees: a root of its own, made inside its own namespaces."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from km_substrate_offline import kernel

UID = 1000
"""Uid and gid inside."""
STAGE = "/tmp"  # noqa: S108 - covered by a file system of our own, in a mount namespace of our own
HOME, WORKSPACE = "/home/sandbox", "/workspace"

_SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
_PUBLIC = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "ssl/certs")
"""Files below ``/etc`` of the host that programs need and everybody may read."""
_DEVICES = ("null", "zero", "full", "random", "urandom")
_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
_READ_ONLY = kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
_TMPFS = kernel.MS_NOSUID | kernel.MS_NODEV
_FILES = {
    "passwd": f"root:x:0:0::/:/usr/sbin/nologin\nsandbox:x:{UID}:{UID}::{HOME}:/bin/sh\n".encode(),
    "group": f"root:x:0:\nsandbox:x:{UID}:\n".encode(),
    "hosts": b"127.0.0.1 localhost\n::1 localhost\n",
}


def stage_for_other_uid(workspace: str, home: str) -> tuple[str, str]:
    """
    Bind a sandbox's directories where another uid can reach them; returns the new places.

    For root, whose sandboxes run under a uid of their own: the directories above may be root's alone.
    Called in a mount namespace of its own.
    """
    kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    opened = [_open_directory(path) for path in (workspace, home)]
    kernel.mount("tmpfs", STAGE, "tmpfs", _TMPFS, "mode=0755,size=64k")
    places = []
    for descriptor, name in zip(opened, ("workspace", "home"), strict=True):
        place = Path(STAGE, name)
        place.mkdir(mode=0o755)
        _bind(descriptor, place)
        places.append(str(place))
    return places[0], places[1]


def build(sandbox_id: str, workspace: str, home: str) -> None:
    """
    Make the root and move into it.

    Called by the sandbox's first process with all rights over its own namespaces and none over others.
    What is not bound here does not exist inside: no file, no socket and no process of the host.  That is
    true of the interpreter's library too, so nothing here may need a module (such as a codec) that is not
    loaded yet.

    Raises:
        OSError: something could not be made; the process must end.
    """
    os.umask(0o022)
    kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    # Opened before the stage covers what may lie below it.
    system = {name: _open(Path("/", name)) for name in _SYSTEM if Path("/", name).is_dir()}
    public = {name: _open(Path("/etc", name)) for name in _PUBLIC if Path("/etc", name).exists()}
    devices = {name: _open(Path("/dev", name)) for name in _DEVICES}
    own = {WORKSPACE: _open_directory(workspace), HOME: _open_directory(home)}
    kernel.mount("tmpfs", STAGE, "tmpfs", _TMPFS, "mode=0755,size=1m")
    root = Path(STAGE)
    for name, descriptor in system.items():
        _place(descriptor, Path("/", name), root / name)
    (root / "etc").mkdir(mode=0o755)
    for name, content in _FILES.items():
        (root / "etc" / name).write_bytes(content)
    for name, descriptor in public.items():
        (root / "etc" / name).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _place(descriptor, Path("/etc", name), root / "etc" / name)
    _make_devices(root / "dev", devices)
    for name in ("tmp", "run", "var"):
        (root / name).mkdir()
        mode = "1777" if name == "tmp" else "0755"
        kernel.mount("tmpfs", str(root / name), "tmpfs", _TMPFS, f"mode={mode},size=256m")
    (root / "var" / "tmp").symlink_to("/tmp")  # noqa: S108 - the sandbox's own
    for place, descriptor in own.items():
        target = root / place.removeprefix("/")
        target.mkdir(mode=0o755, parents=True)
        _bind(descriptor, target)
        kernel.restrict_mount(str(target), _TMPFS)
    (root / "proc").mkdir()
    kernel.mount("proc", str(root / "proc"), "proc", _TMPFS | kernel.MS_NOEXEC)
    kernel.restrict_mount(STAGE, _READ_ONLY, recursive=False)
    kernel.make_root(STAGE)
    # Namespaces of a sandbox's own would give it rights over parts of the kernel that it has no need of.
    Path("/proc/sys/user/max_user_namespaces").write_bytes(b"0")
    socket.sethostname(sandbox_id)
    kernel.raise_loopback()


def _make_devices(directory: Path, devices: dict[str, int]) -> None:
    directory.mkdir(mode=0o755)
    for name, descriptor in devices.items():
        (directory / name).touch()
        _bind(descriptor, directory / name)
        kernel.restrict_mount(str(directory / name), kernel.MS_NOSUID | kernel.MS_NOEXEC)
    for name, target in _LINKS.items():
        (directory / name).symlink_to(target)
    (directory / "shm").mkdir()
    kernel.mount("tmpfs", str(directory / "shm"), "tmpfs", _TMPFS, "mode=1777,size=64m")


def _place(descriptor: int, source: Path, target: Path) -> None:
    """Show *source* at *target*, read-only; a link stays one, as on a merged ``/usr``."""
    if source.is_symlink():
        target.symlink_to(source.readlink())
        os.close(descriptor)
        return
    if source.is_dir():
        target.mkdir(mode=0o755)
    else:
        target.touch()
    _bind(descriptor, target)
    kernel.restrict_mount(str(target), _READ_ONLY)


def _open(path: Path) -> int:
    return os.open(path, os.O_PATH | os.O_CLOEXEC)


def _open_directory(path: str) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _bind(descriptor: int, target: Path) -> None:
    kernel.mount(f"/proc/self/fd/{descriptor}", str(target), flags=kernel.MS_BIND | kernel.MS_REC)
    os.close(descriptor)
