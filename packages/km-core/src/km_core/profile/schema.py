"""
JSON Schema (draft 2020-12) and the reference page, both read from the model's declarations.

The schema is for editors: it knows keys, types, ranges and forms of single values.  What it accepts may
still be refused by the finer rules of `km validate`; what it refuses, `km validate` refuses too.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from km_core.profile.kinds import BySubstrate, Listing, Section, Table, Text, fields_of
from km_core.profile.model import SandboxProfile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from km_core.profile.kinds import FieldInfo, Kind, PluginSection

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def profile_schema(sections: Sequence[PluginSection] = ()) -> dict[str, Any]:
    """
    Return the JSON Schema of a profile file.

    A file with ``extends`` may leave out whole sections of ``spec``, since a parent may bring them.

    Args:
        sections: sections that plugins bring, checked like the others.
    """
    definitions: dict[str, Any] = {}
    root = _object(SandboxProfile, definitions)
    for section in sections:
        definitions["Spec"]["properties"][section.key] = _reference(section.model, definitions)
    needed = definitions["Spec"].pop("required")
    return {
        "$schema": DIALECT,
        "title": "SandboxProfile v1alpha1",
        **root,
        "required": [key for key in root["required"] if key != "spec"],
        "if": {"required": ["extends"]},
        "else": {"required": ["spec"], "properties": {"spec": {"required": needed}}},
        "$defs": dict(sorted(definitions.items())),
    }


def schema_text(schema: dict[str, Any]) -> str:
    """Return a schema as the bytes that ``km schema`` prints and that are shipped for editors."""
    return json.dumps(schema, indent=2, ensure_ascii=True) + "\n"


def _object(model: type, definitions: dict[str, Any]) -> dict[str, Any]:
    fields = fields_of(model)
    result: dict[str, Any] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {key: _property(info, definitions) for key, info in fields.items()},
    }
    needed = [key for key, info in fields.items() if info.required]
    if needed:
        result["required"] = needed
    return result


def _property(info: FieldInfo, definitions: dict[str, Any]) -> dict[str, Any]:
    result = {**_kind(info.kind, definitions), "description": info.doc}
    if info.default is not None and not isinstance(info.default, BySubstrate):
        result["default"] = info.default
    return result


def _kind(kind: Kind, definitions: dict[str, Any]) -> dict[str, Any]:
    return _reference(kind.model, definitions) if isinstance(kind, Section) else kind.schema()


def _reference(model: type, definitions: dict[str, Any]) -> dict[str, Any]:
    name = model.__name__
    if name not in definitions:
        definitions[name] = {}
        definitions[name] = _object(model, definitions)
    return {"$ref": f"#/$defs/{name}"}


def reference_page() -> str:
    """Return ``docs/reference/profile.md``: every field with its type, default and meaning."""
    lines = [
        "# Profile reference",
        "",
        (
            "Every field of `klankermaker.ai/v1alpha1`, generated from the model"
            " (`km_core.profile.schema.reference_page`). A field in bold is required where its section is written."
        ),
        "",
    ]
    for path, model, doc in _sections(SandboxProfile, "", "The document."):
        lines += [f"## `{path}`" if path else "## The document", "", doc, ""]
        lines += ["| Field | Type | Default | Rule | Meaning |", "|---|---|---|---|---|"]
        for key, info in fields_of(model).items():
            name = f"**`{key}`**" if info.required else f"`{key}`"
            lines.append(
                f"| {name} | {info.kind.words()} | {_default_words(info)} | {_rule_words(info.kind)} | {info.doc} |"
            )
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def _sections(model: type, path: str, doc: str) -> Iterator[tuple[str, type, str]]:
    yield path, model, doc
    for key, info in fields_of(model).items():
        if isinstance(info.kind, Section):
            yield from _sections(info.kind.model, f"{path}.{key}" if path else key, info.doc)


def _rule_words(kind: Kind) -> str:
    """Say what a value must be beyond its type, from the docstring of the rule that checks it."""
    if isinstance(kind, Listing):
        parts = [_rule_words(kind.item)]
        parts += [f"{kind.min_items} or more"] if kind.min_items else []
        parts += ["no item twice"] if kind.unique else []
        return "; ".join(part for part in parts if part)
    if isinstance(kind, Table):
        named = [("keys", _rule_words(kind.key)), ("values", _rule_words(kind.value))]
        return "; ".join(f"{what}: {words}" for what, words in named if words)
    if not isinstance(kind, Text):
        return ""
    if kind.rule is not None:
        first = (kind.rule.__doc__ or "").strip().split("\n\n")[0].rstrip(".")
        words = " ".join(first.removeprefix("Accept ").replace("``", "`").split())
        words = re.sub(r"^an entry of `\w+`: | \(rule [A-Z]+\)", "", words)
    else:
        words = kind.says.partition(": ")[2] or kind.says.removeprefix("must be ")
        words = re.sub(r"^is (?:no|not a) ", "a ", words).replace("*", "\\*")
    if kind.max_length:
        words = f"{words}; " * bool(words) + f"at most {kind.max_length} characters"
    return words.replace("|", "\\|")


def _default_words(info: FieldInfo) -> str:
    default = info.default
    if isinstance(default, BySubstrate):
        return f"`{_plain(default.otherwise)}`; on local and docker `stdout`"
    if default is None or default == {}:
        return ""
    return f"`{_plain(default)}`"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(_plain(item) for item in value) + "]"
    return str(value) if value != "" else '""'
