from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path

import pytest

from km_host import caps, listeners, namespaces
from km_host.inside import frames


@pytest.fixture
def short_dir():
    """A directory whose sockets fit into 108 bytes."""
    path = Path(tempfile.mkdtemp(prefix="km", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


class Inside:
    """A process in a namespace with listeners, that runs Python there on request."""

    def __init__(self, redirect: bool = False) -> None:
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                ours.close()
                _serve(theirs, redirect)
            finally:
                os._exit(1)
        theirs.close()
        self.channel = ours
        assert frames.receive(ours)[0] == {"unshared": True}
        namespaces.map_to_root(self.pid, os.getuid(), os.getgid())
        frames.send(ours, {"mapped": True})
        self.listeners = listeners.receive_listeners(ours, os.getuid())

    def run(self, code: str) -> object:
        """Run statements as an ordinary user inside; returns the value of `result`."""
        frames.send(self.channel, {"code": code})
        return frames.receive(self.channel)[0]["result"]

    def close(self) -> None:
        self.channel.close()
        os.waitpid(self.pid, 0)
        self.listeners.close()


def _serve(channel: socket.socket, redirect: bool) -> None:
    namespaces.unshare(namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWNET)
    frames.send(channel, {"unshared": True})
    frames.receive(channel)
    namespaces.become_root_inside()
    if redirect:
        listeners._TPROXY = "table inet km {{ chain pre {{ nonsense"
    made = listeners.make_listeners()
    listeners.send_listeners(channel, made)
    made.close()
    # Without rights from here on, as the sandbox's programs are.
    namespaces.unshare(namespaces.CLONE_NEWUSER)
    while (received := frames.receive(channel)) is not None:
        scope: dict[str, object] = {}
        try:
            exec(received[0]["code"], scope)
        except BaseException as error:
            scope["result"] = f"{type(error).__name__}: {error}"
        frames.send(channel, {"result": scope.get("result")})
    os._exit(0)


def _unusable() -> str:
    missing = caps.missing_programs(("nft", "ip"))
    if missing:
        return missing[0].what
    try:
        caps.probe_namespaces()
    except Exception as error:
        return str(error)
    return ""


@pytest.fixture(scope="session")
def need_namespaces():
    why = _unusable()
    if why:
        pytest.skip(f"no namespaces here: {why}")


@pytest.fixture
def own_inside(need_namespaces):
    """A namespace for one test alone."""
    process = Inside()
    yield process
    process.close()


@pytest.fixture(scope="module")
def inside(need_namespaces):
    process = Inside()
    yield process
    process.close()


@pytest.fixture(scope="module")
def redirected(need_namespaces):
    process = Inside(redirect=True)
    yield process
    process.close()
