"""Git through the `km` command: a sandbox with listed repositories and refs, a real git and git-lfs inside."""

from __future__ import annotations

import base64
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from standins.gitserver import CHECKS, CLOUD, GITHUB, GitServer
from standins.world import ORIGIN, Sandbox, new_world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from standins.world import Outcome, World

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]
# The gate is the same in Docker, where its image has no git-lfs and its memory is the engine's to tell.
LOCAL_ONLY = pytest.mark.parametrize(
    "substrate", [pytest.param("local", marks=pytest.mark.namespaces)], indirect=True, scope="module"
)
pytestmark.append(LOCAL_ONLY)

TOKEN = "ghs_the-operators-own-token"
API, PLAIN = "api.github.com", "git.test"
LARGE = 200 << 20
ALLOWED = {"allowedRepos": ["acme/app", "acme/large", "acme/up"], "allowedRefs": ["main", "agent/*"]}


@pytest.fixture(scope="module")
def outside(network: bool) -> Iterator[tuple[World, GitServer]]:
    with new_world() as world:
        context = world.authority.server_context(GITHUB, API, CLOUD, CHECKS, PLAIN)
        with GitServer(context, world.directory / "git", ("acme/app", "acme/secret")) as server:
            world.km("secrets", "set", "github-token", stdin=TOKEN).assert_ok()
            given = {"url": server.url, "ca_file": str(world.authority.ca_file)}
            hosts = dict.fromkeys((GITHUB, API, CLOUD, CHECKS, PLAIN), given)
            world.configure(upstreams=world.extra["upstreams"] | hosts)
            yield world, server


@pytest.fixture(scope="module")
def world(outside: tuple[World, GitServer]) -> World:
    return outside[0]


@pytest.fixture(scope="module")
def server(outside: tuple[World, GitServer]) -> GitServer:
    return outside[1]


@pytest.fixture(scope="module")
def box(world: World, substrate: str) -> Sandbox:
    profile = world.profile(
        "git", hosts=[ORIGIN, PLAIN], sourceAccess={"mode": "allowlist", "github": ALLOWED}
    )
    box = world.create(profile, substrate)
    for name, value in (("name", "agent"), ("email", "agent@example.org")):
        box.run("git", "config", "--global", f"user.{name}", value).assert_ok()
    box.run("git", "clone", "-q", f"https://{GITHUB}/acme/app", "app").assert_ok()
    return box


def commit(box: Sandbox, branch: str) -> None:
    box.run("git", "-C", "app", "checkout", "-q", "-B", branch).assert_ok()
    box.run("git", "-C", "app", "commit", "-q", "--allow-empty", "-m", branch).assert_ok()


def push(box: Sandbox, *arguments: str) -> Outcome:
    return box.run("git", "-C", "app", "push", *arguments)


def test_a_listed_repository_is_cloned_fetched_and_pushed_to_with_the_operators_token(
    box: Sandbox, server: GitServer
) -> None:
    commit(box, "agent/one")
    push(box, "origin", "agent/one").assert_ok()
    box.run("git", "-C", "app", "fetch", "-q", "origin").assert_ok()
    box.run("git", "clone", "-q", "git@github.com:acme/app.git", "by-ssh-name").assert_ok()
    assert server.refs("acme/app") == ["refs/heads/agent/one", "refs/heads/main"]
    wanted = "Basic " + base64.b64encode(f"x-access-token:{TOKEN}".encode()).decode()
    assert {arrival.headers.get("authorization") for arrival in server.arrivals} == {wanted}
    inside = box.run("sh", "-c", "env; cat ~/.git* app/.git/config 2>/dev/null").stdout
    assert TOKEN not in inside
    assert base64.b64encode(TOKEN.encode()).decode()[:20] not in inside


def test_a_push_elsewhere_is_refused_in_words_and_leaves_nothing(box: Sandbox, server: GitServer) -> None:
    before = server.refs("acme/app")
    for branch in ("dev", "agent/two"):
        commit(box, branch)
    for arguments in (
        ("origin", "dev"),
        ("--no-verify", "origin", "HEAD:dev"),
        ("--atomic", "origin", "agent/two", "dev"),
        ("origin", "HEAD:refs/tags/v1"),
        ("origin", "--delete", "dev"),
    ):
        seen = len(server.arrivals)
        done = push(box, *arguments)
        done.assert_failed(1)
        if "--delete" not in arguments:  # git finds by itself that there is no such branch
            done.assert_failed(1, "remote: Blocked by km sandbox policy", "is not in allowedRefs")
        assert not [one for one in server.arrivals[seen:] if one.method == "POST"]
    assert server.refs("acme/app") == before
    denied = [record["detail"] for record in box.decisions() if record["kind"] == "git_request"]
    assert any("push acme/app refs/heads/dev" in detail for detail in denied)


