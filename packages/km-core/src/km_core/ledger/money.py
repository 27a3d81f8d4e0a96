"""
Money as integers.

The ledger counts nano-dollars (10**-9 USD, ``nusd``): the cheapest token costs far less than a
micro-dollar.  Nothing here goes through binary floating point except the last step of `usd_number`,
which is for display.
"""

from __future__ import annotations

from decimal import ROUND_DOWN, Decimal, InvalidOperation

from km_core.errors import UsageError

NUSD_PER_USD = 1_000_000_000
"""Nano-dollars in a dollar."""

MAX_USD = 1_000_000_000
"""Largest amount accepted from a person, in dollars: fits a signed 64-bit column."""


def nusd_from_usd(value: object, *, where: str = "") -> int:
    """
    Return an amount of dollars in nano-dollars.

    Args:
        value: an int, float, `Decimal` or decimal text, as a profile or a command line gives it; a
            float counts as the decimal number it prints as (``0.1`` is a tenth).
        where: dotted path or option name, for the error.

    Returns:
        Nano-dollars, rounded down: a limit is never larger than what was written.

    Raises:
        UsageError: not a number, negative, not finite, or above `MAX_USD`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise UsageError("an amount of dollars must be a number", where=where, hint="write 2 or 0.50")
    text = value.strip().removeprefix("$") if isinstance(value, str) else str(value)
    try:
        amount = Decimal(text)
    except InvalidOperation as error:
        raise UsageError(
            f"{text!r} is not an amount of dollars", where=where, hint="write 2 or 0.50"
        ) from error
    if not amount.is_finite() or amount < 0:
        raise UsageError(f"an amount of dollars must be finite and not negative, not {text}", where=where)
    if amount > MAX_USD:
        raise UsageError(f"an amount of dollars may be at most {MAX_USD}", where=where)
    return int((amount * NUSD_PER_USD).to_integral_value(rounding=ROUND_DOWN))


def format_usd(nusd: int, *, places: int = 4) -> str:
    """
    Return an amount as people read it: ``$0.1234``.

    Rounded up to *places* (0 to 9) digits, so that money spent never shows as nothing; a negative
    amount is rounded away from zero as well.
    """
    step = 10 ** (9 - places)
    whole, rest = divmod(-(-abs(nusd) // step), 10**places)
    digits = f".{rest:0{places}d}" if places else ""
    return f"{'-' if nusd < 0 else ''}${whole}{digits}"


def usd_number(nusd: int) -> float:
    """Return an amount as a JSON number of dollars; the nearest float, for display only."""
    return float(Decimal(nusd) / NUSD_PER_USD)
