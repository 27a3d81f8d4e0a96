"""The first sandbox's page, followed word for word with the real ``km``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sitepages import reading

if TYPE_CHECKING:
    from standins.world import World

pytestmark = pytest.mark.namespaces
PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial" / "first-sandbox.md"


def steps(text: str) -> list[tuple[str, str]]:
    """Return the page's commands in order, each with the output that is shown for it."""
    found = []
    for language, body in re.findall(r"^```(console|sh)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if language == "sh":
            found += [(line, "") for line in body.splitlines() if line.strip()]
            continue
        for piece in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
            command, _, output = piece.partition("\n")
            found.append((command, output.strip()))
    return found


@pytest.mark.parametrize("substrate", ["local"], indirect=True)
def test_the_first_sandbox_goes_as_its_page_says(world: World) -> None:
    text = PAGE.read_text(encoding="utf-8")
    upstreams = world.extra["upstreams"]
    world.configure(upstreams=upstreams | {"www.example.com": upstreams["origin.test"]})
    for name, content in reading.files(text).items():
        (world.directory / name).write_text(content, encoding="utf-8")
    (world.directory / "key.txt").write_text("outside-anthropic-key\n", encoding="utf-8")
    env = world.env | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    said = {}
    for command, shown in steps(text):
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            env=env,
            cwd=world.directory,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        report = f"$ {command}\n(exit {done.returncode})\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, report
        if shown:
            assert shown in done.stdout + done.stderr, report
        else:
            assert done.returncode == 0, report
        said[command] = done.stdout
        if command.startswith("km create "):
            # The stand-in for example.com has a certificate of its own, and tunnels are not opened.
            world.km("exec", "demo", "--", "sh", "-c", "echo insecure > ~/.curlrc").assert_ok()
    assert "www.example.org" in said["km logs demo --denied"]
    inside = next(out for command, out in said.items() if "echo $ANTHROPIC_API_KEY" in command)
    assert inside.strip()
    assert "outside-anthropic-key" not in inside
