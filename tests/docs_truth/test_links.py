"""Links of the pages lead to files, generated pages and headings that exist; so do names of files."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from sitepages import reading, tree

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/*/README.md")])
MADE = {f"docs/{path}": text for path, text in tree.generated().items()}


def text_of(place: str) -> str | None:
    """Return a page by its path in the repository; None when there is nothing there."""
    if place in MADE:
        return MADE[place]
    path = ROOT / place
    return path.read_text(encoding="utf-8") if path.is_file() else "" if path.is_dir() else None


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_pages_and_headings(page: Path) -> None:
    wrong = []
    for link in reading.links(page.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        named = (
            os.path.normpath(page.parent.relative_to(ROOT) / target)
            if target
            else str(page.relative_to(ROOT))
        )
        text = text_of(named)
        if text is None or (anchor and anchor not in reading.anchors(text)):
            wrong.append(link)

    assert wrong == []


@pytest.mark.parametrize("path", sorted(MADE))
def test_links_of_generated_pages_lead_to_pages(path: str) -> None:
    links = [link for link in reading.links(MADE[path]) if "://" not in link]
    missing = [
        link
        for link in links
        if text_of(os.path.normpath(Path(path).parent / link.partition("#")[0])) is None
    ]

    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_named_files_of_the_repository_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    words = re.findall(r"`((?:scripts|tests|packages|profiles|examples|bench|docs|\.ci)/[\w./-]+)`", text)
    # What a tutorial has its reader write stands in the reader's own directory.
    written = set(re.findall(r"`([\w./-]+)`:\n\n```", text))

    assert [w for w in words if not (ROOT / w).exists() and w not in MADE and w not in written] == []


def test_readme_and_root_pages_link_to_what_stands_in_the_repository() -> None:
    """A forge shows these pages, and it has no generated ones."""
    for page in ROOT.glob("*.md"):
        links = [link.partition("#")[0] for link in reading.links(page.read_text(encoding="utf-8"))]
        assert [link for link in links if "://" not in link and link and not (ROOT / link).exists()] == [], (
            page
        )


def test_every_decision_is_listed_with_its_own_title() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = dict(
        reversed(found)
        for found in re.findall(
            r"^\d+\. \[(.+)\]\((.+)\)$", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE
        )
    )
    notes = {path.name: path.read_text(encoding="utf-8").splitlines()[0] for path in folder.glob("0*.md")}

    assert {name: title.partition(". ")[2] for name, title in notes.items()} == listed
