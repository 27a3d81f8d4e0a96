"""
A git server over HTTPS: ``git http-backend`` behind a stand-in (git-http-backend(1)), with LFS.

It answers under every name that it has a certificate for, so that it can be a plain git server, GitHub,
and the hosts that GitHub keeps LFS objects on (git-lfs, docs/api/).
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

from demo.serving import Handler, Server

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence
    from pathlib import Path

    from demo.serving import Arrival

GITHUB, CLOUD, CHECKS = "github.com", "github-cloud.githubusercontent.com", "lfs.github.com"
"""GitHub, where it keeps LFS objects, and where it is told that one has arrived."""

_IDENTITY = ("-c", "user.name=stand-in", "-c", "user.email=stand-in@example.org")
_PIECE = 1 << 16


class GitServer(Server):
    """
    Serves bare repositories, each with one commit on ``main``; they take pushes.

    Args:
        context: its TLS context.
        directory: where the repositories go.
        repos: their names, without ``.git``.
    """

    def __init__(self, context: ssl.SSLContext, directory: Path, repos: Sequence[str] = ("project",)) -> None:
        super().__init__(_GitHandler, context)
        self.root = directory
        self.objects: dict[str, bytes] = {}
        for name in repos:
            self.make(name)

    def make(self, name: str, *, size: int = 0) -> None:
        """Make a repository; its commit holds *size* bytes that nothing makes shorter."""
        work = self.root / "work" / name
        work.mkdir(parents=True)
        bare = self.root / f"{name}.git"
        bare.parent.mkdir(parents=True, exist_ok=True)
        if size:
            (work / "large").write_bytes(os.urandom(size))
        store = ("-c", "core.compression=0", "-c", "core.bigFileThreshold=1m")
        for command in (
            ["init", "-q", "-b", "main"],
            [*store, "add", "--all"],
            [*_IDENTITY, "commit", "-q", "--allow-empty", "-m", "the stand-in's commit"],
            ["clone", "-q", "--bare", ".", str(bare)],
            ["-C", str(bare), *store, "repack", "-q", "-a", "-d"],
            ["-C", str(bare), "config", "http.receivepack", "true"],
        ):
            subprocess.run(["git", *command], cwd=work, check=True, capture_output=True)

    def refs(self, name: str) -> list[str]:
        """Return a repository's refs."""
        command = ["git", "for-each-ref", "--format=%(refname)"]
        done = subprocess.run(command, cwd=self.root / f"{name}.git", check=True, capture_output=True)
        return done.stdout.decode().split()


class _GitHandler(Handler):
    server: GitServer

    def answer(self, arrival: Arrival) -> None:
        host, (path, _, query) = arrival.headers.get("host", ""), arrival.path.partition("?")
        oid = path.rpartition("/")[2]
        if host == CLOUD and arrival.method == "PUT":
            known = hashlib.sha256(arrival.body).hexdigest() == oid
            self.server.objects |= {oid: arrival.body} if known else {}
            self.send(200 if known else 400, b"")
        elif host == CLOUD:
            self.send(200 if oid in self.server.objects else 404, self.server.objects.get(oid, b""))
        elif host == CHECKS:
            self.send(200, b"")
        elif "/info/lfs/" in path:
            answer = json.dumps(_lfs(path, json.loads(arrival.body or b"{}"))).encode()
            self.send(200, answer, [("content-type", "application/vnd.git-lfs+json")])
        else:
            self._git(arrival, path, query)

    def _git(self, arrival: Arrival, path: str, query: str) -> None:
        env = os.environ | {
            "GIT_PROJECT_ROOT": str(self.server.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path if path.partition(".git")[1] else _suffixed(path),
            "QUERY_STRING": query,
            "REQUEST_METHOD": arrival.method,
            "CONTENT_TYPE": arrival.headers.get("content-type", ""),
            "CONTENT_LENGTH": str(len(arrival.body)),
            "HTTP_CONTENT_ENCODING": arrival.headers.get("content-encoding", ""),
            "GIT_PROTOCOL": arrival.headers.get("git-protocol", ""),
        }
        with subprocess.Popen(
            ["git", "http-backend"], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            with process.stdin as stdin:
                stdin.write(arrival.body)
            headers = {}
            while line := process.stdout.readline().strip():
                name, _, value = line.decode().partition(": ")
                headers[name] = value
            status = int(headers.pop("Status", "200").split()[0])
            headers.pop("Content-Length", None)
            self.start_stream(status, headers.items())
            while piece := process.stdout.read(_PIECE):
                self.send_chunk(piece)
            self.send_chunk(b"")


def _suffixed(path: str) -> str:
    owner, name, *rest = path.strip("/").split("/")
    return "/" + "/".join([owner, f"{name}.git", *rest])


def _lfs(path: str, asked: dict[str, Any]) -> dict[str, Any]:
    if path.endswith("/locks/verify"):
        return {"ours": [], "theirs": []}
    operation = asked["operation"]
    objects = []
    for one in asked["objects"]:
        actions = {operation: {"href": f"https://{CLOUD}/alambic/{one['oid']}?sig=1"}}
        if operation == "upload":
            actions["verify"] = {"href": f"https://{CHECKS}/objects/verify/{one['oid']}"}
        objects.append({**one, "authenticated": True, "actions": actions})
    return {"transfer": "basic", "objects": objects}
