"""Trees of a workload are walked and removed whatever it made of them."""

from __future__ import annotations

import os
import resource
import socket
import stat

import pytest

from km_core.errors import ProvisionError
from km_core.lifecycle.files import remove_tree
from km_core.lifecycle.tree import walk

DEPTH = 3000
"""More than recursion, descriptors and the length of a path allow."""


@pytest.fixture
def deep(tmp_path):
    """Return a directory with a chain of directories below it."""
    root = tmp_path / "workspace"
    root.mkdir()
    here = os.open(root, os.O_RDONLY)
    for _ in range(DEPTH):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    yield root
    remove_tree(root)


def test_no_depth_is_too_deep_to_remove(deep):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        remove_tree(deep)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not deep.exists()


def test_a_directory_is_visited_after_what_it_holds(deep):
    seen = []
    walk(deep, lambda entry: seen.append(entry.name))
    assert seen == ["bottom", *["d"] * DEPTH]


def test_links_are_removed_and_never_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o500)
    (tmp_path / "kept").write_text("kept")
    root = tmp_path / "root"
    (root / "inner").mkdir(parents=True)
    (root / "inner" / "link").symlink_to(outside)
    (root / "file-link").symlink_to(tmp_path / "kept")
    (root / "loop").symlink_to("loop")
    remove_tree(root)
    assert not root.exists()
    assert (tmp_path / "kept").read_text() == "kept"
    assert stat.S_IMODE(outside.stat().st_mode) == 0o500


def test_sockets_fifos_and_closed_directories_are_removed(tmp_path):
    root = tmp_path / "root"
    closed = root / "closed"
    closed.mkdir(parents=True)
    (closed / "file").write_text("x")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"/proc/self/fd/{(descriptor := os.open(root, os.O_RDONLY))}/socket")
        os.close(descriptor)
    closed.chmod(0)
    root.chmod(0)
    remove_tree(root)
    assert not root.exists()


def test_nothing_there_is_fine_and_a_link_is_refused(tmp_path):
    remove_tree(tmp_path / "absent")
    target = tmp_path / "target"
    target.mkdir()
    (target / "file").write_text("x")
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(ProvisionError):
        remove_tree(tmp_path / "link")
    assert (target / "file").exists()


def test_a_file_that_appears_while_removing_is_removed_too(tmp_path, monkeypatch):
    root = tmp_path / "root"
    (root / "gate").mkdir(parents=True)
    (root / "gate" / "old").write_text("x")
    late = [root / "gate" / "new"]
    remove = os.unlink

    def unlink(name, **options):
        remove(name, **options)
        if late:
            late.pop().write_text("x")

    monkeypatch.setattr(os, "unlink", unlink)
    remove_tree(root)
    assert not root.exists()
