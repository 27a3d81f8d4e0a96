"""
Strict YAML with positions (spec/profile.md section 2).

libyaml composes the node graph once and the plain data is made from it here, by the rules of YAML 1.2
core: nothing is ever constructed from a tag.  Every cap is checked before the work it bounds: depth and
size of the text before composing (libyaml recurses on the C stack), the size of the expanded tree before
it is built.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from attrs import field, frozen

from km_core.compile.nodes import (
    COLLECTION,
    MAX_DEPTH,
    MAX_NODES,
    PLAIN,
    QUOTED,
    NodeBuilder,
    Position,
    RefusedError,
    place_of,
)
from km_core.errors import ProfileError
from km_core.types import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_BYTES = 256 * 1024

_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Besides the C0 controls: C1 and the two Unicode separators, which YAML 1.1 takes for line breaks and a
# reader does not see as such; a byte order mark inside; and the bidirectional controls that make text
# read otherwise than it is (CVE-2021-42574).
_REFUSED_CHARACTER = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)
_BARE_TAG = re.compile(r"(?:^|[\s\[{,:-])!(?=\s)", re.MULTILINE)
# A carriage return alone is a line break too.
_BLOCK_START = re.compile(r"(?:^|\r)[ \t]*(?:[-?:][ \t]+)*", re.MULTILINE)
_STRUCTURE = re.compile(r"[,:\[{\n?-]")
_SAFE_DEPTH = 200
_ABOUT_KEYS = frozenset({"profile-unknown-key", "profile-key"})


class _Composer(_BASE):  # type: ignore[misc]  # the base is picked at run time
    """The stock loader with its YAML 1.1 resolver replaced: it only says how a node was written."""

    def resolve(self, kind: type, value: str | None, implicit: tuple[bool, bool] | bool | None) -> Any:  # noqa: ARG002 - the signature is PyYAML's
        if kind is not yaml.ScalarNode:
            return COLLECTION
        return PLAIN if isinstance(implicit, tuple) and implicit[0] else QUOTED


@frozen
class Document:
    """
    One YAML document as plain data.

    Attributes:
        file: its name in messages.
        data: mappings, lists and scalars; an empty mapping when nothing could be read.
        positions: dotted path to position: of the value for scalars, of the key for mappings and lists.
        keys: dotted path to position of the key.
        problems: what is wrong with the YAML.
        bad: paths whose value could not be read; `data` holds None there.
        usable: whether the root is a mapping, so that it can be checked further.
    """

    file: str
    data: dict[str, Any] = field(factory=dict)
    positions: Mapping[str, Position] = field(factory=dict)
    keys: Mapping[str, Position] = field(factory=dict)
    problems: tuple[Problem, ...] = ()
    bad: frozenset[str] = frozenset()
    usable: bool = False

    def position(self, path: str) -> Position:
        """Return where *path* is, or its nearest ancestor; the start of the document as the last resort."""
        for candidate in ancestry(path):
            found = self.positions.get(candidate)
            if found is not None:
                return found
        return self.positions.get("$", (1, 1))

    def placed(self, problem: Problem) -> Problem:
        """Return *problem* with this document's file and position."""
        if problem.code in _ABOUT_KEYS and problem.path in self.keys:
            line, column = self.keys[problem.path]
        else:
            line, column = self.position(problem.path)
        return at(problem, self.file, line, column)


def at(problem: Problem, file: str, line: int, column: int) -> Problem:
    """Return *problem* with a place."""
    return Problem(
        problem.path, problem.message, problem.severity, problem.hint, file, line, column, problem.code
    )


def ancestry(path: str) -> Iterator[str]:
    """Yield *path* and the paths above it, nearest first."""
    while path and path != "$":
        yield path
        if path.endswith('"]'):
            path = path[: path.rfind('["')]  # a quote inside the key is escaped, so this is its start
        elif path.endswith("]"):
            path = path[: path.rfind("[")]
        else:
            path = path.rpartition(".")[0]


