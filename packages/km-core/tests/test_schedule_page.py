"""What docs/reference/time.md says about times is what the grammar does."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import pytest

from km_core.schedule import parse
from km_core.schedule.model import RejectCode

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "time.md"
NOW = datetime(2026, 4, 10, 12, 0, tzinfo=UTC)

pytestmark = pytest.mark.skipif(
    not PAGE.exists(), reason="the page is in the repository, not in the distribution"
)


def rows(heading):
    """The cells of a section's tables, each as the texts in code style."""
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith(("| `", "| T "))]
    return [[re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split(" | ")] for line in lines]


def test_every_recurring_form_of_the_page_becomes_what_it_says():
    shown = [(text, outcome) for texts, outcome in rows("Recurring times") for text in texts]
    made = [parse(text, NOW).expression for text, _ in shown]

    assert len(shown) > 30
    for (text, outcome), expression in zip(shown, made, strict=True):
        # The first row shows rates by way of example.
        assert expression in outcome or (expression.startswith("rate(") and len(outcome) == 2), text


def test_every_one_off_form_of_the_page_is_understood():
    texts = [
        text.replace("T", "8pm") if " T" in text or text.startswith("T ") else text
        for cells in rows("One-off times")
        for text in cells[0]
    ]

    assert len(texts) > 25
    for text in texts:
        assert parse(text, NOW).expression.startswith("at("), text


def test_every_clock_time_of_the_page_is_understood():
    texts = [text for cells in rows("Clock times")[:6] for text in cells[0]]

    assert len(texts) > 10
    for text in texts:
        assert parse(text, NOW).expression.startswith("at("), text


def test_the_codes_of_the_page_are_those_of_the_grammar_in_their_order():
    assert list(get_args(RejectCode)) == [cells[0][0] for cells in rows("Refusals")]
