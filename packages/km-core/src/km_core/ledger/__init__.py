"""Ledger arithmetic: integer money, the price table, costs and worst cases.  Pure."""

from __future__ import annotations

from km_core.ledger.models import recorded_model
from km_core.ledger.money import NUSD_PER_USD, format_usd, nusd_from_usd, usd_number
from km_core.ledger.prices import STALE_DAYS, Found, PriceTable, default_table
from km_core.ledger.pricing import Priced, affordable_output, price, worst_case_nusd
from km_core.ledger.rates import Rates

__all__ = [
    "NUSD_PER_USD",
    "STALE_DAYS",
    "Found",
    "PriceTable",
    "Priced",
    "Rates",
    "affordable_output",
    "default_table",
    "format_usd",
    "nusd_from_usd",
    "price",
    "recorded_model",
    "usd_number",
    "worst_case_nusd",
]
