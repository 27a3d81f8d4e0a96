"""What is laid over a workload's image before its first process, so that any image will do."""

from __future__ import annotations

import io
import os
import tarfile
from typing import TYPE_CHECKING

from km_core.errors import ProvisionError
from km_substrate_docker import hostfiles
from km_substrate_docker.containers import CA_BUNDLE, CA_EXTRA

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
    bundle = _read(main, CA_BUNDLE).rstrip() + b"\n" + ca_pem.strip().encode() + b"\n"
    files = {
        "etc/passwd": passwd.encode(),
        "etc/group": group.encode(),
        CA_BUNDLE.lstrip("/"): bundle.lstrip(),
        CA_EXTRA.lstrip("/"): ca_pem.encode(),
    }
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
