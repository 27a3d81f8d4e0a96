"""
From claims to answers: who counts, and which of several claims wins.

Each party gives one answer to a field, that of its most specific claim; between parties deny wins.  An
answer that loosens (``enforced``, ``inert``) counts only from a party that can keep the promise:

- policy (network, repositories, budgets, the sidecars that filter, privileges) is answered by core's
  table, by the distribution that offers the substrate, and, but for privileges, by the one that offers the
  enforcement mode of the profile;
- a plugin's section is answered by its own distribution or by the substrate's;
- only core, the substrate's distribution and the section's can say that a field has no meaning.

Refusing and missing count from everybody.  What is missing ends where its named provider, the substrate's
own distribution or, where nobody is named, whoever provides it says ``enforced``.  A refusal never ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import frozen

from km_core.types import Answer, Claim, Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from km_core.compile.claims.sources import ClaimSource
    from km_core.compile.profile import LoadedProfile

ENFORCEMENT = "spec.network.enforcement"
DEFAULT_MODE = "proxy"
_PROVIDERS = {
    "local": "km-substrate-local",
    "docker": "km-substrate-docker",
    "ec2": "km-substrate-ec2",
    "ecs": "km-substrate-ecs",
}
_ENFORCERS_OWN = (
    "spec.network",
    "spec.sourceAccess",
    "spec.budget.ai",
    "spec.budget.warningThreshold",
    "spec.sidecars",
)
_GUARDED = ("spec.network", "spec.sourceAccess", "spec.budget", "spec.sidecars", "spec.execution.privileged")
_LOOSENING = frozenset({Answer.ENFORCED, Answer.INERT})
_STRENGTH = {Answer.REFUSED: 3, Answer.MISSING: 2, Answer.ENFORCED: 1, Answer.INERT: 0}
_UNHEARD = "only the substrate's own distribution or the enforcer of the mode decides this"


@frozen
class FieldAnswer:
    """
    The answer for one written field.

    Attributes:
        path: dotted path without list indexes.
        answer: None when nobody claims the field.
        by: the distribution that enforces it, or would.
        note: why, for people.
        unheard: distributions whose claim loosens and does not count here.
    """

    path: str
    answer: Answer | None
    by: str = ""
    note: str = ""
    unheard: tuple[str, ...] = ()


def check_claims(
    loaded: LoadedProfile,
    substrate: str,
    sources: Sequence[ClaimSource],
    *,
    typed: Mapping[str, Any] | None = None,
) -> list[Problem]:
    """
    Return what the claims say about the written fields, by file, line and column.

    Enforced fields are not mentioned; inert ones are of severity info; everything else is an error.  A
    field that already has an error of its own gets no second one.

    Args:
        loaded: the profile.
        substrate: where it is to run.
        sources: core's table and every distribution's claims (`claim_sources`).
        typed: fields that the command line sets, by dotted path; they count as written.
    """
    if not _runs_somewhere(substrate, sources):
        hint = f"install {_PROVIDERS[substrate]}" if substrate in _PROVIDERS else "see km plugins list"
        message = f"nothing installed can run a profile on {substrate}"
        return [loaded.placed(Problem("spec.runtime.substrate", message, hint=hint, code="claim-substrate"))]
    known = {problem.path for problem in loaded.problems if problem.severity is Severity.ERROR}
    problems = [
        loaded.placed(problem)
        for answer in claim_matrix(loaded, substrate, sources, typed=typed)
        if (problem := _problem(answer, substrate)) is not None and not _covered(answer.path, known)
    ]
    return sorted(problems, key=lambda p: (p.file, p.line, p.column, p.path))


def claim_matrix(
    loaded: LoadedProfile,
    substrate: str,
    sources: Sequence[ClaimSource],
    *,
    typed: Mapping[str, Any] | None = None,
) -> list[FieldAnswer]:
    """Return the answer of every field that is written or *typed* on the command line, by path."""
    mode = loaded.value(ENFORCEMENT) or DEFAULT_MODE
    written = {path: loaded.written_value(path) for path in loaded.written} | dict(typed or {})
    return [
        judge_field(path, value, substrate, sources, mode=mode) for path, value in sorted(written.items())
    ]


def inert_fields(loaded: LoadedProfile, substrate: str, sources: Sequence[ClaimSource]) -> tuple[str, ...]:
    """Return the written fields that have no meaning on *substrate*."""
    matrix = claim_matrix(loaded, substrate, sources)
    return tuple(answer.path for answer in matrix if answer.answer is Answer.INERT)


def enforces_itself(substrate: str, sources: Sequence[ClaimSource], *, mode: str = DEFAULT_MODE) -> bool:
    """
    Say whether the distribution that offers *substrate* claims to enforce *mode* there by itself.

    Then no enforcer has to be installed beside it.
    """
    own = [source for source in sources if substrate in source.substrates]
    return judge_field(ENFORCEMENT, mode, substrate, own, mode=mode).answer is Answer.ENFORCED


def judge_field(
    path: str, value: Any, substrate: str, sources: Sequence[ClaimSource], *, mode: str = DEFAULT_MODE
) -> FieldAnswer:
    """
    Return the answer for one field.

    Args:
        path: dotted path without list indexes.
        value: what is written there.
        substrate: where it is to run.
        sources: who speaks.
        mode: enforcement mode of the profile.
    """
    said = [
        (source, claim)
        for source in sources
        if (claim := _most_specific(path, value, substrate, source.claims)) is not None
    ]
    named = {claim.by for source, claim in said if source.core and claim.answer is Answer.MISSING}
    heard = [
        (source, claim)
        for source, claim in said
        if claim.answer not in _LOOSENING
        or _may_loosen(source, claim, path, substrate=substrate, mode=mode, named=named)
    ]
    unheard = tuple(sorted(source.name for source, claim in said if (source, claim) not in heard))
    left = [entry for entry in heard if not _ended(entry, heard, path, substrate, mode)]
    if not left:
        return FieldAnswer(path, None, unheard=unheard)
    source, claim = max(left, key=lambda entry: (_STRENGTH[entry[1].answer], entry[1].by, entry[0].name))
    # A stranger promises for itself only; core and the substrate's own may name who keeps the promise.
    trusted = source.core or substrate in source.substrates or claim.answer not in _LOOSENING
    by = claim.by if trusted else source.name
    if not by and claim.answer is not Answer.MISSING:
        by = source.name
    return FieldAnswer(path, claim.answer, by, claim.note, unheard)


def _most_specific(path: str, value: Any, substrate: str, claims: Iterable[Claim]) -> Claim | None:
    """Return one party's answer: its longest claim that fits; among equals the one that names the value."""
    chosen: Claim | None = None
    rank: tuple[int, bool, int, str] | None = None
    for claim in claims:
        if "*" not in claim.substrates and substrate not in claim.substrates:
            continue
        exact = claim.path == path
        if not exact and not path.startswith(f"{claim.path}."):
            continue
        # The values of a section say nothing about those of its fields.
        if claim.values and not (exact and _names(claim, value)):
            continue
        candidate = (len(claim.path), bool(claim.values), _STRENGTH[claim.answer], claim.by)
        if rank is None or candidate > rank:
            chosen, rank = claim, candidate
    return chosen


