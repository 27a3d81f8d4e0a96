"""
The checks of ``km plugins check``.

``entry-point``: one distribution, a valid name; ``requires-core``: depends on a range of km-core that this
one is in; ``licence``; ``import``, ``light-import``, ``silent-import``, ``import-time``, ``typed``: the module;
``contract``: API number, hooks and their arguments; ``answer``, ``pure``, ``silent-hooks``, ``claims``,
``target``: what the hooks return; ``unique``: together with the other installed plugins.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from km_core.errors import PluginError
from km_core.inspection.finding import ERROR, OK, WARNING, Finding
from km_core.plugins import GROUP
from km_core.plugins.calls import time_limit
from km_core.plugins.discover import load_entries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from km_core.inspection.subject import Subject

IMPORT_BUDGET_MS = 200.0
"""Processor time that importing a plugin may take: every ``km`` command that uses plugins pays it."""
_ATTEMPTS = 3
_CALLS = 40
"""How many calls into a plugin a probe makes at most; bounds how long it is waited for."""
_CORE = re.compile(r"^km[-_.]core(?![-_.a-z0-9])\s*(?:\[[^\]]*\])?\s*\(?([^;)]*)\)?", re.IGNORECASE)
_CLAUSE = re.compile(r"\s*(===|~=|==|!=|<=|>=|<|>)\s*([0-9]+(?:\.[0-9]+)*)[^,]*")


def inspect_plugins(subjects: Sequence[Subject], *, core_version: str = "") -> list[Finding]:
    """
    Inspect plugins, statically and by trying them in processes of their own.

    Args:
        subjects: from `find_subjects`.
        core_version: what their requirement is held against; default: the installed km-core's.
    """
    if not core_version:
        from km_core import __version__ as core_version
    findings: list[Finding] = []
    for subject in subjects:
        findings += _metadata(subject, core_version)
        findings += _probed(subject)
    # One that cannot be imported is not imported here either: it may end the process.
    unfit = {finding.plugin for finding in findings if (finding.check, finding.status) == ("import", ERROR)}
    installed = {subject.name for subject in subjects if not subject.path} - unfit
    if installed:
        findings += _together(installed, unfit)
    return findings


def _metadata(subject: Subject, core_version: str) -> Iterator[Finding]:
    def said(check: str, status: str, message: str, hint: str = "") -> Finding:
        return Finding(subject.name, check, status, message, hint)

    if subject.rivals:
        what = f"{', '.join(subject.rivals)} registers the name {subject.name} too; neither is used"
        yield said("entry-point", ERROR, what, "uninstall one of the two, or rename the entry point")
    elif not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", subject.name):
        yield said("entry-point", ERROR, "the name is not made of a-z, 0-9, '.', '_' and '-'")
    else:
        who = f"{subject.distribution} {subject.version}".strip()
        yield said("entry-point", OK, f"{subject.module} of {who}")
    problem, hint = core_range(subject.requires, core_version)
    yield said("requires-core", ERROR if problem else OK, problem or "depends on a range of km-core", hint)
    if subject.licence:
        yield said("licence", OK, "names a licence")
    else:
        yield said("licence", WARNING, "names no licence", 'write license = "…" under [project]')


def core_range(requires: Sequence[str], core_version: str) -> tuple[str, str]:
    """
    Say what is wrong with a distribution's requirement on km-core, with a hint; empty when nothing is.

    Args:
        requires: requirements as in ``Requires-Dist`` (PEP 508).
        core_version: of this km-core.
    """
    major, _, rest = core_version.partition(".")
    minor = rest.partition(".")[0]
    following = f"{major}.{int(minor or 0) + 1}" if major == "0" else f"{int(major) + 1}"
    hint = f'write "km-core>={major}.{minor or 0},<{following}"'
    found = [match[1] for text in requires if (match := _CORE.match(text.strip()))]
    if not found:
        return "does not depend on km-core", hint
    clauses = [(match[1], match[2]) for text in found for match in _CLAUSE.finditer(text)]
    kinds = {operator for operator, _ in clauses}
    if not kinds & {">=", ">", "==", "===", "~="}:
        return "accepts any old km-core", hint
    if not kinds & {"<", "<=", "==", "===", "~="}:
        return "accepts any future km-core, whose hooks may differ", hint
    here = _release(core_version)
    if not all(_admits(operator, bound, here) for operator, bound in clauses):
        return f"does not accept this km-core, {core_version}", hint
    return "", ""


def _release(text: str) -> tuple[int, ...]:
    """Return the numbers of a version; what follows them (``.dev1``) does not count."""
    numbers = [int(part) for part in re.findall(r"[0-9]+", re.split(r"[^0-9.]", text, maxsplit=1)[0])]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _admits(operator: str, text: str, here: tuple[int, ...]) -> bool:
    bound = _release(text)
    # Compatible with 0.1.2 means 0.1.*: the zeros that are written count (PEP 440).
    family = tuple(int(part) for part in text.split("."))[:-1]
    return {
        ">=": here >= bound,
        ">": here > bound,
        "<": here < bound,
        "<=": here <= bound,
        "!=": here != bound,
        "~=": here >= bound and (*here, *(0 for _ in family))[: len(family)] == family,
        # A prefix match (==0.1.*) loses its star on the way here.
        "==": here[: len(bound)] == bound,
        "===": here == bound,
    }[operator]


def _probed(subject: Subject) -> Iterator[Finding]:
    answer, failure = _probe(subject)
    if answer is None:
        yield Finding(subject.name, "import", ERROR, failure, f"python -c 'import {subject.module}'")
        return
    for check, status, message, hint in answer["findings"]:
        yield Finding(subject.name, check, status, message, hint)
    best = float(answer["import_ms"])
    for _ in range(_ATTEMPTS - 1):
        if best <= IMPORT_BUDGET_MS:
            break
        # The first import compiles, and another process may have had the machine.
        again, _ = _probe(subject)
        best = best if again is None else min(best, float(again["import_ms"]))
    late = best > IMPORT_BUDGET_MS
    yield Finding(
        subject.name,
        "import-time",
        ERROR if late else OK,
        f"takes {best:.0f} ms of processor time to import" + (f", of {IMPORT_BUDGET_MS:.0f}" if late else ""),
        "import what a hook needs inside the hook" if late else "",
    )


def _probe(subject: Subject) -> tuple[dict[str, Any] | None, str]:
    """Try a plugin in a process of its own; returns its answer, or None and what happened."""
    given = json.dumps({"name": subject.name, "module": subject.module, "path": subject.path})
    limit = 30 + _CALLS * time_limit()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "km_core.inspection.probe"],
            input=given,
            stdout=subprocess.PIPE,
            text=True,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"does not let the process end within {limit:.0f} s"
    if done.returncode < 0:
        return None, f"ends the process that imports it, with signal {-done.returncode}"
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        return None, f"ends the process that imports it, with exit code {done.returncode}"
    return answer if isinstance(answer, dict) else None, "does not answer"


def _together(names: set[str], unfit: set[str]) -> Iterator[Finding]:
    """Look for offers that clash with those of another installed plugin, without those that are *unfit*."""
    registry = load_entries(entry_points(group=GROUP), block=",".join(sorted(unfit)))
    asks: tuple[Callable[[], object], ...] = (
        registry.profile_sections,
        registry.substrates,
        registry.enforcers,
        registry.sidecars,
        registry.meters,
        registry.control_planes,
        registry.egress_groups,
        registry.doctor_checks,
        registry.agents,
        registry.inside_services,
    )
    clashing: set[str] = set()
    for ask in asks:
        try:
            ask()
        except PluginError as error:
            concerned = {name for name in names if name == error.plugin or f"plugin {name} " in error.what}
            for name in sorted(concerned):
                clashing.add(name)
                # What the registry says names one of the two; said of that one it has to name the other.
                what = error.what if name == error.plugin else str(error)
                yield Finding(name, "unique", ERROR, what, error.hint)
    for name in sorted(names - clashing):
        yield Finding(name, "unique", OK, "clashes with no other installed plugin")
