"""Fixtures of the end-to-end tests: a world of its own per module, sandboxes on both substrates."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from standins.hostnet import engines_network, own_network
from standins.world import KEYS, Sandbox, World, new_world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SUBSTRATES = [
    pytest.param("local", marks=pytest.mark.namespaces),
    pytest.param("docker", marks=pytest.mark.docker),
]


@functools.cache
def lacks(substrate: str) -> str:
    """Say what this machine lacks for a substrate; empty when it can run."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    if substrate == "docker":
        if shutil.which("docker") is None:
            return "no docker command"
        done = subprocess.run(["docker", "version"], capture_output=True, timeout=20, check=False)
        return "" if done.returncode == 0 else "no Docker engine answers"
    for program in ("bwrap", "nft", "ip"):
        if shutil.which(program, path=path) is None:
            return f"{program} is not installed"
    done = subprocess.run(["unshare", "-Urn", "true"], capture_output=True, check=False)
    return "" if done.returncode == 0 else "user namespaces are not permitted"


@pytest.fixture(params=SUBSTRATES, scope="module")
def substrate(request: pytest.FixtureRequest) -> str:
    """Each substrate this machine can run."""
    if reason := lacks(request.param):
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture(scope="module")
def network(substrate: str) -> Iterator[bool]:
    """
    True when the test lives in a network that only plays the host (see `standins.hostnet`).

    A Docker gate dials from its engine's network: the tests join it where it is not the machine's own
    (``scripts/test`` starts its engine that way), else they stay in the machine's.
    """
    if substrate == "docker":
        socket_path = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
        with engines_network(socket_path) as own:
            yield own
    else:
        with own_network() as own:
            yield own


@pytest.fixture(scope="module")
def world(network: bool) -> Iterator[World]:
    """One world for the module, with the keys that the gate injects."""
    with new_world() as world:
        for name, value in KEYS.items():
            world.km("secrets", "set", name, stdin=value).assert_ok()
        yield world


@pytest.fixture(scope="module")
def box(world: World, substrate: str) -> Sandbox:
    """One sandbox for the module, from the world's plain profile."""
    return world.create(world.profile(), substrate)


@pytest.fixture
def fresh(world: World, substrate: str) -> Iterator[Callable[..., Sandbox]]:
    """Makes sandboxes that are destroyed after the test: ``fresh(ai=0.05)``."""
    made: list[Sandbox] = []

    def make(*arguments: str, **changes: object) -> Sandbox:
        made.append(world.create(world.profile(f"fresh{len(made)}", **changes), substrate, *arguments))
        return made[-1]

    yield make
    for sandbox in made:
        sandbox.destroy()
