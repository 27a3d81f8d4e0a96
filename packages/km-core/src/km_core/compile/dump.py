"""Writing plain data as YAML that `load_document` reads back as the same data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from km_core.compile.nodes import is_plain_string

if TYPE_CHECKING:
    from collections.abc import Mapping


class _Dumper(yaml.SafeDumper):
    """
    Quotes every string that YAML 1.2 would read as something else.

    The stock dumper quotes by the rules of YAML 1.1 and would write ``1e3`` and ``0o17`` bare, which
    the loader reads as numbers; and it makes aliases of equal lists.
    """

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


def _string(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None if is_plain_string(text) else '"'
    if "\n" in text and style is None and text == "\n".join(line.rstrip() for line in text.split("\n")):
        style = "|"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _string)


def dump_document(data: Mapping[str, Any]) -> str:
    """Return *data* as YAML; the same data gives the same bytes."""
    return yaml.dump(
        dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=False, default_flow_style=False, width=110
    )
