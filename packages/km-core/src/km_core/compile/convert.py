"""
From plain data to the profile model: types, ranges and grammars, required fields, defaults.

Everything here walks the declarations of `km_core.profile.model`; nothing about a single field stands
in this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import define, field

from km_core.profile.kinds import (
    BySubstrate,
    Choice,
    Defect,
    Listing,
    Number,
    PluginSection,
    Section,
    Table,
    describe,
    fields_of,
    join,
    nearest,
    shown,
)
from km_core.profile.model import SandboxProfile, Spec
from km_core.types import Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from km_core.profile.kinds import FieldInfo, Kind

_FEW = 3
_MANY = 100
"""Problems after which no further spelling is guessed: such a file is no profile."""


@define
class Report:
    """Problems found so far, each once, and the paths whose values no later rule may rely on."""

    problems: dict[Problem, None] = field(factory=dict)
    bad: set[str] = field(factory=set)

    def add(
        self,
        path: str,
        message: str,
        hint: str = "",
        *,
        code: str = "profile-rule",
        severity: Severity = Severity.ERROR,
    ) -> None:
        """Record a problem; its place is added later, by the document it is about."""
        self.problems[Problem(path, message, severity, hint, code=code)] = None

    def warn(self, path: str, message: str, hint: str = "") -> None:
        """Record a warning."""
        self.add(path, message, hint, severity=Severity.WARNING)

    def defect(self, path: str, defect: Defect) -> None:
        """Record a value that cannot be used."""
        self.bad.add(path)
        self.add(path, defect.message, defect.hint, code=defect.code)


@define
class Shape:
    """
    The model with what plugins add to it.

    Args:
        sections: sections below ``spec`` that plugins bring.
        substrates: further names for ``spec.runtime.substrate``.
    """

    sections: Sequence[PluginSection] = ()
    substrates: tuple[str, ...] = ()

    def fields(self, model: type) -> Mapping[str, FieldInfo]:
        """Return the fields of *model* by key, plugin sections included."""
        known = fields_of(model)
        if model is not Spec or not self.sections:
            return known
        return {**known, **{section.key: _plugin_field(section) for section in self.sections}}

    def check(self, data: Mapping[str, Any], report: Report, skip: frozenset[str]) -> None:
        """
        Check the keys, types, ranges and grammars of one document as it is written.

        Args:
            data: the document; required keys may be missing, they may come from a parent.
            report: receives the problems.
            skip: paths that could not be read and are reported already.
        """
        report.bad |= skip
        self._check_section(SandboxProfile, data, "", report)

    def _check_section(self, model: type, data: Mapping[str, Any], path: str, report: Report) -> None:
        known = self.fields(model)
        for key, value in data.items():
            info = known.get(key)
            if info is None:
                hint = self._unknown_hint(key, tuple(known)) if len(report.problems) < _MANY else ""
                report.add(join(path, key), "is not a known key", hint, code="profile-unknown-key")
            else:
                self._check_value(info.kind, value, f"{path}.{key}" if path else key, report)

    def _check_value(self, kind: Kind, value: Any, path: str, report: Report) -> None:
        if value is None and path in report.bad:
            return
        if isinstance(kind, Section):
            if isinstance(value, dict):
                self._check_section(kind.model, value, path, report)
            else:
                report.defect(path, _wrong_type("a mapping", value))
        elif isinstance(kind, Listing):
            if isinstance(value, list):
                self._check_list(kind, value, path, report)
            else:
                report.defect(path, _wrong_type("a list", value))
        elif isinstance(kind, Table):
            if isinstance(value, dict):
                self._check_table(kind, value, path, report)
            else:
                report.defect(path, _wrong_type("a mapping", value))
        else:
            defect = kind.defect(value, self.substrates) if isinstance(kind, Choice) else kind.defect(value)
            if defect is not None:
                report.defect(path, defect)

    def _check_list(self, kind: Listing, values: list[Any], path: str, report: Report) -> None:
        if len(values) < kind.min_items:
            report.defect(path, Defect(f"must have at least {kind.min_items} item"))
        first: dict[Any, int] = {}
        for index, value in enumerate(values):
            place = f"{path}[{index}]"
            self._check_value(kind.item, value, place, report)
            if kind.unique and isinstance(value, str) and first.setdefault(value, index) != index:
                report.add(place, f"repeats item {first[value]}, {shown(value)}", code="profile-value")

    def _check_table(self, kind: Table, values: dict[str, Any], path: str, report: Report) -> None:
        for key, value in values.items():
            place = join(path, key)
            defect = kind.key.defect(key)
            if defect is not None:
                report.defect(place, Defect(defect.message, defect.hint, "profile-key"))
            self._check_value(kind.value, value, place, report)

    def _unknown_hint(self, key: str, known: tuple[str, ...]) -> str:
        homes = self._belongs(key)
        if homes:
            return "it belongs to " + " or ".join(homes)
        near = self._meant(key, known)
        if near:
            return f"did you mean {near}?"
        return "known keys: " + ", ".join(sorted(known))

    def _meant(self, key: str, known: tuple[str, ...]) -> str:
        """Return the known key that an unknown one is a misspelling of, or an empty text."""
        return "" if self._belongs(key) else nearest(key, known)

    def _belongs(self, key: str) -> list[str]:
        """Return the paths of a key that stands in the wrong place; empty when they are too many."""
        homes = [f"{path}.{key}" if path else key for path in self._homes(SandboxProfile, "", key)]
        return homes if len(homes) <= _FEW else []

    def _homes(self, model: type, path: str, key: str) -> Iterator[str]:
        for name, info in self.fields(model).items():
            if name == key:
                yield path
            if isinstance(info.kind, Section):
                yield from self._homes(info.kind.model, f"{path}.{name}" if path else name, key)

    def require(self, data: Mapping[str, Any], report: Report) -> None:
        """
        Report every required field that the merged document lacks, at the path it would have.

        One that stands there misspelt is one defect, and told already.
        """
        self._require(SandboxProfile, data, "", report)

    def _require(self, model: type, data: Mapping[str, Any], path: str, report: Report) -> None:
        known = self.fields(model)
        misspelt = self._misspelt(data, known)
        for key, info in known.items():
            below = f"{path}.{key}" if path else key
            if key not in data:
                if info.required and key not in misspelt:
                    report.add(below, "is required", info.doc, code="profile-missing")
            elif isinstance(info.kind, Section) and isinstance(data[key], dict):
                self._require(info.kind.model, data[key], below, report)

    def _misspelt(self, data: Mapping[str, Any], known: Mapping[str, FieldInfo]) -> set[str]:
        """Return the keys that unknown ones in *data* were suggested to be."""
        unknown = [key for key in data if key not in known][:_MANY]
        return {self._meant(key, tuple(known)) for key in unknown} - {""}

    def fill(self, data: Mapping[str, Any], substrate: str) -> dict[str, Any]:
        """
        Return a copy with the defaults of spec/profile.md section 5 and of each field.

        What cannot be filled because it is of the wrong type is kept as it is.
        """
        return self._fill(SandboxProfile, data, substrate)

    def _fill(self, model: type, data: Mapping[str, Any], substrate: str) -> dict[str, Any]:
        result: dict[str, Any] = {}
        known = self.fields(model)
        for key, value in data.items():
            info = known.get(key)
            result[key] = value if info is None else self._filled(info.kind, value, substrate)
        for key, info in known.items():
            if key in data or info.default is None:
                continue
            default = info.default.pick(substrate) if isinstance(info.default, BySubstrate) else info.default
            result[key] = self._filled(info.kind, default, substrate)
        return result

    def _filled(self, kind: Kind, value: Any, substrate: str) -> Any:
        if isinstance(value, dict):
            return self._fill(kind.model, value, substrate) if isinstance(kind, Section) else dict(value)
        if isinstance(value, list):
            return list(value)
        if isinstance(kind, Number) and kind.whole and isinstance(value, float) and value.is_integer():
            return int(value)
        return value

    def written(self, data: Mapping[str, Any]) -> frozenset[str]:
        """Return the paths of the fields *data* holds: leaves, and sections that hold nothing."""
        return frozenset(self._written(SandboxProfile, data, ""))

    def _written(self, model: type, data: Mapping[str, Any], path: str) -> Iterator[str]:
        known = self.fields(model)
        for key, value in data.items():
            info = known.get(key)
            if info is None:
                continue
            below = f"{path}.{key}" if path else key
            if isinstance(info.kind, Section) and isinstance(value, dict) and value:
                yield from self._written(info.kind.model, value, below)
            else:
                yield below

    def build(self, data: Mapping[str, Any]) -> SandboxProfile:
        """Return the model of merged, filled and valid data."""
        profile: SandboxProfile = self._build(SandboxProfile, data)
        return profile

    def _build(self, model: type, data: Mapping[str, Any]) -> Any:
        known = fields_of(model)
        values = {
            known[key].name: self._built(known[key].kind, value)
            for key, value in data.items()
            if key in known
        }
        if model is Spec:
            values["plugins"] = {
                section.key: self._build(section.model, data[section.key])
                for section in self.sections
                if section.key in data
            }
        return model(**values)

    def _built(self, kind: Kind, value: Any) -> Any:
        if isinstance(kind, Section):
            return self._build(kind.model, value)
        if isinstance(kind, Listing):
            return tuple(value)
        if isinstance(kind, Table):
            return dict(value)
        return float(value) if isinstance(kind, Number) and not kind.whole else value


def _plugin_field(section: PluginSection) -> FieldInfo:
    from km_core.profile.kinds import FieldInfo

    doc = f"Section of {section.distribution}."
    return FieldInfo(section.key, section.key, Section(section.model), required=False, default=None, doc=doc)


def _wrong_type(wanted: str, value: Any) -> Defect:
    return Defect(f"must be {wanted}, not {describe(value)}", code="profile-type")
