"""Logs of a sandbox are cut in place while somebody writes them."""

from __future__ import annotations

import os

from km_host.log_bounds import bound


def test_a_small_log_is_left_alone(tmp_path):
    log = tmp_path / "gate.log"
    log.write_bytes(b"x" * 100)
    assert not bound(log, largest=100, kept=50)
    assert log.stat().st_size == 100
    assert not (tmp_path / "gate.log.1").exists()


def test_a_large_log_keeps_its_end_and_its_writer_goes_on(tmp_path):
    log = tmp_path / "gate.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"a" * 80 + b"b" * 40)
        assert bound(log, largest=100, kept=50)
        writer.write(b"after")
    assert (tmp_path / "gate.log.1").read_bytes() == b"a" * 10 + b"b" * 40
    assert log.read_bytes() == b"after"


def test_what_is_kept_replaces_what_was_kept(tmp_path):
    log = tmp_path / "pod.log"
    for letter in (b"a", b"b"):
        log.write_bytes(letter * 200)
        assert bound(log, largest=100, kept=50)
    assert (tmp_path / "pod.log.1").read_bytes() == b"b" * 50


def test_links_and_absent_files_are_left_alone(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"x" * 200)
    (tmp_path / "gate.log").symlink_to(target)
    assert not bound(tmp_path / "gate.log", largest=100, kept=50)
    assert not bound(tmp_path / "absent", largest=100, kept=50)
    assert target.stat().st_size == 200


def test_a_copy_through_a_link_is_refused_and_the_log_is_cut_all_the_same(tmp_path):
    log, target = tmp_path / "gate.log", tmp_path / "target"
    log.write_bytes(b"x" * 200)
    target.write_bytes(b"kept")
    os.symlink(target, tmp_path / "gate.log.1")
    try:
        bound(log, largest=100, kept=50)
    except OSError:
        assert target.read_bytes() == b"kept"
        assert log.stat().st_size == 0
    else:
        raise AssertionError("a link was written through")
