"""Every record has the shape that the page shows, and what could not be recorded is counted."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from km_core.audit import FIELDS, ChainWriter, DecisionLog, defects, verify_dir
from km_core.audit.schema import DECISIONS, GATE_EVENTS, LAYERS
from km_core.errors import AuditError
from km_core.types import Verdict

SANDBOX = "sb-12345678"
PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "audit.md"
DENIED = Verdict(False, "builtin:default-deny", "dns", "no rule of the profile allows this name")


@pytest.fixture
def chain(tmp_path):
    (tmp_path / SANDBOX).mkdir()
    with ChainWriter(tmp_path / SANDBOX / "gate.jsonl", writer="gate", sandbox_id=SANDBOX) as made:
        yield made


def records(chain):
    return [json.loads(line) for line in chain.path.read_text().splitlines()]


def test_the_page_has_every_field_kind_and_layer():
    if not PAGE.exists():
        pytest.skip("the documentation is not beside this distribution")
    rows = re.findall(r"^\| `([a-z_0-9]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(rows) == {field.name for field in FIELDS} | set(DECISIONS) | set(GATE_EVENTS) | set(LAYERS)


@given(
    st.fixed_dictionaries(
        {
            "kind": st.sampled_from(DECISIONS),
            "name": st.text(min_size=1, max_size=40),
            "port": st.integers(0, 65535),
            "detail": st.text(max_size=60),
            "connection": st.integers(0, 2**40),
        }
    ),
    st.booleans(),
    st.sampled_from(LAYERS),
)
def test_what_a_decision_log_writes_is_as_the_schema_says(tmp_path_factory, asked, allow, layer):
    path = tmp_path_factory.mktemp("a") / "gate.jsonl"
    with ChainWriter(path, writer="gate", sandbox_id=SANDBOX) as chain:
        log = DecisionLog(chain)
        for _ in range(3):
            log.record(Verdict(allow, "r", layer, "why"), **asked)
        log.flush(everything=True)
    found = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [defects(record) for record in found] == [[], []]
    assert sum(record["count"] for record in found) == 3
    assert found[0].get("connection", 0) == asked["connection"]
    assert "connection" not in found[1]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"port": 0}, "port"),
        ({"port": True}, "port"),
        ({"port": "443"}, "port"),
        ({"verdict": "maybe"}, "verdict"),
        ({"layer": "moon"}, "layer"),
        ({"count": 0}, "count"),
        ({"kind": "guess"}, "kind"),
        ({"prev": "x"}, "prev"),
        ({"time": "yesterday"}, "time"),
        ({"surprise": 1}, "surprise"),
        ({"rule": None}, "rule"),
    ],
)
def test_a_record_of_another_shape_is_told(chain, change, word):
    DecisionLog(chain).record(DENIED, kind="dns_query", name="a.test", port=53)
    record = records(chain)[0]
    assert defects(record) == []
    assert any(word in found for found in defects({**record, **change}))
    for required in ("seq", "hash", "rule", "reason", "layer", "count"):
        assert defects({key: value for key, value in record.items() if key != required})


def test_what_could_not_be_recorded_is_counted_in_the_next_record(chain, monkeypatch):
    log = DecisionLog(chain)
    log.record(DENIED, kind="dns_query", name="a.test")
    real = os.write

    def full(descriptor, data):
        if descriptor == chain._fd:
            raise OSError(28, "No space left on device")
        return real(descriptor, data)

    with monkeypatch.context() as broken:
        broken.setattr(os, "write", full)
        for number in range(3):
            with pytest.raises(AuditError):
                log.record(DENIED, kind="dns_query", name=f"b{number}.test")
        # Gathered decisions are kept and come again: they are not lost.
        log.record(DENIED, kind="dns_query", name="a.test")
        with pytest.raises(AuditError):
            log.flush(everything=True)
    assert chain.lost == 3
    log.flush(everything=True)
    log.record(DENIED, kind="dns_query", name="c.test")

    found = records(chain)
    assert [record.get("lost", 0) for record in found] == [0, 3, 0]
    assert [defects(record) for record in found] == [[], [], []]
    assert verify_dir(chain.path.parent, None).ok


def test_an_event_may_not_say_by_itself_that_records_were_lost(chain):
    with pytest.raises(AuditError, match="reserved"):
        chain.append({"kind": "x", "lost": 0})
