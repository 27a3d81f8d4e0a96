"""What the tests of client programs share: names, what the stand-ins are, files for the sandbox."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from attrs import define
from demo.ai import Reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from demo.serving import Server

    from standins.registries import Aws
    from standins.world import Sandbox

GIT, INDEX, NPM, CRATES = "git.test", "python.test", "node.test", "crates.test"
TUNNEL, OPENED = "tunnel.test", "opened.test"
"""A host whose TLS passes unopened, and one that the gate opens to put a credential on requests."""
AI_HOSTS = ("api.anthropic.com", "api.openai.com")
BUCKET = "km-bucket.s3.eu-west-1.amazonaws.com"
AWS_HOSTS = ("sts.eu-west-1.amazonaws.com", "s3.eu-west-1.amazonaws.com", BUCKET)
KEY_ID = "AKIAQ3EGRMNSEXAMPLEX"
TOKEN = "outside-token-77aa"


@define
class Sites:
    """The stand-ins by what they play."""

    web: Server
    opened: Server
    aws: Aws


def scripted(api: str, request: dict[str, Any]) -> Reply:
    """One scripted turn: an agent that offers a shell is asked to use it once, then gets its last word."""
    tools = {tool.get("name") for tool in request.get("tools") or []}
    text = json.dumps(request.get("messages") or request.get("input") or "")
    usage = (
        {"output_tokens": 37, "cache_read": 1400, "cache_write": 260}
        if api == "messages"
        else {"output_tokens": 37}
    )
    if "Bash" in tools and "tool_result" not in text:
        command = {"command": "echo made-by-the-agent > made.txt", "description": "write a file"}
        return Reply(text="I will write it.", tool=("Bash", command), **usage)
    return Reply(text="pong", **usage)


def unpack(box: Sandbox, archive: bytes) -> None:
    """Send a tar archive through ``km exec`` into ``/workspace``."""
    subprocess.run(
        box.world.argv("exec", box.id, "--", "tar", "-x", "-C", "/workspace"),
        env=box.world.env,
        input=archive,
        check=True,
        capture_output=True,
        timeout=120,
    )


def fetched(pattern: str) -> Path:
    """Return what ``scripts/test`` has fetched; skips where it could not."""
    cache = os.environ.get("KM_TEST_CLIENTS", "")
    found = sorted(Path(cache).glob(pattern)) if cache else []
    if not found:
        pytest.skip(f"{pattern} is not in the cache: scripts/test fetches it")
    return found[0]


def archive_of(path: Path, name: str, *, without: Callable[[str], bool] = lambda _: False) -> bytes:
    """Return a tar archive of *path*, unpacked as *name*; *without* says what is left out, by its place in it."""
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(
            path.resolve(),
            arcname=name,
            filter=lambda info: None if without(info.name.removeprefix(f"{name}/")) else info,
        )
    return buffer.getvalue()
