"""
Build the base image: ``python3 -m km_substrate_docker.base.build``.

Three images on top of each other, so that a changed line of code costs seconds: the operating system
(rebuilt when its recipe changes), the libraries (when a version changes), km's own code (always when
it changes).  A build that has nothing to do asks the engine one question and ends.
"""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import contextmanager
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from km_core.errors import KmError, ProvisionError
from km_substrate_docker.base import closure, rootfs
from km_substrate_docker.base.closure import Part, Target, base_digest, files_of, gate_closure
from km_substrate_docker.engine import LABEL_BASE, connect, default_host, translate
from km_substrate_docker.image import base_tag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from docker import DockerClient

LIB = "opt/km/lib"
LIBEXEC = "opt/km/libexec"
_ENV = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KEPT = 4
_PROBE = (
    "import sys, platform; print(sys.version_info[0], sys.version_info[1],"
    " platform.libc_ver()[1].replace('.', ' '), platform.machine())"
)


def main() -> int:
    """Build what is missing and print the image's name."""
    try:
        with connect(default_host()) as client:
            sys.stdout.write(build(client, Progress()) + "\n")
    except KmError as error:
        sys.stderr.write(f"error: {error}\n" + (f"  hint: {error.hint}\n" if error.hint else ""))
        return error.exit_code
    return 0


class Progress:
    """Say what is being done and how long it has taken, on stderr."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __call__(self, text: str) -> None:
        """Print one line."""
        sys.stderr.write(f"[{time.monotonic() - self._start:5.1f} s] {text}\n")
        sys.stderr.flush()


def cache_dir() -> Path:
    """Return (and make) the directory for what can be rebuilt: ``KM_CACHE``, else the XDG cache."""
    base = os.environ.get("KM_CACHE")
    xdg = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = Path(base) if base else Path(xdg).expanduser() / "km"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def build(client: DockerClient, progress: Callable[[str], None]) -> str:
    """
    Return the base image's name, building what is missing.

    Raises:
        ProvisionError: a part cannot be built; nothing half-built carries the name.
    """
    tag = base_tag()
    if _has(client, tag):
        return tag
    with _only_one(cache_dir()):
        if _has(client, tag):
            return tag
        system = f"km-rootfs:{rootfs.recipe_digest()}"
        if not _has(client, system):
            archive = rootfs.ensure_rootfs(cache_dir(), progress)
            progress("importing the operating system")
            _import(client, archive, system)
        parts = gate_closure()
        libraries = [part for part in parts if not part.editable]
        own = [part for part in parts if part.editable]
        middle = f"km-libraries:{_digest(system, libraries)}"
        if not _has(client, middle):
            progress(f"adding {len(libraries)} libraries")
            _layer(client, system, middle, _library_files(client, system, libraries), {})
        progress("adding km")
        labels = {LABEL_BASE: base_digest()}
        _layer(client, middle, tag, [*_code_files(own), *_inside_files()], labels)
        _prune(client, tag)
    progress(f"{tag} is ready")
    return tag


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    with (folder / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _has(client: DockerClient, tag: str) -> bool:
    from docker.errors import ImageNotFound

    with translate("the engine cannot look up an image"):
        try:
            client.images.get(tag)
        except ImageNotFound:
            return False
        return True


def _digest(system: str, parts: list[Part]) -> str:
    text = repr((system, [(part.name, part.version, part.fingerprint) for part in parts]))
    return sha256(text.encode()).hexdigest()[:12]


def _import(client: DockerClient, archive: Path, tag: str) -> None:
    name, _, version = tag.partition(":")
    with translate("the operating system cannot be imported"):
        client.api.import_image_from_file(
            str(archive),
            repository=name,
            tag=version,
            changes=[f"ENV {_ENV}", 'CMD ["/bin/bash"]', "LABEL km.base=rootfs"],
        )


def _layer(
    client: DockerClient, parent: str, tag: str, files: list[tuple[str, Path, int]], labels: dict[str, str]
) -> None:
    """Copy *files* (path in the image, file, mode) over *parent*, compile them, and name the result."""
    name, _, version = tag.partition(":")
    with translate(f"the image {tag} cannot be built"):
        container = client.containers.create(
            parent,
            # Read-only containers cannot write byte code, so it is made here; unchecked: the layer
            # never changes, and looking for the source's time would cost a call per module.
            ["python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", f"/{LIB}"],
            network_mode="none",
            labels={LABEL_BASE: "build"},
        )
        try:
            with tempfile.TemporaryFile() as archive:
                _write_tar(archive, files)
                archive.seek(0)
                container.put_archive("/", archive)
            container.start()
            container.wait(timeout=300)
            changes = [f"LABEL {key}={value}" for key, value in labels.items()]
            container.commit(name, version, changes=[*changes, 'CMD ["/bin/bash"]'])
        finally:
            container.remove(force=True)


def _write_tar(target: Any, files: list[tuple[str, Path, int]]) -> None:
    with tarfile.open(fileobj=target, mode="w") as archive:
        for folder in ("opt", "opt/km", LIB, LIBEXEC):
            archive.addfile(_entry(folder, 0o755, tarfile.DIRTYPE))
        for name, path, mode in files:
            data = path.read_bytes()
            info = _entry(name, mode)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def _entry(name: str, mode: int, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    """Return a header that says nothing about this machine: owner 0, time 0."""
    info = tarfile.TarInfo(name)
    info.mode, info.type = mode, kind
    return info


def _code_files(parts: list[Part]) -> list[tuple[str, Path, int]]:
    return [(f"{LIB}/{name}", path, 0o644) for part in parts for name, path in files_of(part)]


def _inside_files() -> list[tuple[str, Path, int]]:
    folder = Path(closure.__file__).parent / "inside"
    return [(f"{LIBEXEC}/{path.name}", path, 0o755) for path in sorted(folder.glob("*.py"))]


def _library_files(client: DockerClient, system: str, parts: list[Part]) -> list[tuple[str, Path, int]]:
    """Return the libraries' files: the installed ones where they fit the image, else fetched ones."""
    target = _target(client, system)
    files = _code_files([part for part in parts if part.fits(target)])
    foreign = [part for part in parts if not part.fits(target)]
    if foreign:
        folder = cache_dir() / f"wheels-{_digest(system, foreign)}"
        if not folder.exists():
            _fetch(foreign, target, folder)
        files += [(f"{LIB}/{name}", path, 0o644) for name, path in _walk(folder)]
    return files


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield str(path.relative_to(folder)), path


