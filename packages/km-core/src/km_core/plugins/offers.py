"""
What each hook may return: the one table of hook, type and the rules of its fields.

Whatever comes from a plugin is looked at here before anything uses it, so that a wrong return is one
message with the plugin's name and not a traceback at a place that has nothing to do with it.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Rule = Callable[[Any], str]

_WORD = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_KEY = re.compile(r"[a-z][A-Za-z0-9]{0,62}")
_GROUP = re.compile(r"@[a-z0-9][a-z0-9._-]{0,62}")
_TARGET = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STEP = re.compile(r"[a-z][a-z0-9-]{0,62}")
_FIELD = re.compile(r"[A-Za-z_][\w-]*(?:\.[\w-]+)*")
_PATH = re.compile(r"\$|[A-Za-z_][^\x00-\x1f\x7f]{0,500}")


def text(value: Any) -> str:
    """Accept a string."""
    return "" if isinstance(value, str) else "is no text"


def title(value: Any) -> str:
    """Accept one printable, non-empty line of at most 100 characters."""
    if isinstance(value, str) and value.strip() and value.isprintable() and len(value) <= 100:
        return ""
    return "is no short line of text"


def title_or_nothing(value: Any) -> str:
    """Accept what `title` accepts, and the empty text."""
    return "" if value == "" else title(value)


def _matching(pattern: re.Pattern[str], wanted: str) -> Rule:
    def rule(value: Any) -> str:
        return "" if isinstance(value, str) and pattern.fullmatch(value) else f"is not {wanted}"

    return rule


word = _matching(_WORD, "a word of a-z, 0-9, - and _ that begins with a letter")
section_key = _matching(_KEY, "a key such as myService")
group_name = _matching(_GROUP, "a group's name such as @name")
target = _matching(_TARGET, "of the form module:function")
step_name = _matching(_STEP, "a word of a-z, 0-9 and - that begins with a letter")
field_path = _matching(_FIELD, "a dotted path without indexes such as spec.budget.ai")
problem_path = _matching(_PATH, "a dotted path such as spec.network.egress")


def function(value: Any) -> str:
    """Accept something callable."""
    return "" if callable(value) else "cannot be called"


def flag(value: Any) -> str:
    """Accept a boolean."""
    return "" if isinstance(value, bool) else "is neither True nor False"


def model(value: Any) -> str:
    """Accept an attrs class."""
    is_model = isinstance(value, type) and hasattr(value, "__attrs_attrs__")
    return "" if is_model else "is no attrs class"


def many(rule: Rule, *, at_least: int = 0) -> Rule:
    """Accept a tuple whose items keep *rule*."""

    def check(value: Any) -> str:
        if not isinstance(value, tuple):
            return "is no tuple"
        if len(value) < at_least:
            return "is empty"
        for index, item in enumerate(value):
            complaint = rule(item)
            if complaint:
                return f"[{index}] {complaint}"
        return ""

    return check


def pair(value: Any) -> str:
    """Accept ``(NAME, value)`` of an environment variable."""
    if not (isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, str) for part in value)):
        return "is no pair of texts"
    if not _VARIABLE.fullmatch(value[0]) or "\0" in value[1]:
        return "is no name and value of an environment variable"
    return ""


def one_of(module: str, name: str) -> Rule:
    """Accept a member of the enumeration or tuple *name* of *module*."""

    def check(value: Any) -> str:
        allowed = getattr(import_module(module), name)
        known = [str(item) for item in allowed]
        same_kind = isinstance(value, allowed) if isinstance(allowed, type) else isinstance(value, str)
        return "" if same_kind and str(value) in known else f"is none of {', '.join(known)}"

    return check


def plan_file(value: Any) -> str:
    """Accept a `PlanFile` with an absolute path and plain permission bits."""
    from km_core.plan import PlanFile

    if not isinstance(value, PlanFile):
        return "is no PlanFile"
    path: Any = value.path
    content: Any = value.content
    mode: Any = value.mode
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
        return "has no absolute path"
    if not isinstance(content, str):
        return "has no text as content"
    if type(mode) is not int or not 0 <= mode <= 0o777:
        return "has no permission bits as mode"
    return ""


@frozen
class Contract:
    """
    What one hook returns.

    Attributes:
        module: where the items' type is.
        type_name: its name; a protocol is checked member by member.
        key: attribute that holds an offer's name; empty when offers have none, ``self`` when the item
            is its own name.
        rules: complaint about an attribute's value by attribute, or nothing.
        single: the answer is one item or None, not an iterable.
        strict: a failure ends the operation; otherwise it disables the plugin.
        offer: items are picked by name, so a name may come once only.
    """

    module: str
    type_name: str
    key: str = ""
    rules: Mapping[str, Rule] = field(factory=dict)
    single: bool = False
    strict: bool = False

    @property
    def offer(self) -> bool:
        """Whether core picks items by name."""
        return bool(self.key) and not self.strict

    def name_of(self, item: Any) -> str:
        """Return an offer's name."""
        return str(item if self.key == "self" else getattr(item, self.key))

    def complaint(self, item: Any) -> str:
        """Return what is wrong with an item, or nothing."""
        wanted = str if self.type_name == "str" else getattr(import_module(self.module), self.type_name)
        if getattr(wanted, "_is_protocol", False):
            lacking = _lacking(item, wanted)
            if lacking:
                return f"returned {_kind(item)}, which is no {self.type_name}: it has no {lacking}"
        elif not isinstance(item, wanted):
            return f"returned {_kind(item)} where {_article(self.type_name)} is expected"
        for attribute, rule in self.rules.items():
            value = item if attribute == "self" else getattr(item, attribute)
            problem = rule(value)
            if problem and attribute == "self":
                return f"returned {item!r:.60}, which {problem}"
            if problem:
                return f"returned {_named(item, self)} whose {attribute} {problem}"
        return ""


