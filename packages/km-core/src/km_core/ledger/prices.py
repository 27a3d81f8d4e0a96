"""
The price table: ``prices.json`` of this package, overlaid by the operator's own.

Look-up order of spec/metering-budget.md section 4.  An unknown model is never free: it costs the
provider's dearest rate, an unknown provider the dearest of all, and the source says ``fallback``.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from km_core.errors import ConfigError
from km_core.ledger.models import price_keys, recorded_model
from km_core.ledger.rates import Rates, dearest, read_rates

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date

STALE_DAYS = 90
"""Age in days from which ``km doctor`` warns about the table."""

_PROVIDER_KEYS = frozenset({"cache", "web_search", "multipliers", "families", "models"})
_MEMO = 256
_TABLE_KEYS = frozenset({"as_of", "source", "unit", "providers"})


@frozen
class Found:
    """
    A model's rates and where they came from.

    Attributes:
        source: ``table`` (the id or a shorter form of it), ``family`` (its family's dearest) or
            ``fallback`` (the provider's dearest, or the dearest of all).
        key: the entry that matched; empty for a fallback.
    """

    rates: Rates
    source: str
    key: str = ""


@frozen
class _Provider:
    models: Mapping[str, Rates]
    families: tuple[str, ...]
    dearest: Rates


@frozen
class PriceTable:
    """
    Rates by provider and model.

    Attributes:
        as_of: date of the figures, ISO 8601.
        source: where they were read.
        overlaid: whether an operator's table was laid over it.
    """

    as_of: str
    source: str
    overlaid: bool
    _providers: Mapping[str, _Provider]
    _dearest: Rates
    _memo: dict[tuple[str, str], Found] = field(factory=dict, eq=False, repr=False)

    @classmethod
    def load(cls, overlay: Mapping[str, Any] | None = None) -> PriceTable:
        """
        Read the package's table and lay *overlay* over it.

        Args:
            overlay: the same shape as ``prices.json``; models and providers are added or replaced
                one by one, ``families`` are added, ``as_of`` and ``source`` replace.

        Raises:
            ConfigError: the overlay has an unknown key or an impossible figure.
        """
        text = resources.files("km_core.ledger").joinpath("prices.json").read_text(encoding="utf-8")
        data: dict[str, Any] = json.loads(text)
        if overlay:
            data = _overlaid(data, overlay)
        providers = {
            name: _provider(entry, f"prices.{name}") for name, entry in sorted(data["providers"].items())
        }
        return cls(
            as_of=str(data["as_of"]),
            source=str(data["source"]),
            overlaid=bool(overlay),
            providers=providers,
            dearest=dearest(entry.dearest for entry in providers.values()),
        )

    def age_days(self, today: date) -> int:
        """Return how many days old the figures are; ``km doctor`` warns from `STALE_DAYS`."""
        from datetime import date as date_type

        return (today - date_type.fromisoformat(self.as_of)).days

    def find(self, provider: str, model: str) -> Found:
        """Return the rates of *model*, in any form a request or an answer may name it."""
        memo = self._memo.get((provider, model))
        if memo is None:
            memo = self._find(provider, recorded_model(model))
            # Model names come from inside the sandbox: the memory of them is bounded.
            if len(self._memo) >= _MEMO:
                self._memo.clear()
            if len(model) <= _MEMO:
                self._memo[provider, model] = memo
        return memo

    def _find(self, provider: str, model: str) -> Found:
        entry = self._providers.get(provider)
        if entry is None:
            # Servers that speak a provider's API sell its models until the operator prices them.
            entry = self._providers.get(provider.removesuffix("-compatible"))
        if entry is None:
            return Found(self._dearest, "fallback")
        for key in price_keys(model):
            if key in entry.models:
                return Found(entry.models[key], "table", key)
        keys = tuple(price_keys(model))
        for prefix in entry.families:
            if any(key.startswith(prefix) for key in keys):
                members = [rates for name, rates in entry.models.items() if name.startswith(prefix)]
                return Found(dearest(members), "family", prefix)
        return Found(entry.dearest, "fallback")


@lru_cache(maxsize=1)
def default_table() -> PriceTable:
    """Return the package's own table, read once."""
    return PriceTable.load()


def _provider(data: Any, where: str) -> _Provider:
    if not isinstance(data, dict):
        raise ConfigError("a provider's prices must be a mapping", where=where)
    unknown = sorted(set(data) - _PROVIDER_KEYS)
    if unknown:
        raise ConfigError(
            f"unknown key {unknown[0]}", where=where, hint="known keys: " + ", ".join(sorted(_PROVIDER_KEYS))
        )
    entries = data.get("models")
    if not isinstance(entries, dict) or not entries:
        raise ConfigError("a provider needs at least one model", where=where)
    models = {
        str(name).lower(): read_rates(entry, data, f"{where}.{name}") for name, entry in entries.items()
    }
    if all(rates.retired for rates in models.values()):
        raise ConfigError("a provider needs a model that is not retired", where=where)
    families = data.get("families") or []
    if not isinstance(families, list) or not all(isinstance(prefix, str) and prefix for prefix in families):
        raise ConfigError("families must be a list of prefixes", where=where)
    useful = [
        prefix.lower()
        for prefix in families
        if any(name.startswith(prefix.lower()) and not rates.retired for name, rates in models.items())
    ]
    return _Provider(
        models=models,
        families=tuple(sorted(set(useful), key=lambda prefix: (-len(prefix), prefix))),
        dearest=dearest(models.values()),
    )


def _overlaid(base: dict[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    where = "the operator's prices"
    unknown = sorted(str(key) for key in set(overlay) - _TABLE_KEYS)
    if unknown:
        raise ConfigError(
            f"unknown key {unknown[0]}", where=where, hint="known keys: " + ", ".join(sorted(_TABLE_KEYS))
        )
    result = {**base, **{key: overlay[key] for key in ("as_of", "source") if key in overlay}}
    added = overlay.get("providers", {})
    if not isinstance(added, dict):
        raise ConfigError("providers must be a mapping", where=where)
    providers = dict(base["providers"])
    for name, entry in added.items():
        if not isinstance(entry, dict):
            raise ConfigError("a provider's prices must be a mapping", where=f"{where}: {name}")
        old = providers.get(name, {})
        merged = {**old, **entry}
        for key in ("models", "multipliers", "cache"):
            own = entry.get(key, {})
            if not isinstance(own, dict):
                raise ConfigError(f"{key} must be a mapping", where=f"{where}: {name}")
            merged[key] = {**old.get(key, {}), **own}
        families = entry.get("families", [])
        merged["families"] = [*old.get("families", []), *(families if isinstance(families, list) else [None])]
        providers[name] = merged
    result["providers"] = providers
    return result
