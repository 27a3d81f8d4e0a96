"""Lines are appended whole or not at all."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from km_notify_file import plugin
from km_notify_file.file import append_line, check_file

if TYPE_CHECKING:
    from pathlib import Path


def test_a_new_file_can_be_read_by_its_owner_only(tmp_path: Path) -> None:
    append_line(tmp_path / "events", "one")
    append_line(tmp_path / "events", "two")

    assert (tmp_path / "events").read_text() == "one\ntwo\n"
    assert stat.S_IMODE((tmp_path / "events").stat().st_mode) == 0o600


def test_a_line_that_does_not_fit_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append_line(tmp_path / "events", "one")
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:2]))

    with pytest.raises(OSError, match="does not fit"):
        append_line(tmp_path / "events", "two")

    assert (tmp_path / "events").read_text() == "one\n"


def test_neither_a_link_nor_a_pipe_is_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "pipe")

    for name in ("link", "pipe"):
        with pytest.raises(OSError, match=name):
            append_line(tmp_path / name, "one")
    assert not (tmp_path / "elsewhere").exists()


def test_the_check_says_what_to_do(tmp_path: Path) -> None:
    assert check_file("", "X").status == "SKIPPED"
    assert check_file(str(tmp_path / "new"), "X").status == "OK"
    assert check_file(str(tmp_path / "no" / "new"), "X").remediation
    (offered,) = plugin.km_doctor_checks()
    assert offered.run().status in {"SKIPPED", "OK"}
