"""Every change of the evidence is found, and the first record that is not whole is named."""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from km_core.audit import ChainWriter, Checkpoints, Head, record_hash, verify_dir
from km_core.errors import AuditError
from km_core.identity import new_seed, public_key

SANDBOX = "sb-12345678"
SEED = bytes(range(32))
KEY = public_key(SEED)
COUNT = 12
SIGNED = 8


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Twelve records of the gate and three of kmd; the second checkpoint signs eight and three."""
    directory = tmp_path_factory.mktemp("audit") / SANDBOX
    directory.mkdir()
    checkpoints = Checkpoints(directory, sandbox_id=SANDBOX, seed=SEED)
    gate = ChainWriter(directory / "gate.jsonl", writer="gate", sandbox_id=SANDBOX)
    kmd = ChainWriter(directory / "kmd.jsonl", writer="kmd", sandbox_id=SANDBOX)
    for number in range(COUNT):
        gate.append({"kind": "connect", "name": f"n{number}.test", "port": 443})
        if number < 3:
            kmd.append({"kind": "budget", "amount": number})
        if number in {3, SIGNED - 1}:
            checkpoints.add({"gate": Head(*gate.head), "kmd": Head(*kmd.head)})
    gate.close()
    kmd.close()
    return directory


@pytest.fixture
def copy(original, tmp_path):
    return shutil.copytree(original, tmp_path / SANDBOX)


def test_whole_evidence_verifies(original):
    report = verify_dir(original, KEY)
    assert report.ok
    assert report.to_dict() == {
        "ok": True,
        "findings": [],
        "records": {"gate": COUNT, "kmd": 3},
        "checkpoints": 2,
        "unsigned": {"gate": COUNT - SIGNED, "kmd": 0},
        "anchored": 0,
    }


def change(directory, edit, name="gate.jsonl"):
    path = directory / name
    lines = path.read_bytes().splitlines(keepends=True)
    edit(lines)
    path.write_bytes(b"".join(lines))
    return verify_dir(directory, KEY)


def fresh(original, directory):
    shutil.rmtree(directory, ignore_errors=True)
    return shutil.copytree(original, directory)


MUTATIONS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@MUTATIONS
@given(st.integers(0, COUNT - 1), st.data())
def test_a_flipped_byte_is_found_at_its_record(original, tmp_path, index, data):
    directory = fresh(original, tmp_path / SANDBOX)

    def edit(lines):
        at = data.draw(st.integers(0, len(lines[index]) - 2))
        bit = 1 << data.draw(st.integers(0, 7))
        line = bytearray(lines[index])
        line[at] ^= bit
        lines[index] = bytes(line)

    report = change(directory, edit)
    assert not report.ok
    assert report.findings[0].file == "gate.jsonl"
    assert report.findings[0].index == index + 1


@MUTATIONS
@given(st.integers(0, COUNT - 2), st.integers(1, COUNT))
def test_a_dropped_record_is_found_where_it_stood(original, tmp_path, index, count):
    directory = fresh(original, tmp_path / SANDBOX)
    count = min(count, COUNT - 1 - index)
    report = change(directory, lambda lines: lines.__delitem__(slice(index, index + count)))
    assert [f.index for f in report.findings] == [index + 1]


@MUTATIONS
@given(st.integers(0, COUNT - 1), st.integers(0, COUNT))
def test_a_duplicated_record_is_found(original, tmp_path, index, place):
    directory = fresh(original, tmp_path / SANDBOX)
    report = change(directory, lambda lines: lines.insert(place, lines[index]))
    # Put right before itself, the second of the two is the copy.
    assert [f.index for f in report.findings] == [place + 1 if place != index else index + 2]


@MUTATIONS
@given(st.integers(0, COUNT - 1), st.integers(0, COUNT - 1))
def test_reordered_records_are_found_at_the_first_of_them(original, tmp_path, one, other):
    directory = fresh(original, tmp_path / SANDBOX)
    if one == other:
        return

    def swap(lines):
        lines[one], lines[other] = lines[other], lines[one]

    assert [f.index for f in change(directory, swap).findings] == [min(one, other) + 1]


@pytest.mark.parametrize("left", range(COUNT))
def test_truncation_behind_a_checkpoint_is_found(copy, left):
    report = change(copy, lambda lines: lines.__delitem__(slice(left, None)))
    if left >= SIGNED:
        assert report.ok, "what no checkpoint signed is reported as unsigned, not as missing"
        assert report.unsigned["gate"] == left - SIGNED
    else:
        assert [(f.index, f.kind) for f in report.findings] == [(left + 1, "truncated")]


@pytest.mark.parametrize("index", range(COUNT))
def test_a_chain_written_anew_from_a_record_on_is_found_by_the_next_checkpoint(copy, index):
    def forge(lines):
        prev = json.loads(lines[index])["prev"]
        for number in range(index, len(lines)):
            record = json.loads(lines[number])
            record["prev"] = prev
            if number == index:
                record["name"] = "innocent.test"
            record["hash"] = prev = record_hash(record)
            lines[number] = json.dumps(record).encode() + b"\n"

    report = change(copy, forge)
    if index >= SIGNED:
        assert report.ok
    else:
        assert [(f.index, f.kind) for f in report.findings] == [(4 if index < 4 else SIGNED, "rewritten")]


def test_a_missing_chain_is_found(copy):
    (copy / "kmd.jsonl").unlink()
    assert [(f.file, f.kind) for f in verify_dir(copy, KEY).findings] == [("kmd.jsonl", "missing")]


def test_one_writers_chain_cannot_stand_for_anothers(copy):
    shutil.copy(copy / "gate.jsonl", copy / "kmd.jsonl")
    assert [(f.file, f.index, f.kind) for f in verify_dir(copy, KEY).findings] == [
        ("kmd.jsonl", 1, "identity")
    ]


def test_checkpoints_of_another_key_do_not_hold(copy):
    assert verify_dir(copy, public_key(new_seed())).findings[0].kind == "signature"
    assert verify_dir(copy, None).findings[0].kind == "signature"


@pytest.mark.parametrize(
    ("edit", "index", "kind"),
    [
        (lambda lines: lines.reverse(), 1, "sequence"),
        (lambda lines: lines.pop(0), 1, "sequence"),
        (lambda lines: lines.insert(1, lines[0]), 2, "sequence"),
        (lambda lines: lines.__setitem__(1, lines[1].replace(b'"seq":8', b'"seq":7')), 2, "signature"),
        (lambda lines: lines.__setitem__(1, b"[]\n"), 2, "unreadable"),
        (lambda lines: lines.__setitem__(1, lines[1][:-1]), 2, "torn"),
        (lambda lines: lines.__setitem__(0, b'{"number":1,"number":1}\n'), 1, "unreadable"),
    ],
)
def test_a_changed_checkpoint_is_found(copy, edit, index, kind):
    finding = change(copy, edit, "checkpoints.jsonl").findings[0]
    assert (finding.file, finding.index, finding.kind) == ("checkpoints.jsonl", index, kind)


def test_a_head_that_goes_back_is_not_signed(copy):
    checkpoints = Checkpoints(copy, sandbox_id=SANDBOX, seed=SEED)
    last = checkpoints.last()["heads"]
    for heads in (
        {},
        {"gate": Head(7, "x"), "kmd": Head(**last["kmd"])},
        {"gate": Head(8, "x"), "kmd": Head(**last["kmd"])},
    ):
        with pytest.raises(AuditError, match="went back"):
            checkpoints.add(heads)
    added = checkpoints.add({name: Head(**head) for name, head in last.items()}, state="stopped")
    assert (added["number"], added["state"]) == (3, "stopped")
    assert verify_dir(copy, KEY).ok


def test_a_checkpoint_torn_by_a_crash_is_written_again(copy):
    checkpoints = Checkpoints(copy, sandbox_id=SANDBOX, seed=SEED)
    heads = {name: Head(**head) for name, head in checkpoints.last()["heads"].items()}
    with (copy / "checkpoints.jsonl").open("ab") as file:
        file.write(b'{"heads":')
    assert checkpoints.add(heads)["number"] == 3
    assert verify_dir(copy, KEY).ok


def test_the_seed_is_in_no_repr():
    assert SEED.hex() not in repr(vars(Checkpoints)) + repr(Checkpoints.__repr__)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes_are_a_finding_and_never_an_exception(tmp_path, data):
    directory = tmp_path / SANDBOX
    directory.mkdir(exist_ok=True)
    (directory / "gate.jsonl").write_bytes(data)
    (directory / "checkpoints.jsonl").write_bytes(data)
    assert verify_dir(directory, KEY).ok == (not data)
