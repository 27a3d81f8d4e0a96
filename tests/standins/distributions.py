"""Python distributions for inside: the installed ones as an archive, and a small one on an index of its own."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import io
import re
import tarfile
import zipfile
from typing import TYPE_CHECKING

from demo.serving import Handler, Server

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from demo.serving import Arrival

WHEEL = "km_greeting-1.0-py3-none-any.whl"


def installed(*names: str) -> bytes:
    """Return a tar archive of *names* and everything they require, as installed here."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in sorted(_closure(names)):
            for file in importlib.metadata.distribution(name).files or ():
                path = file.locate()
                if not str(file).startswith("..") and "__pycache__" not in file.parts and path.is_file():
                    archive.add(path, arcname=f"site/{file}")
    return buffer.getvalue()


def _closure(names: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    queue = list(names)
    while queue:
        name = re.sub(r"[-_.]+", "-", queue.pop()).lower()
        if name in found:
            continue
        try:
            requires = importlib.metadata.distribution(name).requires or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        queue += [re.split(r"[\s;<>=!~\[(]", item)[0] for item in requires if "extra ==" not in item]
    return found


def tree(directory: Path) -> bytes:
    """Return a tar archive of a directory's content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(directory, arcname=".")
    return buffer.getvalue()


class Index(Server):
    """
    A package index (PEP 503) with one distribution, ``km-greeting``.

    Args:
        context: its TLS context.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(_IndexHandler, context)
        self.wheel = _wheel()


class _IndexHandler(Handler):
    server: Index

    def answer(self, arrival: Arrival) -> None:
        if arrival.path == "/simple/km-greeting/":
            digest = hashlib.sha256(self.server.wheel).hexdigest()
            page = f'<!doctype html><a href="/files/{WHEEL}#sha256={digest}">{WHEEL}</a>'
            self.send(200, page.encode(), [("content-type", "text/html")])
        elif arrival.path == f"/files/{WHEEL}":
            self.send(200, self.server.wheel, [("content-type", "application/octet-stream")])
        else:
            self.send(404, b"", [])


def _wheel() -> bytes:
    return make_wheel("km-greeting", "1.0", {"km_greeting.py": "TEXT = 'hello from the index'\n"})


def make_wheel(
    name: str,
    version: str,
    modules: dict[str, str],
    *,
    requires: tuple[str, ...] = (),
    entry_points: str = "",
) -> bytes:
    """Build a pure wheel (binary distribution format, PEP 427) of Python source by path."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {line}\n" for line in requires)
    files = {path: text.encode() for path, text in modules.items()}
    files |= {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: km tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if entry_points:
        files[f"{info}/entry_points.txt"] = entry_points.encode()
    record = ""
    for path, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(data)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return buffer.getvalue()
