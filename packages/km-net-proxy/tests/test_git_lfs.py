"""A real git-lfs client: objects move by what was judged, and what is refused says why."""

from __future__ import annotations

import os
import shutil

import pytest
from gate_rig import run
from git_world import TOKEN, Lfs, World

pytestmark = pytest.mark.skipif(shutil.which("git-lfs") is None, reason="git-lfs is not installed")


async def tracked(world, content):
    """Clone, and commit a file that LFS keeps."""
    code, text = await world.git("lfs", "install", "--skip-repo")
    assert code == 0, text
    work = await world.clone()
    for command in (["lfs", "install", "--local"], ["lfs", "track", "*.bin"], ["add", ".gitattributes"]):
        code, text = await world.git(*command, cwd=work)
        assert code == 0, text
    (work / "a.bin").write_bytes(content)
    await world.git("add", "a.bin", cwd=work)
    await world.commit(work)
    return work


def test_files_go_up_and_come_down_by_the_urls_that_were_handed_out():
    async def main():
        async with World(refs=("main",)) as world:
            world.lfs = Lfs()
            await world.lfs.serve(world.rig)
            await world.up("o/r")
            content = os.urandom(3 << 20)
            work = await tracked(world, content)
            code, text = await world.git("push", "origin", "main", cwd=work)
            assert code == 0, text
            assert list(world.lfs.objects.values()) == [content]
            assert world.lfs.verified == list(world.lfs.objects)
            assert world.lfs.refs == [("upload", "refs/heads/main")]
            code, text = await world.git("clone", "-q", "https://github.com/o/r", "again")
            assert code == 0, text
            assert (world.rig.directory / "again" / "a.bin").read_bytes() == content
            cloud, checks = world.rig.servers[:2]
            assert all(TOKEN.encode() not in head for head, _ in [*cloud.requests, *checks.requests])

    run(main)


def test_files_for_another_branch_stay_here_and_the_refusal_is_printed():
    async def main():
        async with World(refs=("main",)) as world:
            world.lfs = Lfs()
            await world.lfs.serve(world.rig)
            await world.up("o/r")
            work = await tracked(world, b"x" * 5000)
            code, text = await world.git("push", "origin", "main:dev", cwd=work)
            assert code != 0
            for words in ("Blocked by km sandbox policy", "refs/heads/dev is not in allowedRefs"):
                assert words in text, text
            assert not world.lfs.objects
            assert world.refs() == ["refs/heads/main"]

    run(main)


def test_files_of_a_repository_that_is_not_listed_do_not_come_down():
    async def main():
        async with World() as world:
            world.lfs = Lfs()
            await world.lfs.serve(world.rig)
            await world.up("o/r", "o/secret")
            work = await tracked(world, b"x" * 5000)
            await world.git("remote", "add", "secret", "https://github.com/o/secret", cwd=work)
            for command in (["lfs", "push", "--all", "secret"], ["lfs", "fetch", "--all", "secret"]):
                if "fetch" in command:
                    shutil.rmtree(work / ".git/lfs/objects")  # what is there already is not asked for
                code, text = await world.git(*command, cwd=work)
                assert code != 0
                assert "o/secret is not in allowedRepos" in text, text
            assert not world.lfs.refs
            assert not world.lfs.objects

    run(main)
