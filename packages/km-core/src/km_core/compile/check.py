"""
Rules that look at several fields (spec/profile.md section 6), on the merged document with its defaults.

A rule names the fields it reads; when one of them could not be read the rule is left out, so that one
defect is one problem.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

from km_core.compile.load import ancestry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from km_core.compile.convert import Report

DEFAULT_DOMAIN = "klankermaker.ai"


@frozen
class Facts:
    """
    What rules may know about a profile.

    Attributes:
        data: the merged document with defaults.
        bad: paths whose values are reported already.
        written: paths of the fields that are really written.
        substrate: where it is meant to run; empty when that is not known.
        domain: the configured group of `apiVersion`.
    """

    data: Mapping[str, Any]
    bad: frozenset[str] = frozenset()
    written: frozenset[str] = frozenset()
    substrate: str = ""
    domain: str = DEFAULT_DOMAIN

    def get(self, path: str) -> Any:
        """Return the value at *path* (keys only), or None."""
        value: Any = self.data
        for key in path.split("."):
            if not isinstance(value, dict) or key not in value:
                return None
            value = value[key]
        return value

    def readable(self, path: str) -> bool:
        """Say whether nothing on the way to *path* is reported already."""
        return not any(candidate in self.bad for candidate in ancestry(path))

    def items(self, path: str) -> Iterator[tuple[str, str]]:
        """Yield path and text of the valid strings of a list."""
        values = self.get(path)
        for index, value in enumerate(values if isinstance(values, list) else ()):
            place = f"{path}[{index}]"
            if isinstance(value, str) and place not in self.bad:
                yield place, value

    def wrote(self, path: str) -> bool:
        """Say whether *path*, or something below it, is really written."""
        return any(entry == path or entry.startswith(f"{path}.") for entry in self.written)


@define
class Rules:
    """A list of rules in the order they are applied."""

    entries: list[tuple[tuple[str, ...], Callable[[Facts, Report], None]]] = field(factory=list)

    def reads(
        self, *paths: str
    ) -> Callable[[Callable[[Facts, Report], None]], Callable[[Facts, Report], None]]:
        """Register a rule under the fields it reads."""

        def register(check: Callable[[Facts, Report], None]) -> Callable[[Facts, Report], None]:
            self.entries.append((paths, check))
            return check

        return register

    def apply(self, facts: Facts, report: Report) -> None:
        """Apply every rule whose fields are readable."""
        for paths, check in self.entries:
            if not facts.bad or all(facts.readable(path) for path in paths):
                check(facts, report)


def check_rules(facts: Facts, report: Report) -> None:
    """Apply all rules of spec/profile.md that go beyond a single field."""
    from km_core.compile.rules_network import NETWORK_RULES
    from km_core.compile.rules_operator import OPERATOR_RULES
    from km_core.compile.rules_runtime import RUNTIME_RULES

    for rules in (RUNTIME_RULES, NETWORK_RULES, OPERATOR_RULES):
        rules.apply(facts, report)
