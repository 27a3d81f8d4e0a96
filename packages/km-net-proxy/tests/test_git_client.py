"""A real git client against a real ``git http-backend``: what is allowed works, what is not says why."""

from __future__ import annotations

import asyncio
import base64
import shutil
import subprocess

import pytest
from gate_rig import run
from git_world import TOKEN, World, draft_environment

BASIC = b"Authorization: Basic " + base64.b64encode(b"x-access-token:" + TOKEN.encode())


def test_clone_and_fetch_work_with_the_operators_token_and_without_the_clients():
    async def main():
        async with World() as world:
            await world.up("o/r")
            code, text = await world.git(
                "-c",
                "http.extraHeader=Authorization: Basic ZXZlOmV2ZQ==",
                "clone",
                "https://eve:stolen@github.com/o/r.git",
                "work",
            )
            assert code == 0, text
            code, text = await world.git("fetch", "origin", cwd=world.rig.directory / "work")
            assert code == 0, text
            heads = world.asked(b"HTTP/1.1")
            assert all(BASIC in head and head.count(b"uthorization") == 1 for head in heads)

    run(main)


def test_without_a_token_what_anybody_may_read_is_read():
    async def main():
        async with World(token="") as world:
            await world.up("o/r")
            await world.clone()
            assert not world.asked(b"uthorization")

    run(main)


def test_a_clone_of_another_repository_says_which_rule_refused_it_and_reaches_nobody():
    async def main():
        async with World() as world:
            await world.up("o/r", "o/secret")
            code, text = await world.git("clone", "https://github.com/o/secret", "work")
            assert code != 0
            for words in ("remote: Blocked by km sandbox policy", "o/secret", "allowedRepos", "default-deny"):
                assert words in text
            assert not world.server.requests

    run(main)


def test_a_push_to_an_allowed_branch_arrives_and_is_recorded_with_its_ref():
    async def main():
        async with World(refs=("main",)) as world:
            await world.up("o/r")
            work = await world.clone()
            await world.commit(work, size=1000)
            code, text = await world.git("push", "origin", "main", cwd=work)
            assert code == 0, text
            records = [event for event in world.rig.events() if event.get("kind") == "git_request"]
            assert any("push o/r refs/heads/main" in event["detail"] for event in records)

    run(main)


def refused_push(text, *refs):
    assert "remote: Blocked by km sandbox policy" in text, text
    assert "allowedRefs" in text
    for ref in refs:
        assert f"{ref} (km: " in text, text


def test_a_push_to_another_branch_is_refused_beside_the_ref_before_anything_leaves():
    async def main():
        async with World(refs=("main",)) as world:
            await world.up("o/r")
            work = await world.clone()
            await world.commit(work, "dev", size=1000)
            code, text = await world.git("push", "origin", "dev", cwd=work)
            assert code != 0
            refused_push(text, "dev -> dev")
            assert not world.asked(b"POST /o/r/git-receive-pack")
            # The connection was told in full, so the next push on it works.
            code, text = await world.git("push", "origin", "dev:main", cwd=work)
            assert code == 0, text

    run(main)


def test_one_denied_ref_refuses_the_whole_push_atomic_or_not():
    async def main():
        async with World(refs=("main", "f/*")) as world:
            await world.up("o/r")
            work = await world.clone()
            for branch in ("f/one", "dev", "main"):
                await world.commit(work, branch)
            for atomic in ((), ("--atomic",)):
                code, text = await world.git("push", *atomic, "origin", "f/one", "dev", "main", cwd=work)
                assert code != 0
                refused_push(text, "dev -> dev", "f/one -> f/one", "main -> main")
            assert world.refs() == ["refs/heads/main"]
            code, text = await world.git("push", "--atomic", "origin", "f/one", "main", cwd=work)
            assert code == 0, text

    run(main)


