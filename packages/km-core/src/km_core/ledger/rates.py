"""One model's rates as exact integers."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from km_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

UNIT = 1_000_000_000
"""Nano-dollars in a dollar: ``$3`` per million tokens is a rate of 3 * UNIT."""

_MAX_USD = Decimal(1_000_000)
_RATES = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")
_MODEL_KEYS = frozenset(
    {*_RATES, "context_window", "max_output", "web_search", "long_context", "multipliers", "retired"}
)
_LONG_KEYS = frozenset({"above", *_RATES})


@frozen
class Rates:
    """
    Prices of one model.

    Token rates are nano-dollars per million tokens (an exact integer for every published price);
    `web_search` is nano-dollars per request; multipliers are thousandths.

    Attributes:
        long_above: input size in tokens, cache reads and writes included, above which `long` holds
            for the whole call; 0 when there is no such step.
        long: the rates above that size.
        multipliers: thousandths by name (``speed:fast``).
        retired: not counted when the dearest rate is looked for.
    """

    input: int
    output: int
    cache_read: int
    cache_write_5m: int
    cache_write_1h: int
    context_window: int = 200_000
    max_output: int = 128_000
    web_search: int = 0
    long_above: int = 0
    long: Rates | None = None
    multipliers: tuple[tuple[str, int], ...] = ()
    retired: bool = False

    def at(self, input_tokens: int) -> Rates:
        """Return the rates that hold for a call with that much input in all."""
        return self.long if self.long is not None and input_tokens > self.long_above else self

    def dearest_input(self, cache_write: str = "1h") -> int:
        """Return the dearest rate an input token can get when *cache_write* is the longest cache write."""
        rate = max(self.input, self.cache_read)
        if cache_write != "none":
            rate = max(rate, self.cache_write_5m)
        if cache_write not in ("none", "5m"):
            rate = max(rate, self.cache_write_1h)
        return rate

    def multiplier(self, name: str) -> int:
        """
        Return a multiplier in thousandths.

        One that is not in the table costs as much as the dearest of its kind (the part before the
        colon), and never less than 1000.
        """
        kind = name.partition(":")[0] + ":"
        dearest = 1000
        for known, value in self.multipliers:
            if known == name:
                return value
            if known.startswith(kind):
                dearest = max(dearest, value)
        return dearest


def dearest(rates: Iterable[Rates]) -> Rates:
    """
    Return the dearest combination: per figure the maximum, with its long-context rates folded in.

    Raises:
        ValueError: there are no rates.
    """
    pool = [rate for rate in rates if not rate.retired]
    flat = pool + [rate.long for rate in pool if rate.long is not None]
    if not flat:
        raise ValueError("no rates to choose from")
    names: dict[str, int] = {}
    for rate in pool:
        for name, value in rate.multipliers:
            names[name] = max(names.get(name, 0), value)
    return Rates(
        input=max(rate.input for rate in flat),
        output=max(rate.output for rate in flat),
        cache_read=max(rate.cache_read for rate in flat),
        cache_write_5m=max(rate.cache_write_5m for rate in flat),
        cache_write_1h=max(rate.cache_write_1h for rate in flat),
        context_window=max(rate.context_window for rate in pool),
        max_output=max(rate.max_output for rate in pool),
        web_search=max(rate.web_search for rate in pool),
        multipliers=tuple(sorted(names.items())),
    )


def read_rates(data: Any, defaults: Mapping[str, Any], where: str) -> Rates:
    """
    Read one model of a price table.

    Args:
        data: the model's mapping: ``input`` and ``output`` in dollars per million tokens, the rest
            optional.
        defaults: its provider's ``cache`` factors, ``web_search`` and ``multipliers``.
        where: place in the table, for errors.

    Raises:
        ConfigError: an unknown key, a missing or impossible figure.
    """
    if not isinstance(data, dict):
        raise ConfigError("a model's prices must be a mapping", where=where)
    _known(data, _MODEL_KEYS, where)
    factors = dict(defaults.get("multipliers") or {})
    factors.update(_mapping(data.get("multipliers"), f"{where}.multipliers"))
    base = _token_rates(data, defaults.get("cache") or {}, where)
    result = evolve(
        base,
        context_window=_count(data.get("context_window", 1_000_000), f"{where}.context_window"),
        max_output=_count(data.get("max_output", 128_000), f"{where}.max_output"),
        web_search=_amount(data.get("web_search", defaults.get("web_search", 0)), f"{where}.web_search"),
        multipliers=tuple(
            (str(name), _thousandths(value, f"{where}.multipliers.{name}"))
            for name, value in sorted(factors.items())
        ),
        retired=bool(data.get("retired", False)),
    )
    long = data.get("long_context")
    if long is None:
        return result
    _known(_mapping(long, f"{where}.long_context"), _LONG_KEYS, f"{where}.long_context")
    above = _count(long.get("above"), f"{where}.long_context.above")
    higher = _token_rates(long, defaults.get("cache") or {}, f"{where}.long_context")
    step = evolve(
        result,
        **{name: max(getattr(higher, name), getattr(base, name)) for name in _RATES},
    )
    return evolve(result, long_above=above, long=step)


def _token_rates(data: Mapping[str, Any], cache: Mapping[str, Any], where: str) -> Rates:
    entry = _amount(data.get("input"), f"{where}.input")

    def derived(key: str, factor: str, default: str) -> int:
        if data.get(key) is not None:
            return _amount(data[key], f"{where}.{key}")
        thousandths = _thousandths(cache.get(factor, default), f"{where}.cache.{factor}")
        return -(-entry * thousandths // 1000)

    return Rates(
        input=entry,
        output=_amount(data.get("output"), f"{where}.output"),
        cache_read=derived("cache_read", "read", "1"),
        cache_write_5m=derived("cache_write_5m", "write_5m", "1.25"),
        cache_write_1h=derived("cache_write_1h", "write_1h", "2"),
    )


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError("expected a mapping", where=where)
    return value


def _known(data: Mapping[str, Any], keys: frozenset[str], where: str) -> None:
    for key in data:
        if key not in keys:
            raise ConfigError(
                f"unknown key {key}", where=where, hint="known keys: " + ", ".join(sorted(keys))
            )


def _decimal(value: Any, where: str) -> Decimal:
    if value is None or isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ConfigError("a price must be a number", where=where, hint='write "2.5"')
    try:
        number = Decimal(str(value))
    except InvalidOperation as error:
        raise ConfigError(f"{value!r} is not a number", where=where) from error
    if not number.is_finite() or number < 0 or number > _MAX_USD:
        raise ConfigError(f"a price must be between 0 and {_MAX_USD}, not {value}", where=where)
    return number


def _amount(value: Any, where: str) -> int:
    return int((_decimal(value, where) * UNIT).to_integral_value(rounding=ROUND_CEILING))


def _thousandths(value: Any, where: str) -> int:
    return int((_decimal(value, where) * 1000).to_integral_value(rounding=ROUND_CEILING))


def _count(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 10**9:
        raise ConfigError("a number of tokens must be a whole number", where=where)
    return value
