"""`load_profile`: from a file to a checked, merged profile with the place of everything in it."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from km_core.compile.check import DEFAULT_DOMAIN, Facts, check_rules
from km_core.compile.convert import Report, Shape
from km_core.compile.extends import Merged, resolve_extends
from km_core.compile.load import Document, load_document
from km_core.profile.kinds import join
from km_core.profile.model import MODELS
from km_core.types import Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from km_core.profile.kinds import PluginSection
    from km_core.profile.model import SandboxProfile

_OTHER_VERSION = re.compile(r".+/(v[0-9]+(?:(?:alpha|beta)[0-9]+)?)")
_DEFAULT_THRESHOLD = 0.8


@frozen
class LoadedProfile:
    """
    A profile as it was found.

    Attributes:
        file: name of the loaded file in messages.
        profile: the model, merged and with defaults; None unless `ok`.
        data: the same as plain data; what could be read when not `ok`.
        written: dotted paths of the fields that are written in the file or taken over from a parent,
            without list indexes; a section that is written but empty stands for itself.
        problems: everything found, by file, line, column, path.
        substrate: where it is meant to run; empty when that cannot be read.
        digest: SHA-256 of `data` as canonical JSON, in hex.
    """

    file: str
    profile: SandboxProfile | None
    data: dict[str, Any]
    written: frozenset[str]
    problems: tuple[Problem, ...]
    substrate: str
    digest: str
    _merged: Merged = field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings do not count."""
        return self.profile is not None

    @property
    def chain(self) -> tuple[str, ...]:
        """Files of the documents it was made from, the loaded one first."""
        return tuple(document.file for document in self._merged.chain)

    @property
    def origins(self) -> Mapping[str, str]:
        """File that each section came from, by ``spec.KEY``."""
        spec = self.data.get("spec")
        paths = [f"spec.{key}" for key in spec] if isinstance(spec, dict) else []
        return {path: self._merged.owner(path).file for path in paths if self.wrote(path)}

    def origin(self, path: str) -> str:
        """Return the file that *path* came from; the loaded one for what is a default."""
        return self._merged.owner(path).file

    def label_origin(self, label: str) -> str:
        """Return the file that a label came from: labels alone are merged key by key."""
        return self.origin(join("metadata.labels", label))

    def wrote(self, path: str) -> bool:
        """Say whether *path*, or something below it, is written and not just a default."""
        return any(entry == path or entry.startswith(f"{path}.") for entry in self.written)

    def value(self, path: str) -> Any:
        """Return the plain value at a dotted path of keys, defaults included, or None."""
        return Facts(self.data).get(path)

    def written_value(self, path: str) -> Any:
        """Return the plain value that is written at a dotted path of keys, or None; no defaults."""
        return Facts(self._merged.data).get(path)

    def placed(self, problem: Problem) -> Problem:
        """Return *problem* with file, line and column of its path."""
        return self._merged.owner(problem.path).placed(problem)