def _target(client: DockerClient, system: str) -> Target:
    with translate("the image's interpreter does not answer"):
        answer = client.containers.run(
            system, ["python3", "-c", _PROBE], remove=True, network_mode="none", labels={LABEL_BASE: "build"}
        )
    words = answer.decode().split()
    return Target((int(words[0]), int(words[1])), (int(words[2]), int(words[3])), words[4])


def _fetch(parts: list[Part], target: Target, folder: Path) -> None:
    """Install the same versions for the image's interpreter into *folder*, with the operator's own installer."""
    python = f"{target.python[0]}.{target.python[1]}"
    pins = [f"{part.name}=={part.version}" for part in parts]
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    if find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
        command += ["--python-version", python, "--implementation", "cp"]
        for minor in range(target.glibc[1], 4, -1):
            command += ["--platform", f"manylinux_2_{minor}_{target.machine}"]
        command += ["--platform", f"manylinux2014_{target.machine}"]
    else:
        platform = f"{target.machine}-manylinux_2_{target.glibc[1]}"
        command = [shutil.which("uv") or "uv", "pip", "install", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--python-version", python, "--python-platform", platform]
    done = subprocess.run(
        [*command, "--target", str(partial), *pins], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ProvisionError(
            f"libraries for the image's Python {python} cannot be fetched",
            why=done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}",
            hint=f"run km with Python {python}, or make pip or uv able to install {', '.join(pins)}",
        )
    partial.rename(folder)


def _prune(client: DockerClient, keep: str) -> None:
    """Remove base images of earlier code, but the last few and those in use (which the engine refuses)."""
    from docker.errors import APIError

    images = sorted(client.images.list(name="km-base"), key=lambda image: str(image.attrs.get("Created")))
    for image in images[:-_KEPT]:
        for tag in image.tags:
            if tag != keep:
                try:
                    client.images.remove(tag)
                except APIError:
                    continue


if __name__ == "__main__":
    sys.exit(main())
