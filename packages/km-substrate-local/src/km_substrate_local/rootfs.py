"""
The file system a local sandbox sees: the host's ``/usr`` read-only, a generated ``/etc``, its own files.

Nothing else of the host is there: no home directory, no ``/etc`` but a list of files that are the same
for everybody, no sockets, no devices but the usual null ones.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

import km_host
from km_core.errors import ProvisionError
from km_host import trust

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from km_core.config import Config
    from km_core.plan import SandboxPlan

UID = 1000
"""The sandbox's user inside."""
USER = "sandbox"
HOME = "/home/sandbox"
WORKSPACE = "/workspace"
CA_FILE = "/etc/ssl/km-ca.pem"
PATH = "/opt/km/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

HOST_FILES = (
    "alternatives",
    "bash.bashrc",
    "debian_version",
    "fonts",
    "inputrc",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "magic",
    "mime.types",
    "networks",
    "profile",
    "protocols",
    "python3",
    "services",
    "ssl/openssl.cnf",
    "terminfo",
    "timezone",
)
"""Below the host's ``/etc``: the same on every machine of its kind, shown only when all may read them."""

_HOST_PATTERNS = ("java", "java-*-openjdk")
"""As `HOST_FILES`: configuration without which a JDK of Debian or Fedora does not start."""

_RESERVED = (
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/home",
    "/lib",
    "/lib64",
    "/opt",
    "/opt/km",
    "/proc",
    "/root",
)
_RESERVED_TREES = (WORKSPACE, HOME, "/opt/km", "/dev", "/proc", "/sys", "/run", "/var/run")


@frozen
class Mount:
    """A host path and where the sandbox sees it."""

    source: Path
    target: str
    writable: bool = False


def write_rootfs(directory: Path, sandbox_id: str, plan: SandboxPlan, ca_pem: str) -> None:
    """
    Generate ``etc/`` and ``opt/`` below *directory*; what is there is replaced.

    Raises:
        ProvisionError: a file cannot be written.
    """
    try:
        _write_tree(directory / "etc", _etc_files(sandbox_id, plan, ca_pem))
        for name in _host_files():
            _mount_point(Path("/etc") / name, directory / "etc" / name)
        for name, target in (
            ("mtab", "/proc/self/mounts"),
            ("os-release", "../usr/lib/os-release"),
            ("ssl/cert.pem", trust.BUNDLE),
            ("pki/tls/certs/ca-bundle.crt", trust.BUNDLE),
            *((place.removeprefix("/etc/"), trust.JAVA_STORE) for place in _java_stores(in_etc=True)),
        ):
            link = directory / "etc" / name
            link.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(target)
        package = Path(km_host.__file__).parent
        library = {
            f"lib/km_host/{name}": (package / name).read_text(encoding="utf-8")
            for name in ("__init__.py", "inside/__init__.py", "inside/frames.py", "inside/init.py")
        }
        _write_tree(directory / "opt", library)
        (directory / "opt" / "bin").mkdir(exist_ok=True)
        _open_to_all(directory)
    except OSError as error:
        raise ProvisionError(
            "the sandbox's file system cannot be generated", where=str(directory), why=str(error)
        ) from error


def mounts(state_dir: Path, config: Config) -> tuple[Mount, ...]:
    """Return what is shown from below the state directory and the operator's read-only paths."""
    rootfs = state_dir / "rootfs"
    return (
        Mount(rootfs / "etc", "/etc"),
        Mount(rootfs / "opt", "/opt/km"),
        Mount(state_dir / "workspace", WORKSPACE, writable=True),
        Mount(state_dir / "home", HOME, writable=True),
        *(Mount(Path(path), path) for path in config.read_only_paths),
    )


def read_only_problem(path: str, config: Config) -> str:
    """Return why a path of ``local.read_only_paths`` cannot be shown, or an empty text."""
    place = Path(path)
    if not place.is_absolute() or os.path.normpath(path) != path:
        return "must be an absolute path without . and .."
    if not place.exists():
        return "does not exist"
    if path in _RESERVED or any(place.is_relative_to(tree) for tree in _RESERVED_TREES):
        return "covers a place of the sandbox's own"
    real = Path(os.path.realpath(path))
    for private in (config.home, config.runtime_dir):
        hidden = Path(os.path.realpath(private))
        if real.is_relative_to(hidden) or hidden.is_relative_to(real):
            return f"would show km's own files in {private}"
    if real in {
        Path("/"),
        Path("/etc"),
        Path("/proc"),
        Path("/sys"),
        Path("/dev"),
        Path("/home"),
        Path("/root"),
    }:
        return "would show the host's private files"
    return ""


