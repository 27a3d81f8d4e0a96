"""The site builds without a warning and asks nothing of the network."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from sitepages import hooks, tree

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / ".cache" / "docs"
LOADS = re.compile(
    r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=\"((?:https?:)?//[^\"]+)\"|@import\s+[^;]*//|url\(['\"]?https?://"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as built by ``scripts/docs`` from these sources, or built now where it is older."""
    marker = SITE / "python"
    if not marker.exists() or not Path(marker.read_text().strip()).exists():
        pytest.skip("the docs environment is not installed; scripts/docs makes it")
    digest = SITE / "digest"
    if digest.exists() and digest.read_text().strip() == tree.digest():
        return SITE / "html"
    place = tmp_path_factory.mktemp("site")
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "PYTHONDONTWRITEBYTECODE": "1"}
    python = marker.read_text().strip()
    for command in (
        [python, "-m", "sitepages", str(place / "source")],
        [
            python,
            "-m",
            "sphinx",
            "-b",
            "html",
            "-n",
            "-W",
            "--keep-going",
            "-q",
            str(place / "source"),
            str(place / "html"),
        ],
    ):
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=110, check=False)
        assert done.returncode == 0, done.stderr
    return place / "html"


def test_every_page_is_in_the_site(site: Path) -> None:
    missing = [path for path in tree.sources() if not (site / path).with_suffix(".html").exists()]

    assert missing == []


def test_every_hook_can_be_linked_to(site: Path) -> None:
    for hook in hooks.hooks():
        assert f'id="{hook.name}"' in (site / "hooks" / f"{hook.name}.html").read_text(encoding="utf-8")


def test_no_page_loads_anything_from_the_network(site: Path) -> None:
    pages = [*site.rglob("*.html"), *site.rglob("*.css")]
    loads = {path.name: LOADS.findall(path.read_text(encoding="utf-8")) for path in pages}

    assert pages
    assert {name: found for name, found in loads.items() if found} == {}
