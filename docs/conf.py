"""Sphinx configuration; ``scripts/docs`` assembles the sources beside a copy of this file and builds them."""

# ruff: noqa: INP001 - Sphinx reads this file by its name

from __future__ import annotations

import re
from importlib.metadata import version as installed
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "Klanker Maker"
author = "the km contributors"
copyright = author  # noqa: A001 - Sphinx's name for it
version = release = installed("km-core")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
root_doc = "index"

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "deflist"]
suppress_warnings = ["myst.strikethrough"]

nitpicky = True
# Only km's own names are to be resolved; types of the standard library and of others are not linked.
nitpick_ignore_regex = [(r"py:.*", r"(?!km_).*")]
python_use_unqualified_type_names = True
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "exclude-members": "__init__, __new__"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"Klanker Maker {release}"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_permalinks_icon = "#"
html_theme_options = {"navigation_with_keys": True}

_WORD = re.compile(r"(?<![`:])`([^`<>]+)`(?!`)")


def _code_words(_app: Sphinx, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Show what docstrings write in single backticks as code, as everywhere else in km."""
    lines[:] = [_WORD.sub(r"``\1``", line) for line in lines]


def _short_defaults(
    _app: Sphinx, _what: str, _name: str, _obj: Any, _options: Any, signature: str | None, result: str | None
) -> tuple[str | None, str | None]:
    """Show a default that attrs makes anew for each instance as an ellipsis."""
    return (signature.replace("= NOTHING", "= ...") if signature else signature), result


def setup(app: Sphinx) -> None:
    """Connect the handlers."""
    app.connect("autodoc-process-docstring", _code_words, priority=100)
    app.connect("autodoc-process-signature", _short_defaults)
