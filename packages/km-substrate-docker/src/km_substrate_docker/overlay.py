"""What is laid over a workload's image before its first process, so that any image will do."""

from __future__ import annotations

import io
import os
import tarfile
from typing import TYPE_CHECKING

from km_core.errors import ProvisionError
from km_host import trust
from km_substrate_docker import hostfiles
from km_substrate_docker.containers import CA_EXTRA

if TYPE_CHECKING:
    from collections.abc import Iterable

    from docker.models.containers import Container

    from km_substrate_docker.hostfiles import Owners

MAX_FILE = 16 * 1024 * 1024
"""Largest file read from an image (users, groups, CAs), in bytes."""


def overlay(main: Container, ca_pem: str, owners: Owners, working_dir: str) -> bytes:
    """Return what is laid over the image before its first process: user, CAs, working directory."""
    uid, gid = owners.sandbox
    passwd, group = hostfiles.with_user(
        _read(main, "/etc/passwd").decode(errors="replace"),
        _read(main, "/etc/group").decode(errors="replace"),
        uid,
        gid,
    )
    trusted = trust.bundle(_image_trust(main), _host_trust(), ca_pem)
    files = {
        "etc/passwd": passwd.encode(),
        "etc/group": group.encode(),
        trust.BUNDLE.lstrip("/"): trusted.encode(),
        CA_EXTRA.lstrip("/"): ca_pem.encode(),
    }
    for store in _java_stores(main):
        files[store.lstrip("/")] = trust.java_store(trusted)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        folder = working_dir.strip("/")
        shared = ("workspace", "home/sandbox")
        if folder and not any(folder == place or folder.startswith(f"{place}/") for place in shared):
            info = tarfile.TarInfo(folder)
            info.type, info.mode, info.uid, info.gid = tarfile.DIRTYPE, 0o755, uid, gid
            archive.addfile(info)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _image_trust(main: Container) -> str:
    """Return the bundle of an image of whatever distribution; empty when it has none."""
    found = (_read(main, name) for name in trust.SYSTEM_BUNDLES)
    return next(filter(None, found), b"").decode(errors="replace")


def _java_stores(main: Container) -> list[str]:
    """Return the key stores of an image: Debian's, and that of a JDK which the image's variable names."""
    env = dict(line.partition("=")[::2] for line in main.attrs["Config"]["Env"] or ())
    home = env.get("JAVA_HOME", "")
    places = [trust.JAVA_STORE, *([f"{home}/lib/security/cacerts"] if home.startswith("/") else [])]
    return [place for place in map(os.path.normpath, places) if _read(main, place)]


def _host_trust() -> str:
    """Return what this host trusts: an image knows neither the operator's own authorities nor always any."""
    found = trust.host_bundle()
    return "" if found is None else found.read_text(encoding="utf-8", errors="replace")


def _bounded(stream: Iterable[bytes], path: str) -> bytes:
    """Return what the engine streams, an archive that an image may have made as large as it likes."""
    data = bytearray()
    for piece in stream:
        data += piece
        if len(data) > MAX_FILE:
            raise ProvisionError(
                "a file of the sandbox image is too large",
                where=path,
                why=f"more than {MAX_FILE} bytes",
                hint="use another image",
            )
    return bytes(data)


def _read(main: Container, path: str) -> bytes:
    """Return a file of the image, links followed; empty when there is none."""
    from docker.errors import NotFound

    for _ in range(8):
        try:
            stream, stat = main.get_archive(path)
        except NotFound:
            return b""
        target = str((stat or {}).get("linkTarget") or "")
        if target:
            path = os.path.normpath(os.path.join(os.path.dirname(path), target))  # noqa: PTH118, PTH120 - a path inside
            continue
        with tarfile.open(fileobj=io.BytesIO(_bounded(stream, path))) as archive:
            member = archive.next()
            content = archive.extractfile(member) if member is not None and member.isfile() else None
            return content.read() if content is not None else b""
    return b""
