"""
Plain data from a YAML node graph, by the rules of YAML 1.2 core (spec/profile.md section 2).

An alias is the same node object as its anchor: sizes of expansions are sums that are checked before
anything is expanded, and nothing is ever constructed from a tag.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml
from attrs import define, field

from km_core.profile.kinds import join, shown
from km_core.types import Problem, Severity

MAX_DEPTH = 32
MAX_NODES = 10_000

Position = tuple[int, int]
"""Line and column, both from 1."""

_CORE = "tag:yaml.org,2002:"
_SCALAR_TAGS = frozenset(_CORE + name for name in ("str", "int", "float", "bool", "null"))
_CONSTANTS: dict[str, object] = {"": None, "~": None}
_CONSTANTS |= dict.fromkeys(("null", "Null", "NULL"))
_CONSTANTS |= dict.fromkeys(("true", "True", "TRUE"), True)
_CONSTANTS |= dict.fromkeys(("false", "False", "FALSE"), False)
_BOOLS = frozenset(word for word, value in _CONSTANTS.items() if isinstance(value, bool))

# YAML 1.2.2 section 10.3.2, with the octal of 1.1 read as decimal.
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_NUMBER_START = frozenset("+-.0123456789")
_MAX_DIGITS = 40


class Mark:
    """Tag of a node that has none: an object, so that no tag in a file can equal it."""


PLAIN, QUOTED, COLLECTION = Mark(), Mark(), Mark()


class RefusedError(Exception):
    """The document as a whole cannot be read."""

    def __init__(self, message: str, place: Position = (1, 1), hint: str = "") -> None:
        super().__init__(message)
        self.place = place
        self.hint = hint


def place_of(marked: Any) -> Position:
    """Return the position of a node, an event or a token."""
    return marked.start_mark.line + 1, marked.start_mark.column + 1


def _tag(node: Any) -> str | Mark:
    """Return a node's tag as written, or how it was written when it has none."""
    tag: str | Mark = node.tag
    return tag


def _number(text: str) -> int | float | None:
    """Return the number that *text* is in YAML 1.2 core; None when it is none.  May be infinite."""
    if _INT.fullmatch(text) is not None:
        if len(text) > _MAX_DIGITS:
            return math.inf
        base = {"0x": 16, "0o": 8}.get(text[:2], 10)
        return int(text[2:] if base != 10 else text, base)
    if _FLOAT.fullmatch(text) is not None:
        return float(text)
    return math.inf if _NOT_FINITE.fullmatch(text) is not None else None


def is_plain_string(text: str) -> bool:
    """Say whether *text* written without quotes would be read as that string, as far as types go."""
    return text not in _CONSTANTS and text != "<<" and _number(text) is None


