"""
Model ids: the recorded form and the forms under which a price may be filed.

Rules of spec/metering-budget.md section 2 ("Model id") and section 4 ("Look-up order").
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterator

VENDORS = frozenset(
    {
        "ai21",
        "amazon",
        "anthropic",
        "cohere",
        "deepseek",
        "google",
        "luma",
        "meta",
        "minimax",
        "mistral",
        "moonshot",
        "nvidia",
        "openai",
        "qwen",
        "stability",
        "twelvelabs",
        "writer",
        "zai",
    }
)
"""Vendors whose name may follow a geography prefix or precede a model name."""

GEOGRAPHIES = frozenset({"us", "eu", "apac", "ap", "jp", "au", "ca", "us-gov", "global"})
"""Prefixes of cross-region inference profiles."""

_ARN = re.compile(r"arn:aws(?:-[a-z]+)*:bedrock:[^:]*:[^:]*:(?P<kind>[a-z-]+)/(?P<name>.+)\Z")
_NAMED = frozenset({"foundation-model", "inference-profile"})
_BRACKET = re.compile(r"\[[^\[\]]*\]\Z")
_VERSION = re.compile(r"-v\d+(?::\d+)?(?::\d+[km])?\Z|:\d+\Z")
_DATE = re.compile(r"(?:-20\d{6}|-20\d\d-\d\d-\d\d|@20\d{6}|-latest|@latest)\Z")
_MAX_LENGTH = 256


def recorded_model(text: object) -> str:
    """
    Return the id under which a model is recorded, or an empty string when *text* names none.

    Resource names of one provider give the model they name (or ``type/ID`` when that is opaque), a
    geography prefix before a known vendor and a trailing bracket suffix are dropped, letters are
    lower-cased; vendor, date and version stay.
    """
    if not isinstance(text, str):
        return ""
    name = text.strip()[:_MAX_LENGTH]
    if "%" in name:
        name = unquote(name)
    if match := _ARN.match(name):
        kind = match["kind"]
        name = match["name"] if kind in _NAMED else f"{kind}/{match['name']}"
    name = _BRACKET.sub("", name.lower())
    head, _, tail = name.partition(".")
    if head in GEOGRAPHIES and tail.partition(".")[0] in VENDORS and "." in tail:
        name = tail
    return name


def price_keys(model: str) -> Iterator[str]:
    """
    Yield the keys under which the price of a recorded *model* may be filed, most exact first.

    The id itself; without vendor prefix and version; without the date as well.
    """
    seen: set[str] = set()
    bare = _without_vendor(model)
    short = _VERSION.sub("", bare)
    for key in (model, bare, short, _DATE.sub("", short), _DATE.sub("", bare)):
        if key and key not in seen:
            seen.add(key)
            yield key


def _without_vendor(model: str) -> str:
    for separator in (".", "/"):
        head, found, tail = model.partition(separator)
        if found and head in VENDORS:
            return tail
    return model
