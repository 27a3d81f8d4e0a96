"""The writer of a chain: continues what is whole, keeps what was torn, refuses the rest."""

from __future__ import annotations

import json
import os
import stat

import pytest

from km_core.audit import ChainWriter, DecisionLog, record_hash, verify_dir
from km_core.audit.decisions import OVERFLOW
from km_core.errors import AuditError
from km_core.types import Verdict

SANDBOX = "sb-12345678"
DENY = Verdict(False, "builtin:default-deny", "dns", "no rule")


@pytest.fixture
def audit_dir(tmp_path):
    directory = tmp_path / SANDBOX
    directory.mkdir()
    return directory


def writer(audit_dir, name="gate", **options):
    return ChainWriter(audit_dir / f"{name}.jsonl", writer=name, sandbox_id=SANDBOX, **options)


def records(audit_dir, name="gate"):
    return [json.loads(line) for line in (audit_dir / f"{name}.jsonl").read_text().splitlines()]


def test_records_are_chained_and_private(audit_dir):
    with writer(audit_dir, clock=lambda: 1.5) as chain:
        assert chain.append({"kind": "a"})[0] == 1
        assert chain.append({"kind": "b", "bytes_up": 7}) == chain.head
    first, second = records(audit_dir)
    assert second["prev"] == first["hash"] == record_hash(first)
    assert first["time"] == "1970-01-01T00:00:01.500000Z"
    assert (second["seq"], second["sandbox"], second["writer"], second["bytes_up"]) == (2, SANDBOX, "gate", 7)
    assert stat.S_IMODE((audit_dir / "gate.jsonl").stat().st_mode) == 0o600
    assert verify_dir(audit_dir, None).ok


def test_a_chain_is_continued_after_a_restart(audit_dir):
    for number in range(3):
        with writer(audit_dir) as chain:
            assert chain.append({"kind": "start"})[0] == number + 1
    assert verify_dir(audit_dir, None).records == {"gate": 3}


@pytest.mark.parametrize("torn", [b'{"hash":"12', b"{}", b"\0" * 100, b"x"])
def test_a_torn_line_is_kept_as_evidence_and_named_in_the_next_record(audit_dir, torn):
    with writer(audit_dir) as chain:
        chain.append({"kind": "a"})
    with (audit_dir / "gate.jsonl").open("ab") as file:
        file.write(torn)
    assert verify_dir(audit_dir, None).findings[0].kind == "torn"
    with writer(audit_dir) as chain:
        chain.append({"kind": "b"})
        chain.append({"kind": "c"})
    _, second, third = records(audit_dir)
    assert (audit_dir / second["recovered"]["file"]).read_bytes() == torn
    assert "recovered" not in third
    assert verify_dir(audit_dir, None).ok


def test_a_chain_that_is_only_a_torn_line_starts_anew(audit_dir):
    (audit_dir / "gate.jsonl").write_bytes(b'{"seq"')
    with writer(audit_dir) as chain:
        assert chain.append({"kind": "a"})[0] == 1
    assert verify_dir(audit_dir, None).ok