@define
class NodeBuilder:
    """Makes plain data of a node graph; `measure` must have run first."""

    file: str
    positions: dict[str, Position] = field(factory=dict)
    keys: dict[str, Position] = field(factory=dict)
    problems: dict[Problem, None] = field(factory=dict)
    bad: set[str] = field(factory=set)
    _sizes: dict[int, tuple[int, int]] = field(factory=dict)
    _built: set[int] = field(factory=set)

    def measure(self, root: yaml.Node) -> None:
        """
        Check the caps on the expanded tree without expanding it.

        An alias is the same node object as its anchor, so each node is visited once and the sizes of
        the expansions are sums.  An anchor stands before its aliases: the recursion is as deep as the
        text, which `_guard` has bounded.
        """
        nodes, depth = self._measure(root)
        if depth > MAX_DEPTH:
            raise RefusedError(f"is nested deeper than {MAX_DEPTH} levels", place_of(root))
        if nodes > MAX_NODES:
            raise RefusedError(f"expands to more than {MAX_NODES} nodes", place_of(root))

    def _measure(self, node: yaml.Node) -> tuple[int, int]:
        known = self._sizes.get(id(node))
        if known is not None:
            if known == (0, 0):
                raise RefusedError("holds an alias to what contains it", place_of(node))
            return known
        if isinstance(node, yaml.ScalarNode):
            size = (1, 0)
        else:
            self._sizes[id(node)] = (0, 0)
            total = deepest = 0
            for child in node.value:
                for part in child if isinstance(child, tuple) else (child,):
                    nodes, depth = self._measure(part)
                    total += nodes
                    deepest = max(deepest, depth)
            size = (total + 1, deepest + 1)
        self._sizes[id(node)] = size
        return size

    def root(self, node: yaml.MappingNode) -> dict[str, Any]:
        """Return the document's mapping."""
        self.positions["$"] = place_of(node)
        if _tag(node) not in (COLLECTION, _CORE + "map"):
            self._report_tag(node, "$", node)
        return self._mapping(node, "")

    def _mapping(self, node: yaml.MappingNode, path: str) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, (key_node, value_node) in self._entries(node, path).items():
            below = join(path, key)
            self.keys[below] = place_of(key_node)
            result[key] = self._value(value_node, below, key_node)
        return result

    def _entries(self, node: yaml.MappingNode, path: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Return a mapping's own entries and then those of its merge keys; own ones win, earlier ones win."""
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if _tag(key_node) is PLAIN and key_node.value == "<<" and not key_node.style:
                if merged:
                    self._report(join(path, "<<"), "is written twice", key_node, "profile-duplicate")
                merged += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                continue
            key = self._key(key_node, path)
            if key is None:
                continue
            if key in own:
                self._report(join(path, key), "is written twice", key_node, "profile-duplicate")
                continue
            own[key] = (key_node, value_node)
        for source in merged:
            if not isinstance(source, yaml.MappingNode):
                self._report(join(path, "<<"), "must merge a mapping", source, "profile-syntax")
                continue
            for key, entry in self._entries(source, path).items():
                own.setdefault(key, entry)
        return own

    def _key(self, node: yaml.Node, path: str) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self._report(path or "$", "has a key that is not a string", node, "profile-type")
            return None
        key = self._scalar(node, path or "$", node, is_key=True)
        if isinstance(key, str):
            return key
        if key is not _FAILED:
            hint = f'quote it: "{node.value}"' if node.value else ""
            message = f"has the key {node.value or 'null'}, which is not a string"
            self._report(path or "$", message, node, "profile-type", hint)
        return None

    def _value(self, node: yaml.Node, path: str, key_node: yaml.Node) -> Any:
        again = id(node) in self._built
        self._built.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            # An alias has the position of its anchor, and an absent value that of the next token.
            placed = key_node if again or (not node.value and not node.style) else node
            self.positions[path] = place_of(placed)
            value = self._scalar(node, path, placed)
            if value is _FAILED:
                self.bad.add(path)
                return None
            return value
        self.positions[path] = place_of(key_node)
        wanted = _CORE + ("map" if isinstance(node, yaml.MappingNode) else "seq")
        if _tag(node) not in (COLLECTION, wanted):
            self._report_tag(node, path, node)
            self.bad.add(path)
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        return [self._value(item, f"{path}[{index}]", item) for index, item in enumerate(node.value)]

    def _scalar(self, node: yaml.ScalarNode, path: str, placed: yaml.Node, *, is_key: bool = False) -> Any:
        tag, text = _tag(node), node.value
        if tag is PLAIN and not node.style:
            if text in _CONSTANTS:
                return _CONSTANTS[text]
            if text[0] not in _NUMBER_START:
                return text
            value = _number(text)
            return text if value is None else self._checked(value, text, path, placed, is_key=is_key)
        if isinstance(tag, Mark) or tag == _CORE + "str":
            return text
        if tag not in _SCALAR_TAGS:
            self._report_tag(node, path, placed)
            return _FAILED
        value = _number(text)
        name = tag.removeprefix(_CORE)
        if name == "int" and isinstance(value, int):
            return self._checked(value, text, path, placed, is_key=is_key)
        if name == "float" and value is not None:
            return self._checked(float(value), text, path, placed, is_key=is_key)
        if (name == "bool" and text in _BOOLS) or (
            name == "null" and text in _CONSTANTS and text not in _BOOLS
        ):
            return _CONSTANTS[text]
        self._report(path, f"{shown(text)} is no !!{name} of YAML 1.2", placed, "profile-type")
        return _FAILED

    def _checked(self, value: Any, text: str, path: str, placed: yaml.Node, *, is_key: bool) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            message = "does not fit 64 bits" if _INT.fullmatch(text) else "is not a finite number"
        elif not isinstance(value, float) and not -(2**63) <= value < 2**63:
            message = "does not fit 64 bits"
        else:
            return value
        if is_key:
            message = f"has the key {shown(text)}, which is not a string"
            self._report(path, message, placed, "profile-type")
            return _FAILED
        self._report(path, f"{shown(text)} {message}", placed, "profile-value")
        return _FAILED

    def _report_tag(self, node: yaml.Node, path: str, placed: yaml.Node) -> None:
        tag = str(_tag(node)).replace(_CORE, "!!")
        self._report(path, f"the tag {shown(tag)} is not allowed", placed, "profile-tag", "remove the tag")

    def _report(self, path: str, message: str, node: yaml.Node, code: str, hint: str = "") -> None:
        line, column = place_of(node)
        self.problems[Problem(path, message, Severity.ERROR, hint, self.file, line, column, code)] = None


_FAILED = object()