def test_deletes_tags_mirrors_and_forced_pushes_are_pushes_to_their_refs():
    async def main():
        async with World(refs=("main", "old", "refs/tags/v*")) as world:
            path = (await world.up("o/r")).root / "o/r.git"
            for ref in ("old", "keep"):
                await world.git("branch", ref, "main", cwd=path)
            work = await world.clone()
            await world.git("tag", "v1", cwd=work)
            await world.git("tag", "x1", cwd=work)
            await world.git("commit", "--amend", "--allow-empty", "-m", "other", cwd=work)
            for allowed in (["v1"], ["--delete", "old"], ["--force", "main"]):
                code, text = await world.git("push", "origin", *allowed, cwd=work)
                assert code == 0, (allowed, text)
            for denied, ref in (
                (["origin", "x1"], "x1 -> x1"),
                (["origin", "--delete", "keep"], "keep"),
                (["--mirror", "origin"], "x1 -> x1"),
                (["origin", "HEAD:refs/notes/commits"], "HEAD -> refs/notes/commits"),
            ):
                code, text = await world.git("push", *denied, cwd=work)
                assert code != 0
                refused_push(text, ref)
            assert world.refs() == ["refs/heads/keep", "refs/heads/main", "refs/tags/v1"]

    run(main)


def test_a_long_push_in_chunks_with_its_probe_is_judged_and_streamed():
    async def main():
        async with World(refs=("main",)) as world:
            await world.up("o/r")
            work = await world.clone()
            await world.commit(work, "main", size=6 << 20)
            small = ("-c", "http.postBuffer=65536")
            code, text = await world.git(*small, "push", "origin", "main:dev", cwd=work)
            assert code != 0
            refused_push(text, "main -> dev")
            assert not world.asked(b"Transfer-Encoding: chunked")
            code, text = await world.git(*small, "push", "origin", "main", cwd=work)
            assert code == 0, text
            assert world.asked(b"Transfer-Encoding: chunked")

    run(main)


def test_push_options_and_pushes_from_a_shallow_clone_pass_with_their_refs():
    async def main():
        async with World(refs=("main",)) as world:
            await world.up("o/r")
            work = await world.clone("o/r", "--depth", "1")
            await world.commit(work)
            code, text = await world.git("push", "-o", "ci.skip", "-o", "x" * 900, "origin", "main", cwd=work)
            assert code == 0, text
            code, text = await world.git("push", "-o", "ci.skip", "origin", "main:dev", cwd=work)
            assert code != 0
            refused_push(text, "main -> dev")

    run(main)


def test_repositories_of_longer_object_ids_are_pushed_to():
    async def main():
        async with World(repos=("o/l*",), refs=("main",)) as world:
            world.make("o/long", "--object-format=sha256")
            await world.up()
            work = await world.clone("o/long")
            await world.commit(work)
            code, text = await world.git("push", "origin", "main", cwd=work)
            assert code == 0, text
            code, text = await world.git("push", "origin", "main:dev", cwd=work)
            assert code != 0
            refused_push(text, "main -> dev")

    run(main)


def test_with_no_ref_allowed_a_push_is_refused_before_it_is_prepared():
    async def main():
        async with World(refs=()) as world:
            await world.up("o/r")
            work = await world.clone()
            await world.commit(work)
            code, text = await world.git("push", "origin", "main", cwd=work)
            assert code != 0
            assert "remote: Blocked by km sandbox policy" in text
            assert "allowedRefs is empty" in text
            assert not world.asked(b"receive-pack")

    run(main)


def test_a_push_of_very_many_refs_is_judged_ref_by_ref():
    async def main():
        async with World(refs=("b*",)) as world:
            await world.up("o/r")
            work = await world.clone()
            lines = "".join(f"create refs/heads/b{number} HEAD\n" for number in range(1500))
            (work / "refs").write_text(lines)
            await world.git("config", "alias.many", "!git update-ref --stdin < refs", cwd=work)
            code, text = await world.git("many", cwd=work)
            assert code == 0, text
            code, text = await world.git("push", "-q", "origin", "refs/heads/b*:refs/heads/b*", cwd=work)
            assert code == 0, text
            assert len(world.refs()) == 1501

    run(main)