def bubblewrap_arguments(
    sandbox_id: str,
    shown: Sequence[tuple[str, Mount]],
    *,
    environment: Mapping[str, str],
    seccomp_fd: int,
    scratch_bytes: int,
) -> list[str]:
    """
    Return bubblewrap's arguments, without the program and the command.

    Args:
        sandbox_id: also the host name inside.
        shown: source path, as bubblewrap can reach it, and mount.
        environment: all that the first process gets.
        seccomp_fd: descriptor of the filter's bytes.
        scratch_bytes: size of ``/tmp`` at most.
    """
    words = ["--unshare-user", "--uid", str(UID), "--gid", str(UID)]
    # The second makes bubblewrap try for itself that no user namespace can be made any more.
    words += ["--disable-userns", "--assert-userns-disabled"]
    words += [
        "--unshare-pid",
        "--unshare-ipc",
        "--unshare-uts",
        "--unshare-cgroup-try",
        "--hostname",
        sandbox_id,
    ]
    words += ["--new-session", "--die-with-parent", "--as-pid-1", "--cap-drop", "ALL"]
    words += ["--seccomp", str(seccomp_fd), "--clearenv"]
    words += ["--ro-bind", "/usr", "/usr", *_system_directories()]
    words += ["--proc", "/proc", "--dev", "/dev"]
    words += ["--size", str(scratch_bytes), "--perms", "1777", "--tmpfs", "/tmp"]  # noqa: S108 - the sandbox's
    small = str(64 * 1024 * 1024)
    words += ["--size", small, "--tmpfs", "/run", "--size", small, "--tmpfs", "/var"]
    words += ["--perms", "1777", "--dir", "/var/tmp", "--symlink", "/run", "/var/run"]  # noqa: S108 - as above
    for name in ("cache", "lib", "log"):
        words += ["--dir", f"/var/{name}"]
    for name in ("root", "home", "opt"):
        words += ["--dir", f"/{name}"]
    for source, mount in shown:
        words += ["--bind" if mount.writable else "--ro-bind", source, mount.target]
        if mount.target == "/etc":
            for name in _host_files():
                words += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
            for place in _java_stores(in_etc=False):
                words += ["--ro-bind", source + trust.JAVA_STORE.removeprefix("/etc"), place]
    for name, value in sorted(environment.items()):
        words += ["--setenv", name, value]
    return [*words, "--remount-ro", "/", "--chdir", "/"]


def workload_environment(sandbox_id: str, plan: SandboxPlan) -> dict[str, str]:
    """Return the environment every process inside starts with."""
    return {
        "PATH": PATH,
        "HOME": HOME,
        "USER": USER,
        "LOGNAME": USER,
        "LANG": "C.UTF-8",
        "SHELL": plan.workload.shell,
        "TERM": "xterm-256color",
        "KM_SANDBOX_ID": sandbox_id,
        **dict.fromkeys(trust.CA_VARIABLES, trust.BUNDLE),
        **dict(plan.workload.env),
    }


def is_public(path: Path) -> bool:
    """Say whether everybody on the host may read *path*."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    wanted = 0o005 if stat.S_ISDIR(mode) else 0o004
    return mode & wanted == wanted


def _host_files() -> list[str]:
    """Return what is shown of the host's ``/etc``, by its names there."""
    etc = Path("/etc")
    found = [path.name for pattern in _HOST_PATTERNS for path in sorted(etc.glob(pattern))]
    return [name for name in (*HOST_FILES, *found) if is_public(etc / name)]


def _java_stores(*, in_etc: bool) -> list[str]:
    """Return where the host's JDKs look for their key stores, besides the usual place."""
    return [
        place
        for place in trust.java_stores()
        if place != trust.JAVA_STORE and place.startswith("/etc/" if in_etc else "/usr/")
    ]


def _etc_files(sandbox_id: str, plan: SandboxPlan, ca_pem: str) -> dict[str, str | bytes]:
    # Before the gate has made its CA nothing runs inside, and nothing needs to be read.
    trusted = trust.bundle(_host_trust(), ca_pem) if ca_pem else ""
    return {
        "passwd": (
            "root:x:0:0:root:/root:/usr/sbin/nologin\n"
            f"{USER}:x:{UID}:{UID}::{HOME}:{plan.workload.shell}\n"
            "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
        ),
        "group": f"root:x:0:\ntty:x:5:\n{USER}:x:{UID}:\nnogroup:x:65534:\n",
        "hosts": f"127.0.0.1 localhost {sandbox_id}\n::1 localhost ip6-localhost {sandbox_id}\n",
        "resolv.conf": "nameserver 127.0.0.1\noptions timeout:5 attempts:2\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\n"
        "protocols: files\nservices: files\n",
        "hostname": f"{sandbox_id}\n",
        "shells": "/bin/sh\n/bin/bash\n",
        trust.BUNDLE.removeprefix("/etc/"): trusted,
        trust.JAVA_STORE.removeprefix("/etc/"): trust.java_store(trusted),
        CA_FILE.removeprefix("/etc/"): ca_pem,
    }


def _host_trust() -> str:
    found = trust.host_bundle()
    return "" if found is None else found.read_text(encoding="utf-8", errors="replace")


def _write_tree(directory: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)


def _mount_point(source: Path, target: Path) -> None:
    """Make an empty file or directory to mount *source* on."""
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if source.is_dir():
        target.mkdir(mode=0o755, exist_ok=True)
    else:
        target.touch(mode=0o644)


def _open_to_all(directory: Path) -> None:
    """Let the workload's uid read the generated files, whatever this process's umask is."""
    for place, directories, files in os.walk(directory):
        here = Path(place)
        here.chmod(0o755)
        for name in [*directories, *files]:
            path = here / name
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() else 0o644)


def _system_directories() -> list[str]:
    """Return how ``/bin``, ``/lib`` and the like are on this host: links into ``/usr``, or directories."""
    words = []
    for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"):
        path = Path(name)
        if path.is_symlink():
            words += ["--symlink", str(path.readlink()), name]
        elif path.is_dir():
            words += ["--ro-bind", name, name]
    return words


def system_python() -> str:
    """
    Return the interpreter that the first process inside runs under.

    Raises:
        ProvisionError: the host has none in ``/usr/bin``.
    """
    path = shutil.which("python3", path="/usr/bin")
    if path is None:
        raise ProvisionError("there is no /usr/bin/python3", hint="install the package python3")
    return path