@pytest.mark.parametrize(
    "change", [lambda r: r.update(kind="b"), lambda r: r.pop("hash"), lambda r: r.update(writer="kmd")]
)
def test_a_damaged_tail_is_not_continued(audit_dir, change):
    with writer(audit_dir) as chain:
        chain.append({"kind": "a"})
    [record] = records(audit_dir)
    change(record)
    (audit_dir / "gate.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(AuditError):
        writer(audit_dir)


@pytest.mark.parametrize("depth", [300, 900, 985, 992, 1200, 100_000])
def test_a_record_nested_without_end_is_a_refusal_for_every_reader_and_writer(audit_dir, depth):
    path = audit_dir / "gate.jsonl"
    with writer(audit_dir) as chain:
        chain.append({"kind": "x"})
        deep = current = []
        for _ in range(min(depth, 5000)):
            current.append([])
            current = current[0]
        if depth > 900:
            with pytest.raises(AuditError, match="plain JSON"):
                chain.append({"kind": "x", "detail": deep})
        assert chain.append({"kind": "y"})[0] == 2
    with path.open("ab") as other:
        other.write(b'{"hash":"x","prev":"y","a":' + b"[" * depth + b"]" * depth + b"}\n")
    with pytest.raises(AuditError, match="damaged"):
        writer(audit_dir)
    finding = verify_dir(audit_dir, None).findings[0]
    assert (finding.index, finding.kind in {"hash", "unreadable"}) == (3, True)


def test_two_writers_of_one_chain_are_refused(audit_dir):
    with writer(audit_dir), pytest.raises(AuditError, match="another process"):
        writer(audit_dir)


def test_a_link_is_not_followed(audit_dir, tmp_path):
    (audit_dir / "gate.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AuditError):
        writer(audit_dir)


def test_a_chain_changed_or_deleted_under_the_writer_refuses(audit_dir):
    with writer(audit_dir) as chain:
        chain.append({"kind": "a"})
        with (audit_dir / "gate.jsonl").open("ab") as file:
            file.write(b"{}\n")
        with pytest.raises(AuditError, match="someone else"):
            chain.append({"kind": "b"})
    with writer(audit_dir, "kmd") as chain:
        (audit_dir / "kmd.jsonl").unlink()
        with pytest.raises(AuditError, match="deleted"):
            chain.append({"kind": "b"})


@pytest.mark.parametrize(
    "event",
    [{"seq": 1}, {"hash": "x"}, {"kind": object()}, {"x": float("nan")}, {"kind": "a", "x": "y " * 200_000}],
)
def test_what_cannot_be_recorded_is_refused_and_leaves_no_trace(audit_dir, event):
    with writer(audit_dir) as chain:
        before = chain.head
        with pytest.raises(AuditError):
            chain.append(event)
        assert chain.head == before
        assert chain.append({"kind": "a"})[0] == 1
    assert verify_dir(audit_dir, None).ok


def test_a_full_disk_refuses_and_a_half_written_record_is_taken_back(audit_dir, monkeypatch):
    with writer(audit_dir) as chain:
        chain.append({"kind": "a"})
        whole = os.write
        monkeypatch.setattr(os, "write", lambda fd, data: whole(fd, data[:10]))
        with pytest.raises(AuditError, match="disk is full"):
            chain.append({"kind": "b"})
        monkeypatch.setattr(os, "write", lambda fd, data: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(AuditError, match="No space"):
            chain.append({"kind": "b"})
        monkeypatch.setattr(os, "write", whole)
        assert chain.append({"kind": "b"})[0] == 2
    assert verify_dir(audit_dir, None).ok


def test_a_closed_chain_refuses(audit_dir):
    chain = writer(audit_dir)
    chain.close()
    chain.close()
    with pytest.raises(AuditError):
        chain.append({"kind": "a"})


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_equal_decisions_within_a_second_become_one_record_with_a_count(audit_dir):
    clock = Clock()
    with writer(audit_dir) as chain:
        log = DecisionLog(chain, clock=clock)
        for _ in range(10):
            log.record(DENY, kind="dns_query", name="a.test", detail="A")
        log.record(DENY, kind="dns_query", name="a.test", detail="AAAA")
        assert [r["count"] for r in records(audit_dir)] == [1, 1]
        clock.now += 0.5
        log.flush()
        assert len(records(audit_dir)) == 2
        clock.now += 0.6
        log.flush()
        log.flush()
        assert [(r["detail"], r["count"]) for r in records(audit_dir)] == [("A", 1), ("AAAA", 1), ("A", 9)]
        assert records(audit_dir)[2]["reason"] == "no rule"
        log.record(DENY, kind="dns_query", name="a.test", detail="A")
        log.record(DENY, kind="dns_query", name="a.test", detail="A")
        clock.now += 2
        log.record(DENY, kind="dns_query", name="a.test", detail="A")
        log.flush(everything=True)
        assert sum(r["count"] for r in records(audit_dir) if r["detail"] == "A") == 13


def test_many_different_decisions_do_not_grow_the_memory(audit_dir):
    with writer(audit_dir) as chain:
        log = DecisionLog(chain, clock=lambda: 0.0, max_keys=10)
        for number in range(100):
            for _ in range(2):
                log.record(DENY, kind="dns_query", name=f"n{number}.test")
        log.flush(everything=True)
    assert sum(r["count"] for r in records(audit_dir)) == 200


def test_a_flood_of_distinct_denials_is_counted_and_does_not_grow_the_file(audit_dir):
    clock = Clock()
    with writer(audit_dir) as chain:
        log = DecisionLog(chain, clock=clock, denial_burst=100, denials_per_s=10)
        for second in range(5):
            for number in range(20_000):
                log.record(DENY, kind="dns_query", name=f"n{second}-{number}.test", detail="A")
            clock.now += 1
            log.flush()
        log.record(DENY, kind="connect", name="hidden.test", port=443)
        log.flush(everything=True)
    found = records(audit_dir)
    assert sum(r["count"] for r in found) == 100_001, "none is unrecorded"
    assert len(found) < 100 + 4 * 10 + 5 * 2 + 2
    rest = [r for r in found if r.get("detail") == OVERFLOW]
    assert {(r["kind"], r["verdict"], r["rule"], r.get("name")) for r in rest} == {
        ("dns_query", "deny", DENY.rule, None)
    }
    assert [r["count"] for r in found if r.get("name") == "hidden.test"] == [1], (
        "a flood of one kind hides no other"
    )


def test_what_is_allowed_is_never_put_together(audit_dir):
    allow = Verdict(True, "allowedHosts[0]", "dns", "allowed")
    with writer(audit_dir) as chain:
        log = DecisionLog(chain, clock=lambda: 0.0, denial_burst=10, denials_per_s=0)
        for number in range(500):
            log.record(allow, kind="dns_query", name=f"n{number}.test")
    assert {r["name"] for r in records(audit_dir)} == {f"n{number}.test" for number in range(500)}


def test_a_count_that_cannot_be_written_is_kept(audit_dir, monkeypatch):
    with writer(audit_dir) as chain:
        log = DecisionLog(chain, clock=lambda: 0.0)
        for _ in range(5):
            log.record(DENY, kind="x")
        whole = chain.append
        monkeypatch.setattr(chain, "append", lambda event, **_kw: (_ for _ in ()).throw(AuditError("no")))
        with pytest.raises(AuditError):
            log.flush(everything=True)
        monkeypatch.setattr(chain, "append", whole)
        log.flush(everything=True)
    assert [r["count"] for r in records(audit_dir)] == [1, 4]


def test_a_first_decision_that_cannot_be_written_refuses_every_time(audit_dir):
    chain = writer(audit_dir)
    chain.close()
    log = DecisionLog(chain)
    for _ in range(2):
        with pytest.raises(AuditError):
            log.record(DENY, kind="x")


def test_decisions_are_redacted_too(audit_dir):
    key = "sk-ant-api03-abcdefgh"
    with writer(audit_dir) as chain:
        log = DecisionLog(chain)
        log.record(
            Verdict(False, "r", "http", f"refused {key}"), kind="http", name="a.test", detail=f"GET /?k={key}"
        )
    [record] = records(audit_dir)
    assert key not in json.dumps(record)
    assert record["name"] == "a.test"
