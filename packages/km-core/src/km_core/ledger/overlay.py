"""The operator's price overlay: ``KM_HOME/prices.json`` or the configured ``prices_file``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from km_core.errors import ConfigError

if TYPE_CHECKING:
    from km_core.config import Config


def load_overlay(config: Config) -> dict[str, Any]:
    """
    Return the overlay, empty when there is none.

    Raises:
        ConfigError: the file cannot be read or is no JSON object.
    """
    path = Path(config.prices_file).expanduser() if config.prices_file else config.home / "prices.json"
    if not config.prices_file and not path.exists():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("the price overlay cannot be read", where=str(path), why=str(error)) from error
    if not isinstance(data, dict):
        raise ConfigError("the price overlay must be a JSON object", where=str(path))
    return data