def test_git_over_ssh_is_refused_in_words_that_ssh_prints():
    async def main():
        async with World() as world:
            await world.up()
            port = world.rig.front("github.com", 22)
            ssh = "ssh -o BatchMode=yes -o StrictHostKeyChecking=no -F none"
            code, text = await world.git(
                "-c", f"core.sshCommand={ssh}", "clone", f"ssh://git@127.0.0.1:{port}/o/r.git", "work"
            )
            assert code != 0
            for words in ("Blocked by km sandbox policy", "https://github.com/OWNER/NAME", "host github.com"):
                assert words in text, text
            denied = [event for event in world.rig.events() if event.get("verdict") == "deny"]
            assert ("github.com", 22) == (denied[-1]["name"], denied[-1]["port"])

    run(main)


def test_ssh_to_other_hosts_names_their_rule():
    async def main():
        async with World() as world:
            await world.up()
            for destination in ("denied.test", "203.0.113.9"):
                reader, writer = await asyncio.open_connection("127.0.0.1", world.rig.front(destination, 22))
                text = await asyncio.wait_for(reader.read(), 10)
                assert text.startswith(b"SSH-2.0-km\r\n")
                assert b"builtin:" in text
                writer.close()

    run(main)


def test_remotes_written_for_ssh_are_asked_for_over_https_with_the_sandboxs_environment():
    async def main():
        async with World() as world:
            await world.up("o/r")
            for number, url in enumerate(("git@github.com:o/r.git", "ssh://git@github.com/o/r")):
                code, text = await world.git("clone", "-q", url, f"c{number}", env=draft_environment())
                assert code == 0, text

    run(main)


def signing_key(path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen to sign with")
def test_signed_pushes_are_judged_by_the_commands_that_were_signed():
    async def main():
        async with World(refs=("main",)) as world:
            path = (await world.up("o/r")).root / "o/r.git"
            await world.git("config", "receive.certNonceSeed", "seed", cwd=path)
            work, key = await world.clone(), signing_key(world.rig.directory / "key")
            sign = ("-c", "gpg.format=ssh", "-c", f"user.signingKey={key}")
            await world.commit(work, size=1000)
            code, text = await world.git(*sign, "push", "--signed", "origin", "main:dev", cwd=work)
            assert code != 0
            refused_push(text, "main -> dev")
            code, text = await world.git(*sign, "push", "--signed", "origin", "main", cwd=work)
            assert code == 0, text
            pushes = [body for head, body in world.server.requests if b"/git-receive-pack HTTP" in head]
            assert b"-----BEGIN SSH SIGNATURE-----" in pushes[-1]
            assert world.refs() == ["refs/heads/main"]

    run(main)


@pytest.mark.parametrize("version", ["0", "1", "2"])
def test_every_version_of_the_protocol_and_clients_that_wait_are_served(version):
    async def main():
        async with World(refs=("main",)) as world:
            await world.up("o/r")
            await world.git("config", "--global", "protocol.version", version)
            work = await world.clone()
            await world.commit(work, "main", size=3 << 20)
            slow = ("-c", "http.postBuffer=65536", "-c", "http.expectContinue=true")
            code, text = await world.git(*slow, "push", "origin", "main:dev", cwd=work)
            assert code != 0
            refused_push(text, "main -> dev")
            code, text = await world.git(*slow, "push", "origin", "main", cwd=work)
            assert code == 0, text
            code, text = await world.git("fetch", "origin", cwd=work)
            assert code == 0, text

    run(main)


def test_an_archive_asked_of_a_remote_is_refused_in_words():
    async def main():
        async with World() as world:
            await world.up("o/r")
            url = "https://github.com/o/r"
            code, text = await world.git("archive", f"--remote={url}", "main")
            assert code != 0
            assert not world.asked(b"upload-archive"), text

    run(main)
