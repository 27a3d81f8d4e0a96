"""Every fuzz target, briefly and from useful beginnings; `scripts/fuzz` goes on where this stops."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("km_fuzz_targets", ROOT / "fuzz" / "targets.py")
assert SPEC is not None
assert SPEC.loader is not None
MODULE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(MODULE)
TARGETS, SEEDS = MODULE.TARGETS, MODULE.SEEDS


@st.composite
def mutated(draw: st.DrawFn, beginnings: list[bytes]) -> bytes:
    data = bytearray(draw(st.sampled_from(beginnings)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=6))
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
@given(data=st.data())
def test_nothing_is_found_in_a_moment(name: str, data: st.DataObject) -> None:
    TARGETS[name](data.draw(st.binary(max_size=300) | mutated(SEEDS[name])))


def test_the_script_lists_every_target() -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    listed = subprocess.run(
        [bash, str(ROOT / "scripts" / "fuzz")],
        env={"KM_FUZZ_PYTHON": sys.executable, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(TARGETS)
