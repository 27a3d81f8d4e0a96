"""One page per hook, read from `km_core.hookspecs`: signature, shape, caller, types, example."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
from typing import TYPE_CHECKING

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

_LABEL = re.compile(r"([A-Z][A-Za-z ]{1,24}):(?:\s+(.*))?$")
_ENTRY = re.compile(r"(\*{0,2}\w+):\s+(.*)$")
SHAPES = {
    "offer": "every plugin may return descriptors; km picks one by its name",
    "collect": "every answer is merged; a conflict or an exception is an error",
    "tell": "every plugin is told; one that fails holds nobody up",
}


@frozen
class Doc:
    """
    A hook's docstring in parts.

    Attributes:
        summary: first paragraph.
        text: further paragraphs without a label.
        notes: labelled paragraphs (``Shape``, ``Order``, ``Failure`` …) in the order they are written.
        args: parameters with their descriptions.
        example: source of the example; empty when there is none.
    """

    summary: str
    text: tuple[str, ...] = ()
    notes: dict[str, str] = field(factory=dict)
    args: dict[str, str] = field(factory=dict)
    returns: str = ""
    example: str = ""

    @property
    def shape(self) -> str:
        """The first word of the note ``Shape``: one of `SHAPES`, or empty."""
        words = re.findall(r"[a-z]+", self.notes.get("Shape", ""))
        return words[0] if words and words[0] in SHAPES else ""


@frozen
class Hook:
    """One hook of the contract."""

    name: str
    family: str
    signature: str
    types: tuple[str, ...]
    doc: Doc

    @property
    def page(self) -> str:
        """Path of the hook's page below the site's root."""
        return f"hooks/{self.name}.md"


def hooks() -> list[Hook]:
    """Return every hook in the order in which the families and their hooks fire."""
    from km_core.hookspecs import FAMILIES

    return [_hook(module, function) for module in FAMILIES for function in _specifications(module)]


def _specifications(module: ModuleType) -> Iterator[Callable[..., object]]:
    for name, value in vars(module).items():
        if name.startswith("km_") and inspect.isfunction(value):
            yield value


def _hook(module: ModuleType, function: Callable[..., object]) -> Hook:
    tree = ast.parse(inspect.getsource(module))
    node = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function.__name__)
    homes = _imported_names(tree)
    qualified = _Qualifier(homes)
    arguments = ", ".join(
        f"{arg.arg}: {ast.unparse(qualified.visit(arg.annotation))}" if arg.annotation else arg.arg
        for arg in node.args.args
    )
    result = ast.unparse(qualified.visit(node.returns)) if node.returns else "None"
    return Hook(
        name=node.name,
        family=module.__name__.rpartition(".")[2],
        signature=f"{node.name}({arguments}) -> {result}",
        types=tuple(sorted(qualified.seen)),
        doc=parse(inspect.getdoc(function) or ""),
    )


def _imported_names(tree: ast.Module) -> dict[str, str]:
    """Return what ``from km_core… import NAME`` brings, by name, with its full path."""
    return {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("km_core")
        for alias in node.names
    }


class _Qualifier(ast.NodeTransformer):
    """Writes km's own types with their full path, so that the site can link them."""

    def __init__(self, homes: dict[str, str]) -> None:
        self.homes = homes
        self.seen: set[str] = set()

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """Replace one name."""
        home = self.homes.get(node.id)
        if home is None:
            return node
        self.seen.add(home)
        parsed: ast.AST = ast.parse(home, mode="eval").body
        return parsed


