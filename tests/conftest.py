"""
What every test run of the workspace shares: seconds per suite, and skips that count.

``KM_EXPECT`` (set by ``.ci/run``) names the kinds of tests this machine can run, by marker:
``namespaces``, ``docker``, ``clients``.  A skipped test of such a kind fails the run, and so does a kind
of which no test ran.  A test that another run of the same suite covers says so in its reason ("... covers
it") and may be skipped; so may a client program that is too large to be installed for it ("...: an
optional client"), and a promise of the conformance kit that the contract's class declares it does not make
(``supports_pause = False``), for that says nothing about the machine.
"""

from __future__ import annotations

import collections
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))  # the stand-ins of the quick start serve the tests too
sys.path.insert(0, str(ROOT / "tests"))

DECLARED = re.compile(
    r"covers it$|: an optional client$"
    r"|\b(?:supports|enforces)_\w+ = False\b|no `plugin` and `profile_text` fixtures"
)
EXPECTED = frozenset(filter(None, os.environ.get("KM_EXPECT", "").split(",")))


class SuiteReport:
    """Adds up seconds by suite and remembers skips that must not be."""

    def __init__(self) -> None:
        self.seconds: collections.Counter[str] = collections.Counter()
        self.tests: collections.Counter[str] = collections.Counter()
        self.ran: set[str] = set()
        self.missed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        suite = suite_of(report.nodeid)
        self.seconds[suite] += report.duration
        kinds = EXPECTED & set(report.keywords)
        if report.when == "call":
            self.tests[suite] += 1
            self.ran |= kinds
        if report.skipped and kinds and not DECLARED.search(_reason(report)):
            self.missed.append(f"{report.nodeid}: {_reason(report)}")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped and EXPECTED:
            self.missed.append(f"{report.nodeid}: the whole module: {_reason(report)}")

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        option = session.config.option
        if option.collectonly or option.lf or session.config.args_source.name == "ARGS":
            return  # a part of the tests only
        self.missed += [f"no test of the kind {kind} ran" for kind in sorted(EXPECTED - self.ran)]

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("seconds per suite")
        for suite, seconds in self.seconds.most_common():
            terminalreporter.line(f"{seconds:8.1f} s  {self.tests[suite]:5} tests  {suite}")
        if self.missed:
            terminalreporter.section("expected on this machine, but skipped", red=True)
            for line in self.missed:
                terminalreporter.line(line)


def suite_of(nodeid: str) -> str:
    """Return the suite's name: the distribution, or the folder below ``tests/``."""
    parts = nodeid.split("::", maxsplit=1)[0].split("/")
    if parts[0] == "packages":
        return parts[1]
    return "/".join(parts[:2]) if len(parts) > 2 else parts[0]


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    longrepr = report.longrepr
    return str(longrepr[2]) if isinstance(longrepr, tuple) else str(longrepr)


def _own_places() -> None:
    """
    Give the run a directory of its own for temporary files and for km's state, removed at its end.

    No test may find, start or leave anything in the operator's own ``~/.km`` or beside it.  The name is
    short, because socket paths are limited to 108 bytes, and other users may look in: some suites run as
    an ordinary user.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    place = Path(tempfile.mkdtemp(prefix="kt"))
    place.chmod(0o1777)
    os.environ |= {
        "TMPDIR": str(place),
        "KM_HOME": str(place / "km"),
        "KM_RUNTIME_DIR": str(place / "km-run"),
    }
    tempfile.tempdir = str(place)
    PLACES.append(place)


PLACES: list[Path] = []
_own_places()


def pytest_unconfigure() -> None:
    """Remove what the run left in its directory."""
    for place in PLACES:
        shutil.rmtree(place, ignore_errors=True)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(SuiteReport(), "km-suite-report")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    report = session.config.pluginmanager.get_plugin("km-suite-report")
    if report is not None and report.missed and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
