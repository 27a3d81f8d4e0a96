"""A git server over HTTPS: ``git http-backend`` behind a stand-in (git-http-backend(1))."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from demo.serving import Handler, Server

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from demo.serving import Arrival

_IDENTITY = ("-c", "user.name=stand-in", "-c", "user.email=stand-in@example.org")


class GitServer(Server):
    """
    Serves one repository, ``project.git``, with one commit.

    Args:
        context: its TLS context.
        directory: where the repository goes.
    """

    def __init__(self, context: ssl.SSLContext, directory: Path) -> None:
        super().__init__(_GitHandler, context)
        self.root = directory
        work = directory / "work"
        work.mkdir(parents=True)
        for command in (
            ["init", "-q", "-b", "main"],
            [*_IDENTITY, "commit", "-q", "--allow-empty", "-m", "the stand-in's commit"],
            ["clone", "-q", "--bare", ".", "../project.git"],
        ):
            subprocess.run(["git", *command], cwd=work, check=True, capture_output=True)


class _GitHandler(Handler):
    server: GitServer

    def answer(self, arrival: Arrival) -> None:
        path, _, query = arrival.path.partition("?")
        env = os.environ | {
            "GIT_PROJECT_ROOT": str(self.server.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": arrival.method,
            "CONTENT_TYPE": arrival.headers.get("content-type", ""),
            "CONTENT_LENGTH": str(len(arrival.body)),
            "HTTP_CONTENT_ENCODING": arrival.headers.get("content-encoding", ""),
            "GIT_PROTOCOL": arrival.headers.get("git-protocol", ""),
        }
        done = subprocess.run(
            ["git", "http-backend"], env=env, input=arrival.body, capture_output=True, check=False
        )
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().splitlines())
        status = int(headers.pop("Status", "200").split()[0])
        self.send(status, body, headers.items())
