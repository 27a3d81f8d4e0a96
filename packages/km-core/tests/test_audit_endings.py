"""What connections moved: one record each up to a rate, exact sums beyond it."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from km_core.audit import ChainWriter
from km_core.audit.endings import SUMS, Endings
from km_core.audit.schema import defects
from km_core.errors import AuditError


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def closed(name, up, down, **rest):
    event = {"kind": "tunnel_closed", "layer": "tcp", "name": name, "port": 443, "bytes_up": up}
    return event | {"bytes_down": down, "duration_ms": 1, "connection": 1} | rest


def written(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


STEP = st.tuples(st.sampled_from("abcdef"), st.integers(0, 10**12), st.integers(0, 10**12), st.booleans())


@settings(deadline=None)
@given(st.lists(STEP, max_size=60), st.integers(0, 8), st.integers(1, 3))
def test_no_byte_is_lost_however_many_are_gathered(tmp_path_factory, steps, burst, keys):
    directory = tmp_path_factory.mktemp("chain")
    path, clock = directory / "gate.jsonl", Clock()
    with ChainWriter(path, writer="gate", sandbox_id="sb-1") as chain:
        endings = Endings(chain, clock=clock, burst=burst, per_s=0.5, max_keys=keys)
        for name, up, down, later in steps:
            clock.now += later
            endings.record(closed(name, up, down))
            endings.flush()
        endings.flush(everything=True)

    records = written(path)
    assert [defect for record in records for defect in defects(record)] == []
    assert sum(record.get("count", 1) for record in records) == len(steps)
    assert sum(record["bytes_up"] for record in records) == sum(step[1] for step in steps)
    assert sum(record["bytes_down"] for record in records) == sum(step[2] for step in steps)
    named = Counter()
    for record in records:
        named[record.get("name", "")] += record["bytes_up"]
    for name in "abcdef":
        assert named[name] <= sum(step[1] for step in steps if step[0] == name)


def test_a_flood_of_connections_writes_a_bounded_number_of_records(tmp_path):
    path, clock = tmp_path / "gate.jsonl", Clock()
    with ChainWriter(path, writer="gate", sandbox_id="sb-1") as chain:
        endings = Endings(chain, clock=clock, burst=10, per_s=4)
        for number in range(5000):
            clock.now = number / 1000
            endings.record(closed("a.test", 1, 2))
            endings.flush()
        endings.flush(everything=True)

    records = written(path)
    assert len(records) <= 10 + 5 * 4 + 6
    assert sum(record.get("count", 1) for record in records) == 5000
    assert {name for record in records for name in record} >= set(SUMS) - {"requests"}


def test_how_connections_ended_is_told_apart(tmp_path):
    path, clock = tmp_path / "gate.jsonl", Clock()
    with ChainWriter(path, writer="gate", sandbox_id="sb-1") as chain:
        endings = Endings(chain, clock=clock, burst=0)
        endings.record(closed("a.test", 1, 0))
        endings.record(closed("a.test", 2, 0, error="cut"))
        endings.flush(everything=True)

    assert [(record.get("error"), record["bytes_up"]) for record in written(path)] == [(None, 1), ("cut", 2)]


def test_what_cannot_be_written_stays_gathered(tmp_path, monkeypatch):
    path, clock = tmp_path / "gate.jsonl", Clock()
    with ChainWriter(path, writer="gate", sandbox_id="sb-1") as chain:
        endings = Endings(chain, clock=clock, burst=0)
        endings.record(closed("a.test", 1, 0))
        with monkeypatch.context() as full:

            def refuse(*_args, **_kept):
                raise AuditError("no room", where="here")

            full.setattr(chain, "append", refuse)
            with pytest.raises(AuditError):
                endings.flush(everything=True)
        endings.record(closed("a.test", 5, 0))
        endings.flush(everything=True)

    assert [record["bytes_up"] for record in written(path)] == [6]