def load_document(source: Path | str | bytes, *, file: str | None = None) -> Document:
    """
    Read one YAML document.

    Args:
        source: a `Path` to read, or the text itself.
        file: name in messages; the path by default.

    Returns:
        The document; a bad one carries problems and is never an exception.

    Raises:
        ProfileError: the file cannot be read at all.
    """
    name = file if file is not None else (str(source) if isinstance(source, Path) else "<text>")
    data = _read(source) if isinstance(source, Path) else source
    try:
        text = _decode(data)
        _guard(text)
        node = _compose(text)
        builder = NodeBuilder(name)
        builder.measure(node)
    except RefusedError as error:
        problem = Problem("$", str(error), hint=error.hint, code="profile-syntax")
        return Document(name, problems=(at(problem, name, *error.place),))
    content = builder.root(node)
    return Document(
        name,
        content,
        builder.positions,
        builder.keys,
        tuple(builder.problems),
        frozenset(builder.bad),
        usable=True,
    )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ProfileError(
            "the file cannot be read", where=str(path), why=error.strerror or str(error)
        ) from error


def _decode(data: str | bytes) -> str:
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogatepass")
    if len(data) > MAX_BYTES:
        raise RefusedError(f"the file is larger than {MAX_BYTES // 1024} KiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = before.count(b"\n") + 1
        column = len(before.rpartition(b"\n")[2].decode("utf-8", "replace")) + 1
        raise RefusedError("the file is not UTF-8", (line, column), "save it as UTF-8") from None
    found = _REFUSED_CHARACTER.search(text)
    if found is not None:
        place = _text_place(text, found.start())
        hint = f'inside double quotes write it as "\\u{ord(found[0]):04x}"'
        raise RefusedError(f"holds the control character U+{ord(found[0]):04X}", place, hint)
    return text


def _text_place(text: str, offset: int) -> Position:
    before = text[:offset]
    return before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1


def _guard(text: str) -> None:
    """Refuse what composing could not bear, by a cheap upper bound first and the event stream after."""
    flow = text.count("[") + text.count("{")
    block = max((match.end() - match.start() for match in _BLOCK_START.finditer(text)), default=0)
    nodes = len(_STRUCTURE.findall(text))
    if flow + block > _SAFE_DEPTH or 2 * nodes > MAX_NODES:
        _scan_events(text)
    bare = _BARE_TAG.search(text)
    if bare is not None:
        _scan_tags(text)


def _scan_events(text: str) -> None:
    depth = nodes = 0
    try:
        for event in yaml.parse(text, Loader=_BASE):
            if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
                depth += 1
            elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
                depth -= 1
                continue
            elif not isinstance(event, (yaml.ScalarEvent, yaml.AliasEvent)):
                continue
            nodes += 1
            if depth > MAX_DEPTH:
                raise RefusedError(f"is nested deeper than {MAX_DEPTH} levels", place_of(event))
            if nodes > MAX_NODES:
                raise RefusedError(f"has more than {MAX_NODES} nodes", place_of(event))
    except yaml.YAMLError as error:
        raise _yaml_error(error) from None


def _scan_tags(text: str) -> None:
    """Refuse the tag ``!``, which libyaml drops without a trace in the node."""
    try:
        for token in yaml.scan(text, Loader=_BASE):
            if isinstance(token, yaml.TagToken) and token.value == (None, "!"):
                raise RefusedError("the tag ! is not allowed", place_of(token), "remove the tag")
    except yaml.YAMLError as error:
        raise _yaml_error(error) from None


def _compose(text: str) -> yaml.MappingNode:
    loader = _Composer(text)
    try:
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        raise _yaml_error(error) from None
    finally:
        loader.dispose()
    if node is None:
        raise RefusedError("the file holds no document")
    if not isinstance(node, yaml.MappingNode):
        raise RefusedError(
            "must be a mapping", place_of(node), "start with apiVersion: klankermaker.ai/v1alpha1"
        )
    return node


def _yaml_error(error: yaml.YAMLError) -> RefusedError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    place = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
    problem = getattr(error, "problem", None) or str(error)
    context = getattr(error, "context", None) or ""
    if context.startswith("expected a single document"):
        return RefusedError("holds more than one document", place, "keep one document in a file")
    hint = "indent with blanks, not tabs" if "\\t" in problem or "cannot start any token" in problem else ""
    return RefusedError(f"is not valid YAML: {problem}" + (f" {context}" if context else ""), place, hint)
