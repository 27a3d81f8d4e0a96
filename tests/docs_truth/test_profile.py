"""Every field of the model is documented, no page names one that is not there, and samples are valid."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sitepages import reading

from km_core.profile.kinds import Section, Table, fields_of
from km_core.profile.model import SandboxProfile

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/*/README.md")])
KM = str(Path(sys.executable).with_name("km"))


def fields(model: type = SandboxProfile, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Yield each field's dotted path, and whether its keys are the author's own."""
    for key, info in fields_of(model).items():
        yield prefix + key, isinstance(info.kind, Table)
        if isinstance(info.kind, Section):
            yield from fields(info.kind.model, f"{prefix}{key}.")


@cache
def known() -> tuple[set[str], set[str]]:
    from km_core.plugins import load_plugins

    everything = dict(fields())
    for section in load_plugins().profile_sections():
        everything |= {f"spec.{section.key}": False} | dict(fields(section.model, f"spec.{section.key}."))
    return set(everything), {path for path, opened in everything.items() if opened}


def test_every_field_has_a_row_on_the_reference_page() -> None:
    text = (ROOT / "docs" / "reference" / "profile.md").read_text(encoding="utf-8")
    rows = set()
    section = ""
    for line in text.splitlines():
        if heading := re.match(r"## (?:`(.+)`|The document)$", line):
            section = heading[1] or ""
        elif row := re.match(r"\| (?:\*\*)?`(\w+)`(?:\*\*)? \| \S.* \| .*\| .*\| \S.* \|$", line):
            rows.add(f"{section}.{row[1]}".lstrip("."))

    assert rows == {path for path, _ in fields()}


def test_every_rule_between_fields_has_a_row_and_every_row_a_rule() -> None:
    from km_core.compile.rules_network import NETWORK_RULES
    from km_core.compile.rules_operator import OPERATOR_RULES
    from km_core.compile.rules_runtime import RUNTIME_RULES

    rules = [paths for rules in (RUNTIME_RULES, NETWORK_RULES, OPERATOR_RULES) for paths, _ in rules.entries]
    text = (ROOT / "docs" / "reference" / "rules.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ((?:`[\w.]+` )+)\|.*\| (?:error|warning) \|$", text, re.MULTILINE)

    assert sorted(tuple(re.findall(r"`(.+?)`", row)) for row in rows) == sorted(rules)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_page_names_a_field_that_is_not_there(page: Path) -> None:
    paths, opened = known()
    named = re.findall(
        r"`((?:spec|metadata)(?:\.[A-Za-z]+)+)(?:\.\*|\[\d*\])?`", page.read_text(encoding="utf-8")
    )

    assert [p for p in named if p not in paths and not any(p.startswith(f"{o}.") for o in opened)] == []


def shown_profiles() -> list[tuple[str, str]]:
    """Return the whole profiles of YAML blocks, but for those that the page's own commands read."""
    texts = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
    return [
        (page, body)
        for page, text in texts.items()
        for body in reading.code(text, "yaml")
        if "kind: SandboxProfile" in body and body not in reading.files(text).values()
    ]


def test_whole_profiles_that_pages_show_are_valid(tmp_path: Path) -> None:
    for number, (page, body) in enumerate(shown_profiles()):
        file = tmp_path / f"shown{number}.yaml"
        file.write_text(body, encoding="utf-8")
        done = subprocess.run(
            [KM, "validate", str(file)], capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, (page, done.stderr)


def shown_sections() -> list[tuple[str, dict[str, object]]]:
    """Return YAML blocks that show sections of ``spec`` without the rest of a profile."""
    import yaml

    known = set(fields_of(fields_of(SandboxProfile)["spec"].kind.model))
    found = []
    for page in PAGES:
        for body in reading.code(page.read_text(encoding="utf-8"), "yaml"):
            data = yaml.safe_load(body)
            if isinstance(data, dict) and data and set(data) <= known:
                found.append((str(page.relative_to(ROOT)), data))
    return found


def test_sections_that_pages_show_are_valid_within_a_profile(tmp_path: Path) -> None:
    import yaml

    assert shown_sections()
    base = yaml.safe_load((ROOT / "profiles" / "quickstart.yaml").read_text(encoding="utf-8"))
    for number, (page, sections) in enumerate(shown_sections()):
        file = tmp_path / f"shown{number}.yaml"
        whole = {**base, "spec": {**base["spec"], **sections}}
        file.write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")
        done = subprocess.run(
            [KM, "validate", str(file)], capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, (page, sections, done.stderr)


def test_sample_profiles_are_valid_without_a_warning_of_their_own() -> None:
    samples = sorted(str(path) for path in (ROOT / "profiles").glob("*.yaml"))
    done = subprocess.run(
        [KM, "validate", *samples, "--json"], capture_output=True, text=True, timeout=30, check=False
    )
    report = json.loads(done.stdout)

    assert samples
    assert done.returncode == 0, report
    own = [p for p in report["problems"] if not p["file"].startswith("<built-in ")]
    assert [p for p in own if p["severity"] != "info"] == []


def test_the_quick_starts_agent_is_a_program() -> None:
    import yaml

    profile = yaml.safe_load((ROOT / "profiles" / "quickstart.yaml").read_text(encoding="utf-8"))
    compile(profile["spec"]["execution"]["configFiles"]["/workspace/agent.py"], "agent.py", "exec")