def load_profile(
    source: str | Path | bytes,
    *,
    file: str | None = None,
    search_paths: Sequence[str | Path] = (),
    builtins: Mapping[str, str] | None = None,
    plugin_sections: Sequence[PluginSection] = (),
    substrates: Iterable[str] = (),
    substrate: str | None = None,
    domain: str = DEFAULT_DOMAIN,
) -> LoadedProfile:
    """
    Load, merge and check a profile.

    Args:
        source: the file; with *file*, the text itself.
        file: name of a text in messages; parents are looked for beside it.
        search_paths: further directories for parents (`Config.profile_search_paths`).
        builtins: built-in profiles by name, as YAML text.
        plugin_sections: sections below ``spec`` that installed plugins bring.
        substrates: names of installed substrates besides the known ones.
        substrate: judge it for this substrate instead of its own.
        domain: configured group of `apiVersion` besides ``klankermaker.ai``.

    Returns:
        The outcome; a bad profile is described by its problems, never by an exception.

    Raises:
        ProfileError: the file cannot be read.
    """
    name = file if file is not None else ("<text>" if isinstance(source, bytes) else str(source))
    if isinstance(source, bytes) or (isinstance(source, str) and file is not None):
        path, document = Path(name), load_document(source, file=name)
    else:
        path = Path(source)
        document = load_document(path, file=name)
    merged = resolve_extends(
        document,
        name=path.stem,
        directory=path.parent,
        search_paths=search_paths,
        builtins=builtins,
    )
    problems = [*merged.problems, *(problem for each in merged.chain for problem in each.problems)]
    if not document.usable:
        return _outcome(merged, problems, {})
    shape = Shape(tuple(plugin_sections), tuple(substrates))
    if _is_other_version(document):
        report = Report()
        shape.check({"apiVersion": document.data["apiVersion"]}, report, document.bad)
        problems += [document.placed(problem) for problem in report.problems]
        return _outcome(merged, problems, dict(merged.data))
    bad = _check_documents(shape, merged, problems)
    report = Report(bad=set(bad))
    if merged.complete and not any("spec" in each.bad or "spec" in bad for each in merged.chain):
        shape.require(merged.data, report)
    written = shape.written(merged.data) | ({"extends"} if "extends" in document.data else set())
    target = substrate or _own_substrate(merged.data, bad)
    data = _normalised(shape.fill(merged.data, target))
    check_rules(Facts(data, bad, written, target, domain), report)
    problems += [merged.owner(problem.path).placed(problem) for problem in report.problems]
    return _outcome(merged, problems, data, written=written, substrate=target, shape=shape)


def _check_documents(shape: Shape, merged: Merged, problems: list[Problem]) -> frozenset[str]:
    """Check each document as written; return the bad paths that made it into the merged one."""
    bad: set[str] = set()
    for document in merged.chain:
        report = Report()
        shape.check(document.data, report, document.bad)
        problems += [document.placed(problem) for problem in report.problems]
        bad |= {path for path in report.bad if path == "spec" or merged.owner(path) is document}
    return frozenset(bad)


def _is_other_version(document: Document) -> bool:
    """Say whether the file is of a version with other fields, of which nothing else can be said."""
    value = document.data.get("apiVersion")
    match = _OTHER_VERSION.fullmatch(value) if isinstance(value, str) else None
    return match is not None and match[1] not in MODELS


def _own_substrate(data: Mapping[str, Any], bad: frozenset[str]) -> str:
    value = Facts(data).get("spec.runtime.substrate")
    return value if isinstance(value, str) and "spec.runtime.substrate" not in bad else ""


def _normalised(data: dict[str, Any]) -> dict[str, Any]:
    spec = data.get("spec")
    budget = spec.get("budget") if isinstance(spec, dict) else None
    threshold = budget.get("warningThreshold") if isinstance(budget, dict) else None
    if isinstance(budget, dict) and threshold == 0 and not isinstance(threshold, bool):
        budget["warningThreshold"] = _DEFAULT_THRESHOLD
    return data


def _outcome(
    merged: Merged,
    problems: Iterable[Problem],
    data: dict[str, Any],
    *,
    written: frozenset[str] = frozenset(),
    substrate: str = "",
    shape: Shape | None = None,
) -> LoadedProfile:
    folded: dict[tuple[str, str, str], Problem] = {}
    for problem in problems:
        folded.setdefault((problem.file, problem.path, problem.message), problem)
    ordered = sorted(folded.values(), key=lambda p: (p.file, p.line, p.column, p.path, p.message))
    valid = shape is not None and not any(problem.severity is Severity.ERROR for problem in ordered)
    profile = shape.build(data) if shape is not None and valid else None
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return LoadedProfile(
        file=merged.chain[0].file,
        profile=profile,
        data=data,
        written=written,
        problems=tuple(ordered),
        substrate=substrate,
        digest=hashlib.sha256(canonical.encode()).hexdigest(),
        merged=merged,
    )