def _names(claim: Claim, value: Any) -> bool:
    if isinstance(value, (list, dict, tuple)):
        return not value and () in claim.values
    # True == 1 in Python; a profile's true is not its 1.
    return any(
        isinstance(named, bool) is isinstance(value, bool) and named == value for named in claim.values
    )


def _may_loosen(
    source: ClaimSource, claim: Claim, path: str, *, substrate: str, mode: str, named: set[str]
) -> bool:
    """Say whether a loosening claim counts; *named* are those whom core's table names as providers."""
    if source.core or substrate in source.substrates:
        return True
    section = _plugin_section(path)
    if section:
        return section in source.sections
    if claim.answer is Answer.INERT:
        return False
    if not _within(path, _GUARDED):
        return True
    return source.name in named or (mode in source.modes and _within(path, _ENFORCERS_OWN))


def _ended(
    entry: tuple[ClaimSource, Claim],
    heard: Sequence[tuple[ClaimSource, Claim]],
    path: str,
    substrate: str,
    mode: str,
) -> bool:
    """Say whether somebody provides what *entry* calls missing."""
    speaker, missing = entry
    if missing.answer is not Answer.MISSING:
        return False
    for source, claim in heard:
        if source is speaker or claim.answer not in _LOOSENING:
            continue
        if substrate in source.substrates and speaker.core:
            return True
        if claim.answer is not Answer.ENFORCED:
            continue
        enforcer = mode in source.modes and _within(path, _ENFORCERS_OWN)
        if source.name == missing.by or (speaker.core and (enforcer or not missing.by)):
            return True
    return False


def _within(path: str, sections: Iterable[str]) -> bool:
    return any(path == section or path.startswith(f"{section}.") for section in sections)


def _plugin_section(path: str) -> str:
    """Return the key of the plugin's section that *path* lies in; empty for a field of the model."""
    from km_core.profile.kinds import fields_of
    from km_core.profile.model import Spec

    head, _, rest = path.partition(".")
    key = rest.partition(".")[0]
    return "" if head != "spec" or key in fields_of(Spec) else key


def _runs_somewhere(substrate: str, sources: Iterable[ClaimSource]) -> bool:
    """Say whether a distribution offers *substrate* or core's table enforces anything just there."""
    return any(
        substrate in source.substrates
        or (
            source.core
            and any(
                claim.answer is Answer.ENFORCED and substrate in claim.substrates for claim in source.claims
            )
        )
        for source in sources
    )


def _covered(path: str, known: Iterable[str]) -> bool:
    """Say whether *path*, a section around it or an item of it already has an error."""
    return any(
        path == entry or path.startswith(f"{entry}.") or entry.startswith(f"{path}[") for entry in known
    )


def _problem(answer: FieldAnswer, substrate: str) -> Problem | None:
    if answer.answer is Answer.ENFORCED:
        return None
    note = f": {answer.note}" if answer.note else ""
    if answer.answer is Answer.INERT:
        message = f"has no meaning on {substrate}{note}"
        return Problem(answer.path, message, Severity.INFO, code="claim-inert")
    if answer.unheard:
        note += f"; the claim of {', '.join(answer.unheard)} does not count: {_UNHEARD}"
    if answer.answer is Answer.REFUSED:
        return Problem(
            answer.path, f"is refused on {substrate}{note}", hint="remove it", code="claim-refused"
        )
    if answer.answer is Answer.MISSING:
        provider = f"{answer.by} would enforce it" if answer.by else "no distribution provides it yet"
        hint = f"remove it, or install {answer.by}" if answer.by else "remove it"
        message = f"is not enforced on {substrate}, {provider}{note}"
        return Problem(answer.path, message, hint=hint, code="claim-missing")
    message = f"no installed plugin enforces this on {substrate}{note}"
    return Problem(answer.path, message, hint="remove it", code="claim-none")
