"""
The kinds of value a profile field may hold, and how a model class declares its fields.

This is the one declarative source: the validator (`km_core.compile.convert`), the JSON Schema
(`km_core.profile.schema`) and the reference page are all read from it.
"""

from __future__ import annotations

import json
import math
import re
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_SIMPLE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_INFO = "km"


@frozen
class Defect:
    """What is wrong with one value: a clause that follows the path, and what to write instead."""

    message: str
    hint: str = ""
    code: str = "profile-value"


class RuleError(ValueError):
    """Raised by the rule of a `Text`: *message* follows the path, *hint* says what to write."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@cache
def compiled(pattern: str) -> re.Pattern[str]:
    """Return the compiled pattern; compiled on first use so that importing the model stays cheap."""
    return re.compile(pattern)


def describe(value: object) -> str:
    """Name a plain value and its type for people: ``the integer 0``, ``a mapping``, ``null``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the boolean {json.dumps(value)}"
    if isinstance(value, int):
        return f"the integer {value}"
    if isinstance(value, float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the string {shown(value)}"
    return "a list" if isinstance(value, list) else "a mapping"


def shown(text: str, limit: int = 60) -> str:
    """Quote *text* for a message, shortened; control characters are escaped."""
    return json.dumps(text if len(text) <= limit else text[: limit - 1] + "…", ensure_ascii=False)


def join(path: str, key: str) -> str:
    """Return the dotted path of *key* below *path*; a key that is no plain word is quoted in brackets."""
    if _SIMPLE_KEY.fullmatch(key) is None:
        return f"{path}[{json.dumps(key, ensure_ascii=False)}]"
    return f"{path}.{key}" if path else key


@frozen
class Text:
    """
    A string.

    Attributes:
        pattern: regular expression for the whole string, without anchors (also in the JSON Schema).
        says: the clause shown when it does not match (``must be …``).
        example: a value to show as the hint.
        multiline: whether line breaks and tabs may occur; NUL never may.
        rule: a finer check than the pattern; raises `ValueError` or `RuleError`.
    """

    pattern: str = ""
    says: str = ""
    example: str = ""
    min_length: int = 0
    max_length: int = 0
    multiline: bool = False
    rule: Callable[[str], object] | None = None

    def defect(self, value: object) -> Defect | None:
        """Return what is wrong with *value*, or None."""
        if not isinstance(value, str):
            quoted = json.dumps(value) if isinstance(value, (bool, int, float)) else ""
            hint = f'quote it: "{quoted}"' if quoted else ""
            return Defect(f"must be a string, not {describe(value)}", hint, "profile-type")
        if len(value) < self.min_length:
            return Defect("must not be empty", self._hint())
        if self.max_length and len(value) > self.max_length:
            return Defect(f"must have at most {self.max_length} characters, has {len(value)}")
        if "\x00" in value:
            return Defect("holds a NUL character")
        if not self.multiline and _CONTROL.search(value):
            return Defect(f"holds a control character: {shown(value)}")
        if self.rule is not None:
            try:
                self.rule(value)
            except RuleError as error:
                return Defect(f"{shown(value)} {error}", error.hint or self._hint())
            except ValueError as error:
                return Defect(f"{shown(value)} {error}", self._hint())
        if self.pattern and compiled(self.pattern).fullmatch(value) is None:
            return Defect(f"{shown(value)} {self.says or 'has the wrong form'}", self._hint())
        return None

    def _hint(self) -> str:
        return f"for example {self.example}" if self.example else ""

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of this kind."""
        result: dict[str, Any] = {"type": "string"}
        if self.min_length:
            result["minLength"] = self.min_length
        if self.max_length:
            result["maxLength"] = self.max_length
        if self.pattern:
            result["pattern"] = f"^(?:{self.pattern})$"
        if self.example:
            result["examples"] = [self.example]
        return result

    def words(self) -> str:
        """Name the kind for the reference page."""
        return "string"


@frozen
class Choice:
    """
    One of a few strings.

    Attributes:
        values: the strings.
        also: regular expression of further ones.
        extensible: whether installed plugins bring further ones; the JSON Schema cannot know them.
    """

    values: tuple[str, ...]
    also: str = ""
    extensible: bool = False

    def defect(self, value: object, more: tuple[str, ...] = ()) -> Defect | None:
        """Return what is wrong with *value*, or None; *more* are further allowed values."""
        if not isinstance(value, str):
            message = f"must be a string, not {describe(value)}"
            hint = "one of " + ", ".join(self.values)
            return Defect(message, hint, "profile-type")
        allowed = self.values
        if self.extensible:
            allowed += tuple(name for name in more if name not in allowed)
        if value in allowed or (self.also and compiled(self.also).fullmatch(value)):
            return None
        near = nearest(value, allowed)
        listed = ", ".join(shown(name) for name in allowed)
        message = f"must be {listed}" if len(allowed) == 1 else f"must be one of {listed}"
        return Defect(f"{message}, not {shown(value)}", f"did you mean {near}?" if near else "")

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of this kind."""
        if len(self.values) == 1:
            return {"const": self.values[0]}
        names: dict[str, Any] = {"enum": list(self.values)}
        further = "[a-z][a-z0-9-]*" if self.extensible else self.also
        return {"anyOf": [names, {"type": "string", "pattern": f"^(?:{further})$"}]} if further else names

    def words(self) -> str:
        """Name the kind for the reference page."""
        listed = [f"`{value}`" if value else "empty" for value in self.values]
        if self.also:
            listed.append(f"`{self.also}`")
        return " \\| ".join(listed)


@frozen
class Flag:
    """A boolean; only ``true`` and ``false`` are (YAML 1.2)."""

    def defect(self, value: object) -> Defect | None:
        """Return what is wrong with *value*, or None."""
        if isinstance(value, bool):
            return None
        word = value.lower() if isinstance(value, str) else ""
        truth = {"yes": "true", "on": "true", "true": "true", "no": "false", "off": "false", "false": "false"}
        hint = f"write {truth[word]}, without quotes" if word in truth else "write true or false"
        return Defect(f"must be a boolean, not {describe(value)}", hint, "profile-type")

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of this kind."""
        return {"type": "boolean"}

    def words(self) -> str:
        """Name the kind for the reference page."""
        return "boolean"


@frozen
class Number:
    """A finite number; with *whole* an integer (an integral float such as ``15.0`` counts)."""

    minimum: int
    maximum: int
    whole: bool = False

    def defect(self, value: object) -> Defect | None:
        """Return what is wrong with *value*, or None; a boolean is no number."""
        noun = "an integer" if self.whole else "a number"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            hint = "remove the quotes" if isinstance(value, str) and _looks_numeric(value) else ""
            return Defect(f"must be {noun}, not {describe(value)}", hint, "profile-type")
        if not math.isfinite(value):
            return Defect("must be finite")
        if self.whole and isinstance(value, float) and not value.is_integer():
            return Defect(f"must be an integer, not {describe(value)}", code="profile-type")
        if not self.minimum <= value <= self.maximum:
            return Defect(f"must be between {self.minimum} and {self.maximum}, not {value}")
        return None

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of this kind."""
        kind = "integer" if self.whole else "number"
        return {"type": kind, "minimum": self.minimum, "maximum": self.maximum}

    def words(self) -> str:
        """Name the kind for the reference page."""
        return f"{'integer' if self.whole else 'number'} {self.minimum}…{self.maximum}"


@frozen
class Listing:
    """A list of scalars of one kind."""

    item: Scalar
    min_items: int = 0
    unique: bool = False

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of this kind."""
        result: dict[str, Any] = {"type": "array", "items": self.item.schema()}
        if self.min_items:
            result["minItems"] = self.min_items
        if self.unique:
            result["uniqueItems"] = True
        return result

    def words(self) -> str:
        """Name the kind for the reference page."""
        return f"list of {self.item.words()}"


@frozen
class Table:
    """An open mapping from strings to strings; the only places where keys are the author's own."""

    key: Text
    value: Text

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of this kind."""
        return {
            "type": "object",
            "propertyNames": self.key.schema(),
            "additionalProperties": self.value.schema(),
        }

    def words(self) -> str:
        """Name the kind for the reference page."""
        return "mapping of strings"


@frozen
class Section:
    """A mapping with fixed keys, described by an attrs class."""

    model: type

    def words(self) -> str:
        """Name the kind for the reference page."""
        return "mapping"


Scalar: TypeAlias = Text | Choice | Flag | Number
Kind: TypeAlias = Scalar | Listing | Table | Section


@frozen
class BySubstrate:
    """A default that depends on where the sandbox runs."""

    values: Mapping[str, Any]
    otherwise: Any

    def pick(self, substrate: str) -> Any:
        """Return the default for *substrate*."""
        return self.values.get(substrate, self.otherwise)


@frozen
class FieldInfo:
    """
    One field of a model class.

    Attributes:
        name: attribute of the attrs class.
        key: spelling in the document.
        default: plain data filled in when the field is absent; None leaves it absent.
    """

    name: str
    key: str
    kind: Kind
    required: bool
    default: Any
    doc: str


def required(key: str, kind: Kind, doc: str) -> Any:
    """Declare a field that the merged document must have."""
    return field(metadata={_INFO: (key, kind, True, None, doc)})


def optional(key: str, kind: Kind, doc: str, *, default: Any = None) -> Any:
    """
    Declare a field that may be left out.

    Args:
        key: spelling in the document.
        kind: what it may hold.
        doc: one line for the reference page and the schema.
        default: plain data to fill in, or `BySubstrate`; None keeps "unset" apart from every value.
    """
    return field(default=None, metadata={_INFO: (key, kind, False, default, doc)})


@cache
def fields_of(model: type) -> Mapping[str, FieldInfo]:
    """Return the declared fields of a model class by their key in the document."""
    result = {}
    for attribute in attrs.fields(model):
        if _INFO in attribute.metadata:
            key, kind, needed, default, doc = attribute.metadata[_INFO]
            result[key] = FieldInfo(attribute.name, key, kind, needed, default, doc)
    return result


@frozen
class PluginSection:
    """
    A section ``spec.KEY`` that a plugin brings, checked as strictly as the built-in ones.

    Attributes:
        key: the key below ``spec``.
        model: attrs class whose fields are declared with `required` and `optional`.
        distribution: who brings it, for messages.
    """

    key: str
    model: type
    distribution: str


def nearest(word: str, known: tuple[str, ...] | list[str]) -> str:
    """Return the known word within edit distance 2 of *word* (or equal but for case), or nothing."""
    best, best_distance = "", 3
    for candidate in known:
        distance = 0 if candidate.casefold() == word.casefold() else edit_distance(word, candidate, 2)
        # A two-letter slip in a three-letter word is another word.
        if distance < best_distance and distance < len(candidate):
            best, best_distance = candidate, distance
    return best


def edit_distance(left: str, right: str, limit: int) -> int:
    """Return the number of insertions, deletions, changes and neighbour swaps; above *limit*: limit + 1."""
    if abs(len(left) - len(right)) > limit:
        return limit + 1
    before: list[int] = []
    previous = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        current = [i]
        for j, b in enumerate(right, 1):
            cost = min(previous[j] + 1, current[j - 1] + 1, previous[j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and left[i - 2] == b:
                cost = min(cost, before[j - 2] + 1)
            current.append(cost)
        if min(current) > limit:
            return limit + 1
        before, previous = previous, current
    return min(previous[-1], limit + 1)


def _looks_numeric(text: str) -> bool:
    return re.fullmatch(r"[-+]?[0-9]+(?:\.[0-9]*)?", text) is not None