def test_other_repositories_and_ways_to_them_are_closed(box: Sandbox, server: GitServer) -> None:
    seen = len(server.arrivals)
    done = box.run("git", "clone", "-q", f"https://{GITHUB}/acme/secret", "secret")
    done.assert_failed(128, "remote: Blocked by km sandbox policy", "acme/secret is not in allowedRepos")
    for target in (
        f"https://{GITHUB}/acme/secret/archive/main.zip",
        f"https://{GITHUB}/acme/app/..%2f..%2facme/secret",
        f"https://{GITHUB}/acme/app/compare/main...acme:secret:main",
        f"https://{CLOUD}/alambic/anything?sig=1",
        f"https://{API}/graphql",
        f"https://{API}/repos/acme/app/forks",
        f"https://{API}/gists",
    ):
        data = ["-X", "POST", "-d", "{}"] if API in target else []
        done = box.run("curl", "-sS", "--path-as-is", "-w", "%{http_code}", *data, target).assert_ok()
        assert done.stdout.endswith("403"), done
    for url in ("ssh://git@ssh.github.com:443/acme/app", "git://github.com/acme/app"):
        assert box.run("env", "-u", "GIT_CONFIG_COUNT", "git", "ls-remote", url).code == 128
    assert len(server.arrivals) == seen


def test_lfs_files_go_up_and_come_down(box: Sandbox, server: GitServer) -> None:
    if box.run("git", "lfs", "version").code != 0:
        pytest.skip("git-lfs is not installed")
    box.run("git", "lfs", "install", "--skip-repo").assert_ok()
    script = """
set -e
cd app && git checkout -q -B agent/files && git lfs install --local
git lfs track '*.bin' && head -c 3000000 /dev/urandom > a.bin
git add . && git commit -q -m files
"""
    box.run("sh", "-c", script).assert_ok()
    push(box, "origin", "HEAD:dev").assert_failed(1, "refs/heads/dev is not in allowedRefs")
    assert not server.objects
    push(box, "origin", "agent/files").assert_ok()
    assert [len(content) for content in server.objects.values()] == [3000000]
    box.run("git", "clone", "-q", "-b", "agent/files", f"https://{GITHUB}/acme/app", "files").assert_ok()
    box.run("cmp", "app/a.bin", "files/a.bin").assert_ok()


def peak(box: Sandbox) -> int:
    """Return the most memory that the gate has held, in bytes."""
    status = Path(f"/proc/{box.status()['runtime']['gate']['pid']}/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) << 10


@pytest.mark.slow
def test_200_mb_stream_through_the_filter_both_ways(
    box: Sandbox, server: GitServer, world: World, record_property: pytest.RecordProperty
) -> None:
    server.make("acme/large", size=LARGE)
    box.put("origin-ca.pem", world.authority.ca_pem.decode())
    server.make("acme/up")
    before, took = peak(box), {"tunnel": 1e9, "filter": 1e9}
    # A host that is not opened shows the stand-in's own certificate.
    trust = ["env", "GIT_SSL_CAINFO=/workspace/origin-ca.pem"]
    for way, host, how in (("tunnel", PLAIN, trust), ("filter", GITHUB, [])) * 2:
        box.run("rm", "-rf", "large.git").assert_ok()
        began = time.monotonic()
        clone = ["git", "clone", "-q", "--bare", f"https://{host}/acme/large.git", "large.git"]
        box.run(*how, *clone, timeout_s=120).assert_ok()
        took[way] = min(took[way], time.monotonic() - began)
    target = f"https://{GITHUB}/acme/up.git"
    box.run("git", "-C", "large.git", "push", "-q", target, "main:agent/up", timeout_s=120).assert_ok()
    assert "refs/heads/agent/up" in server.refs("acme/up")
    box.run("rm", "-rf", "large.git").assert_ok()
    grown = peak(box) - before
    record_property("seconds", took)
    record_property("grown", grown)
    assert grown < 24 << 20, f"the gate grew by {grown >> 20} MiB"
    # 1.3 is the goal; a shared machine is not quiet enough to hold a test to it without some room.
    assert took["filter"] < 1.3 * took["tunnel"] + 2, took
