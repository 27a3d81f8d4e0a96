"""Every field of the model, and what the claims say of it on each substrate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from km_core.compile.claims.judge import DEFAULT_MODE, ENFORCEMENT, judge_field
from km_core.compile.convert import Shape
from km_core.profile.kinds import Choice, Flag, Section
from km_core.profile.model import SandboxProfile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from km_core.compile.claims.judge import FieldAnswer
    from km_core.compile.claims.sources import ClaimSource
    from km_core.profile.kinds import Kind, PluginSection
    from km_core.types import Answer, Claim

_OTHER = object()
"""Stands for any value that no claim names."""


@frozen
class FieldRow:
    """
    The answer for some values of a field on a substrate.

    Attributes:
        path: dotted path.
        substrate: where.
        values: the written values it speaks of, ``()`` for an empty list or mapping; None for every
            value, or every other one.
        answer: None when nobody claims the field.
        by: the distribution that enforces it, or would.
        note: why, for people.
        unheard: distributions whose claim does not count here.
    """

    path: str
    substrate: str
    values: tuple[Any, ...] | None
    answer: Answer | None
    by: str
    note: str
    unheard: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form of ``km plugins claims --json``; ``[]`` is an empty list or mapping."""
        values = None if self.values is None else [[] if v == () else v for v in self.values]
        return {
            "field": self.path,
            "substrate": self.substrate,
            "values": values,
            "answer": None if self.answer is None else str(self.answer),
            "by": self.by,
            "note": self.note,
            "unheard": list(self.unheard),
        }


def model_fields(sections: Sequence[PluginSection] = ()) -> dict[str, Kind]:
    """Return every field of a profile that holds a value, by dotted path in the order of the model."""
    return {path: kind for path, kind in _walk(sections) if not isinstance(kind, Section)}


def model_sections(sections: Sequence[PluginSection] = ()) -> dict[str, type]:
    """Return the sections that may be written empty (none of their fields is required), by dotted path."""
    shape = Shape(tuple(sections))
    return {
        path: kind.model
        for path, kind in _walk(sections)
        if isinstance(kind, Section) and not any(info.required for info in shape.fields(kind.model).values())
    }


def field_table(
    sources: Sequence[ClaimSource],
    substrates: Sequence[str],
    *,
    sections: Sequence[PluginSection] = (),
) -> list[FieldRow]:
    """
    Return the whole matrix: field by substrate by values, in the order of the model.

    Args:
        sources: who speaks (`claim_sources`).
        substrates: the columns.
        sections: sections that plugins bring.
    """
    return [
        row
        for path, kind in model_fields(sections).items()
        for substrate in substrates
        for row in _rows(path, kind, substrate, sources)
    ]


def _walk(sections: Sequence[PluginSection]) -> Iterator[tuple[str, Kind]]:
    shape = Shape(tuple(sections))

    def below(model: type, path: str) -> Iterator[tuple[str, Kind]]:
        for key, info in shape.fields(model).items():
            here = f"{path}.{key}" if path else key
            yield here, info.kind
            if isinstance(info.kind, Section):
                yield from below(info.kind.model, here)

    yield from below(SandboxProfile, "")


def _rows(path: str, kind: Kind, substrate: str, sources: Sequence[ClaimSource]) -> Iterator[FieldRow]:
    answers: dict[FieldAnswer, list[Any]] = {}
    for value in _cases(path, kind, substrate, [claim for source in sources for claim in source.claims]):
        mode = value if path == ENFORCEMENT and isinstance(value, str) else DEFAULT_MODE
        answers.setdefault(judge_field(path, value, substrate, sources, mode=mode), []).append(value)
    for answer, values in answers.items():
        everything = _OTHER in values or len(answers) == 1
        yield FieldRow(
            path,
            substrate,
            None if everything else tuple(values),
            answer.answer,
            answer.by,
            answer.note,
            answer.unheard,
        )


def _cases(path: str, kind: Kind, substrate: str, claims: Sequence[Claim]) -> list[Any]:
    """Return the values that get answers of their own, then a stand-in for all others where there are any."""
    if isinstance(kind, Flag):
        return [True, False]
    named = [
        value
        for claim in claims
        if claim.path == path and (substrate in claim.substrates or "*" in claim.substrates)
        for value in claim.values
    ]
    if path == ENFORCEMENT and isinstance(kind, Choice):
        named = [*kind.values, *named]
    cases: list[Any] = []
    for value in named:
        if not any(value == case and isinstance(value, bool) is isinstance(case, bool) for case in cases):
            cases.append(value)
    closed = isinstance(kind, Choice) and not kind.extensible and not kind.also
    if closed and isinstance(kind, Choice) and set(kind.values) <= set(cases):
        return cases
    return [*cases, _OTHER]