def _kind(item: Any) -> str:
    return "None" if item is None else _article(type(item).__name__)


def _article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _named(item: Any, contract: Contract) -> str:
    name = getattr(item, contract.key, None) if contract.key and contract.key != "self" else None
    kind = _article(contract.type_name)
    return f"{kind} {name!r}" if isinstance(name, str) and len(name) <= 80 and name.isprintable() else kind


def _lacking(item: Any, protocol: Any) -> str:
    """Return the first public member of *protocol* that *item* lacks, or nothing."""
    for name, member in vars(protocol).items():
        if name.startswith("_"):
            continue
        try:
            found = getattr(item, name)
        except AttributeError:
            return f"{name}()" if callable(member) else name
        if callable(member) and not callable(found):
            return f"{name}()"
    return ""


def _hosts(value: Any) -> str:
    complaint = many(text, at_least=1)(value)
    if complaint:
        return complaint
    wrong = next((h for h in value if not h or h != h.strip().lower() or "/" in h or h.endswith(".")), None)
    return "" if wrong is None else f"holds {wrong[:80]!r}, which is no canonical host name"


def _capabilities(value: Any) -> str:
    plain = isinstance(value, frozenset) and all(isinstance(item, str) for item in value)
    return "" if plain else "is no frozenset of words"


_TYPES = "km_core.types"

CONTRACTS: Mapping[str, Contract] = {
    "km_profile_sections": Contract(
        "km_core.profile.kinds",
        "PluginSection",
        "key",
        {"key": section_key, "model": model, "distribution": title},
    ),
    "km_validate_profile": Contract(
        _TYPES,
        "Problem",
        rules={
            "path": problem_path,
            "message": text,
            "hint": text,
            "severity": one_of(_TYPES, "Severity"),
        },
        strict=True,
    ),
    "km_compile": Contract(
        "km_core.plan",
        "PlanAdditions",
        rules={
            "env": many(pair),
            "files": many(plan_file),
            "runners": many(word),
            "requirements": many(title),
        },
        single=True,
        strict=True,
    ),
    "km_substrates": Contract(
        "km_core.control.substrate",
        "Substrate",
        "name",
        {"name": word, "capabilities": _capabilities},
    ),
    "km_lifecycle_steps": Contract(
        "km_core.control.steps",
        "LifecycleStep",
        "name",
        {
            "name": step_name,
            "phase": one_of("km_core.control.steps", "PHASES"),
            "do": function,
            "undo": function,
            "title": text,
            "after": many(text),
            "fatal": flag,
        },
        strict=True,
    ),
    "km_enforcers": Contract("builtins", "str", "self", {"self": word}),
    "km_sidecars": Contract(_TYPES, "Sidecar", "name", {"name": word, "target": target, "summary": text}),
    "km_notify": Contract(_TYPES, "Delivery", rules={"delivered": flag, "detail": text}, single=True),
    "km_meters": Contract(_TYPES, "Meter", "name", {"name": word, "hosts": _hosts}),
    "km_control_planes": Contract(
        "km_core.control.protocols",
        "ControlPlaneOffer",
        "name",
        {"name": word, "summary": text, "connect": function},
    ),
    "km_field_claims": Contract(
        _TYPES,
        "Claim",
        rules={
            "path": field_path,
            "substrates": many(text, at_least=1),
            "answer": one_of(_TYPES, "Answer"),
            # Empty where nobody would provide what is missing.
            "by": title_or_nothing,
            "note": text,
        },
        strict=True,
    ),
    "km_egress_groups": Contract(
        _TYPES, "EgressGroup", "name", {"name": group_name, "summary": text, "resolve": function}
    ),
    "km_doctor_checks": Contract(_TYPES, "DoctorCheck", "name", {"name": title, "run": function}),
    "km_agents": Contract(
        _TYPES,
        "Agent",
        "name",
        {
            "name": word,
            "summary": text,
            "program": title,
            "argv": function,
            "result": function,
            "env": many(pair),
        },
    ),
    "km_inside_services": Contract(
        _TYPES,
        "InsideService",
        "name",
        {"name": step_name, "target": target, "summary": text, "writes": flag},
    ),
}
"""Every hook of `km_core.hookspecs`; a test holds the two together."""
