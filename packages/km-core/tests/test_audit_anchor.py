from __future__ import annotations

import json
import os
import shutil

import pytest
from attrs import evolve

from km_core.audit import Anchor, ChainWriter, Checkpoints, Head, read_anchor, verify_dir, write_anchor
from km_core.audit.checkpoint import checkpoint_digest
from km_core.config import Config
from km_core.errors import AuditError, ControlUnavailableError
from km_core.identity import new_seed, public_key
from km_core.lifecycle.evidence import verify_evidence
from km_core.lifecycle.session import Session

ID = "sb-0000000a"


class World:
    """The evidence of one sandbox, with three checkpoints and the anchor of the last."""

    def __init__(self, home):
        self.seed = new_seed()
        self.config = Config(home=home, runtime_dir=home / "r")
        self.directory = self.config.audit_dir(ID)
        self.directory.mkdir(parents=True)
        self.checkpoints = Checkpoints(self.directory, sandbox_id=ID, seed=self.seed)
        self.anchors = []
        with ChainWriter(self.directory / "kmd.jsonl", writer="kmd", sandbox_id=ID) as chain:
            for number in range(3):
                chain.append({"kind": "step", "number": number})
                made = self.checkpoints.add({"kmd": Head(*chain.head)})
                self.anchors.append(Anchor(made["number"], checkpoint_digest(made)))
        self.file = self.config.anchor_file(ID)
        self.file.parent.mkdir()
        write_anchor(self.file, self.anchors[-1], sandbox_id=ID, seed=self.seed)
        import base64

        (home / "checkpoint.pub").write_text(base64.b64encode(public_key(self.seed)).decode() + "\n")

    def cut_back(self, records):
        """Cut chain and checkpoints back together: each is whole in itself."""
        for name in ("kmd.jsonl", "checkpoints.jsonl"):
            path = self.directory / name
            path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:records]))

    def verify(self, control=None):
        session = Session(self.config, None, control)
        return verify_evidence(session, ID, offline=control is None)


class Kmd:
    """A control plane that remembers one anchor."""

    def __init__(self, anchor):
        self.anchor = anchor

    def call(self, op, /, **args):
        assert (op, args) == ("audit.anchor", {"id": ID})
        if isinstance(self.anchor, Exception):
            raise self.anchor
        return None if self.anchor is None else {"number": self.anchor.number, "digest": self.anchor.digest}


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_whole_evidence_reaches_its_anchor(world):
    report = world.verify()

    assert (True, 3, 3) == (report.ok, report.checkpoints, report.anchored)


@pytest.mark.parametrize("records", [0, 1, 2])
def test_chains_and_checkpoints_cut_back_together_are_seen_without_kmd(world, records):
    world.cut_back(records)
    assert verify_dir(world.directory, public_key(world.seed)).ok

    report = world.verify()

    assert not report.ok
    assert [("checkpoints.jsonl", records + 1, "truncated")] == [
        (finding.file, finding.index, finding.kind) for finding in report.findings
    ]


def test_evidence_that_was_removed_as_a_whole_is_missed(world):
    shutil.rmtree(world.directory)

    assert not world.verify().ok


def test_what_kmd_remembers_is_compared_when_the_anchor_file_is_gone_too(world):
    world.cut_back(1)
    world.file.unlink()

    assert world.verify().ok
    assert world.verify().anchored == 0
    assert not world.verify(Kmd(world.anchors[-1])).ok


def test_an_older_anchor_file_put_back_does_not_hide_what_kmd_remembers(world):
    world.cut_back(1)
    write_anchor(world.file, world.anchors[0], sandbox_id=ID, seed=world.seed)

    assert not world.verify(Kmd(world.anchors[-1])).ok


def test_checkpoints_written_anew_with_the_stolen_length_do_not_fit(world):
    report = verify_dir(world.directory, public_key(world.seed), [evolve(world.anchors[-1], digest="0" * 64)])

    assert [("rewritten", 3)] == [(finding.kind, finding.index) for finding in report.findings]


def test_a_checkpoint_more_than_the_anchor_is_what_a_crash_leaves(world):
    write_anchor(world.file, world.anchors[1], sandbox_id=ID, seed=world.seed)

    assert world.verify().ok
    world.checkpoints.require(world.anchors[1])


def test_the_signer_itself_sees_that_its_checkpoints_went_back(world):
    world.cut_back(2)

    with pytest.raises(AuditError, match="went back"):
        world.checkpoints.require(world.anchors[-1])
    (world.directory / "checkpoints.jsonl").unlink()
    with pytest.raises(AuditError, match="went back"):
        world.checkpoints.require(world.anchors[-1])


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body | {"number": 1},
        lambda body: body | {"sandbox": "sb-0000000b"},
        lambda body: body | {"signature": "AAAA"},
        lambda body: body | {"signature": 7},
        lambda body: [body],
    ],
)
def test_an_anchor_that_is_not_what_was_signed_is_a_finding(world, change):
    body = json.loads(world.file.read_text())
    world.file.write_text(json.dumps(change(body)))

    with pytest.raises(AuditError):
        read_anchor(world.file, sandbox_id=ID, key=public_key(world.seed))
    assert not world.verify().ok


def test_an_anchor_behind_a_link_is_not_read(world, tmp_path):
    world.file.rename(tmp_path / "elsewhere.json")
    world.file.symlink_to(tmp_path / "elsewhere.json")

    assert not world.verify().ok


def test_a_control_plane_that_cannot_say_is_a_finding_not_a_pass(world):
    assert not world.verify(Kmd(ControlUnavailableError("gone"))).ok


@pytest.mark.parametrize("text", ["not base64!", "", "AAAA"])
def test_a_damaged_key_file_is_a_finding_not_a_traceback(world, text):
    (world.config.home / "checkpoint.pub").write_text(text)

    assert not world.verify().ok


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_what_another_user_put_in_place_of_a_chain_is_not_continued(world):
    os.chown(world.directory / "kmd.jsonl", 65534, 65534)
    os.chown(world.directory / "checkpoints.jsonl", 65534, 65534)

    with pytest.raises(AuditError, match="belongs to uid 65534"):
        ChainWriter(world.directory / "kmd.jsonl", writer="kmd", sandbox_id=ID)
    with pytest.raises(AuditError, match="belongs to uid 65534"):
        world.checkpoints.add({"kmd": Head(4, "0" * 64)})
