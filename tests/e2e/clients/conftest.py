"""
A sandbox for programs people use: unchanged, without proxy variables, told nothing about certificates.

The stand-ins' authority is one that the operator's host trusts (``SSL_CERT_FILE``), as public ones are.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from demo.serving import Origin, Server
from standins.clients import (
    AI_HOSTS,
    AWS_HOSTS,
    CRATES,
    GIT,
    INDEX,
    KEY_ID,
    NPM,
    OPENED,
    TOKEN,
    TUNNEL,
    Sites,
    scripted,
)
from standins.distributions import Index
from standins.gitserver import GitServer
from standins.registries import Aws, CrateRegistry, NpmRegistry
from standins.world import KEYS, Sandbox, new_world

from km_host.trust import host_bundle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from standins.world import World


@pytest.fixture(scope="module")
def world(network: bool) -> Iterator[World]:
    with new_world(scripted) as world:
        trusted = world.directory / "trusted.pem"
        system = host_bundle()
        text = "" if system is None else system.read_text(encoding="utf-8", errors="replace")
        trusted.write_text(text + world.authority.ca_pem.decode(), encoding="utf-8")
        world.variables["SSL_CERT_FILE"] = str(trusted)
        for name, value in (KEYS | {"opened-token": TOKEN}).items():
            world.km("secrets", "set", name, stdin=value).assert_ok()
        yield world


@pytest.fixture(scope="module")
def sites(world: World) -> Iterator[Sites]:
    context = world.authority.server_context(GIT, INDEX, NPM, CRATES, TUNNEL, OPENED, *AWS_HOSTS)
    with (
        GitServer(context, world.directory / "git") as git,
        Index(context) as index,
        NpmRegistry(context, NPM) as npm,
        CrateRegistry(context, CRATES) as crates,
        Aws(context) as aws,
        Server(Origin, context) as web,
        Server(Origin, context) as opened,
    ):
        servers: dict[str, Server] = {GIT: git, INDEX: index, NPM: npm, CRATES: crates, TUNNEL: web}
        servers |= {OPENED: opened} | dict.fromkeys(AWS_HOSTS, aws)
        ca_file = str(world.authority.ca_file)
        more = {host: {"url": server.url, "ca_file": ca_file} for host, server in servers.items()}
        world.configure(
            upstreams=world.extra["upstreams"] | more,
            credentials=[{"host": OPENED, "secret": "opened-token"}],
            aws={
                "access_key_ids": [KEY_ID],
                "services": ["s3", "sts"],
                "regions": ["eu-west-1"],
                "buckets": ["km-bucket"],
            },
        )
        yield Sites(web, opened, aws)


@pytest.fixture(scope="module")
def box(world: World, sites: Sites, substrate: str) -> Sandbox:
    groups = ["@python-packages"]
    if npm := shutil.which("npm"):
        groups.append("@npm-packages")
    profile = world.profile(
        "clients",
        network={
            "egress": {
                "allowedDNSSuffixes": [".amazonaws.com"],
                "allowedHosts": [GIT, CRATES, TUNNEL, OPENED, *AI_HOSTS, *groups],
            }
        },
        execution={
            "shell": "/bin/bash",
            "workingDir": "/workspace",
            "env": {
                "AWS_ACCESS_KEY_ID": KEY_ID,
                "AWS_SECRET_ACCESS_KEY": "a-key-that-may-do-little",
                "AWS_DEFAULT_REGION": "eu-west-1",
            },
        },
        identity={
            "roleSessionDuration": "1h",
            "allowedRegions": ["eu-west-1"],
            "sessionPolicy": "minimal",
        },
        ai=5,
    )
    # The operator's own configuration of pip and npm names the registries; nothing else does.
    config = world.directory / "pip.conf"
    config.write_text(f"[global]\nindex-url = https://{INDEX}/simple/\n", encoding="utf-8")
    env = {"PIP_CONFIG_FILE": str(config)} | ({"npm_config_registry": f"https://{NPM}/"} if npm else {})
    outcome = world.km("create", str(profile), "--substrate", substrate, "--json", env=env)
    return Sandbox(world, outcome.json()["id"], substrate)


@pytest.fixture
def nothing_refused(box: Sandbox) -> Iterator[None]:
    """Fails the test when its allowed work left a refusal in the audit log."""
    before = len(box.decisions())
    yield
    assert not box.decisions()[before:]
