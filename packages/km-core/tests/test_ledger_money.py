"""Money: parsing and printing."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from km_core.errors import UsageError
from km_core.ledger import format_usd, nusd_from_usd, usd_number


@pytest.mark.parametrize(
    ("value", "nusd"),
    [
        (2, 2_000_000_000),
        (0.1, 100_000_000),
        (0.5, 500_000_000),
        ("0.01", 10_000_000),
        ("$5", 5_000_000_000),
        (Decimal("0.000000001"), 1),
        ("0.0000000019", 1),
        (0, 0),
        (1e-9, 1),
        (19.99, 19_990_000_000),
    ],
)
def test_dollars_are_read_as_decimals(value, nusd):
    assert nusd_from_usd(value) == nusd


@pytest.mark.parametrize(
    "value",
    [True, None, "", "two", "NaN", "inf", float("nan"), float("inf"), -1, "-0.5", [], "1e30", "1_0 0"],
)
def test_impossible_amounts_are_refused(value):
    with pytest.raises(UsageError) as caught:
        nusd_from_usd(value, where="spec.budget.ai.maxSpendUSD")
    assert caught.value.where == "spec.budget.ai.maxSpendUSD"


@pytest.mark.parametrize(
    ("nusd", "text"),
    [
        (0, "$0.0000"),
        (1, "$0.0001"),
        (123_400_000, "$0.1234"),
        (123_400_001, "$0.1235"),
        (999_999_999, "$1.0000"),
        (2_000_000_000, "$2.0000"),
        (-50_000_000, "-$0.0500"),
    ],
)
def test_amounts_print_rounded_up(nusd, text):
    assert format_usd(nusd) == text


def test_places_can_be_chosen():
    assert format_usd(1_234_567_890, places=9) == "$1.234567890"
    assert format_usd(1_234_567_890, places=0) == "$2"


@given(st.integers(0, 10**15))
def test_text_and_number_agree_with_the_integer(nusd):
    assert nusd_from_usd(format_usd(nusd, places=9)) == nusd
    assert json.loads(json.dumps(usd_number(nusd))) == pytest.approx(nusd / 1e9)
    assert nusd_from_usd(format_usd(nusd)) >= nusd