def parse(text: str) -> Doc:
    """Take a docstring of the house's form apart: paragraphs, ``Label: text`` notes, Google sections."""
    paragraphs: list[str] = []
    notes: dict[str, str] = {}
    sections: dict[str, str] = {}
    for label, block in _blocks(text):
        if not block:
            continue
        if label in {"Args", "Returns", "Example", "Examples", "Raises"}:
            sections[label] = block
        elif label:
            notes[label] = " ".join(block.split())
        else:
            paragraphs.append(block)
    return Doc(
        summary=" ".join(paragraphs[0].split()) if paragraphs else "",
        text=tuple(paragraphs[1:]),
        notes=notes | ({"Raises": " ".join(sections["Raises"].split())} if "Raises" in sections else {}),
        args=_entries(sections.get("Args", "")),
        returns=" ".join(sections.get("Returns", "").split()),
        example=_code(sections.get("Example") or sections.get("Examples") or ""),
    )


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield ``(label, text)``; a label's block goes on while lines are indented, blank lines included."""
    label, lines, gap = "", list[str](), False
    for line in text.splitlines():
        if not line.strip():
            lines.append("")
            gap = True
            continue
        indented = line[0].isspace()
        # The first line is the summary, whatever it looks like.
        match = None if indented or not lines else _LABEL.match(line)
        if match or (gap and not (label and indented)):
            yield label, _dedented(lines)
            label, lines = (match[1], [match[2] or ""]) if match else ("", [line])
        else:
            lines.append(line)
        gap = False
    yield label, _dedented(lines)


def _dedented(lines: list[str]) -> str:
    return textwrap.dedent("\n".join(lines)).strip("\n")


def _entries(text: str) -> dict[str, str]:
    result: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        match = None if line.startswith(" ") else _ENTRY.match(line)
        if match:
            name = match[1]
            result[name] = match[2]
        elif name and line.strip():
            result[name] += " " + line.strip()
    return result


def _code(text: str) -> str:
    """Return an example's source without the fence or the ``::`` it may stand in."""
    lines = textwrap.dedent(text).strip("\n").splitlines()
    fences = [i for i, line in enumerate(lines) if line.startswith("```")]
    if len(fences) >= 2:
        lines = lines[fences[0] + 1 : fences[1]]
    elif lines[:1] == ["::"]:
        lines = lines[1:]
    return textwrap.dedent("\n".join(lines)).strip("\n")


def page(hook: Hook) -> str:
    """Return the page of one hook."""
    doc = hook.doc
    lines = [
        f"# `{hook.name}`",
        "",
        doc.summary,
        "",
        "```{py:function} " + hook.signature,
        "```",
        "",
        f"Family: {hook.family}.  " + (f"Shape: **{doc.shape}** ({SHAPES[doc.shape]})." if doc.shape else ""),
        "",
    ]
    for paragraph in doc.text:
        lines += [paragraph, ""]
    for label, text in doc.notes.items():
        if label != "Shape":
            lines += [f"**{label}.** {_capital(text)}", ""]
        elif rest := re.sub(r"^[a-z]+\.\s*", "", text):
            lines += [f"**Called.** {_capital(rest.removeprefix('Called '))}", ""]
    if doc.args:
        lines += ["## Parameters", "", "| name | what |", "|---|---|"]
        lines += [f"| `{name}` | {_cell(text)} |" for name, text in doc.args.items()]
        lines.append("")
    if doc.returns:
        lines += ["## Result", "", doc.returns, ""]
    if hook.types:
        lines += ["## Types", ""]
        lines += [f"- {{py:class}}`~{name}`" for name in hook.types]
        lines.append("")
    if doc.example:
        lines += ["## Example", "", "```python", doc.example, "```", ""]
    return "\n".join(lines)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def index() -> str:
    """Return the page that lists the hooks by family."""
    lines = [
        "# Hooks",
        "",
        "What a plugin can add to km.  A plugin is a module with functions of these names, marked with",
        "`@hookimpl`, and named by an entry point of the group `km.plugins`; it takes the parameters it needs.",
        "",
        "There are three shapes:",
        "",
    ]
    lines += [f"- **{name}**: {text}." for name, text in SHAPES.items()]
    lines += ["", "Nothing that decides about access takes the first answer: deny wins.", ""]
    everything = hooks()
    for family, group in itertools.groupby(everything, key=lambda hook: hook.family):
        lines += [f"## {family.capitalize()}", ""]
        lines += [f"- [`{hook.name}`]({hook.name}.md): {hook.doc.summary}" for hook in group]
        lines.append("")
    lines += ["```{toctree}", ":hidden:", "", *[hook.name for hook in everything], "```", ""]
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """Return the pages by path below the site's root."""
    return {"hooks/index.md": index(), **{hook.page: page(hook) for hook in hooks()}}
