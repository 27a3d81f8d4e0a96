"""The Docker engine: connection, errors, and the names and labels everything of a sandbox carries."""

from __future__ import annotations

import hashlib
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from km_core.errors import ProvisionError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from docker import DockerClient
    from docker.models.containers import Container

LABEL_HOME = "km.home"
"""Digest of the ``KM_HOME`` that owns a container: two homes on one engine never see each other."""
LABEL_SANDBOX = "km.sandbox"
LABEL_ROLE = "km.role"
LABEL_BASE = "km.base"
"""On images: the digest of the code inside.  On containers: a short-lived one of the image's build."""

ROLES = ("main", "gate", "helper", "pause")
"""Of containers, in the order in which they are removed: the namespaces' owner last."""

_TIMEOUT_S = 60


def default_host() -> str:
    """Return the engine that Docker's own clients would use: ``DOCKER_HOST``, else the default socket."""
    return os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"


def socket_path(host: str) -> str:
    """
    Return the path of an engine's Unix socket.

    Raises:
        ProvisionError: the engine is not a local one.  Sandboxes share directories and sockets with
            processes of this machine, so a remote engine cannot run them.
    """
    if not host.startswith("unix://"):
        raise ProvisionError(
            "Docker sandboxes need an engine on this machine",
            where=host,
            why="the gate shares sockets and directories with this machine",
            hint="unset DOCKER_HOST, or point it at unix:///…",
        )
    return host.removeprefix("unix://")


@contextmanager
def connect(host: str) -> Iterator[DockerClient]:
    """
    Give a connection to the engine at *host*.

    Raises:
        ProvisionError: no engine answers there, or not to this user.
    """
    # Tried first by hand: the usual failure needs no import of the SDK, which leaves its socket open then.
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(_TIMEOUT_S)
            probe.connect(socket_path(host))
    except OSError as error:
        raise _unanswered(host, str(error)) from error

    import docker
    from docker.errors import DockerException

    try:
        client = docker.DockerClient(base_url=host, timeout=_TIMEOUT_S)
    except DockerException as error:
        raise _unanswered(host, _cause(error)) from error
    try:
        yield client
    finally:
        client.close()


def _unanswered(host: str, why: str) -> ProvisionError:
    return ProvisionError(
        "no Docker engine answers",
        where=host,
        why=why,
        hint="start Docker, or point DOCKER_HOST at an engine on this machine that you may use",
    )


@contextmanager
def translate(what: str, *, where: str = "", hint: str = "") -> Iterator[None]:
    """
    Turn the engine's errors into km's.

    Raises:
        ProvisionError: *what*, with the engine's own explanation as the cause.
    """
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    try:
        yield
    except (DockerException, RequestException) as error:
        raise ProvisionError(what, where=where, why=_cause(error), hint=hint) from error


def _cause(error: Exception) -> str:
    text = str(getattr(error, "explanation", None) or error)
    return text if len(text) <= 400 else text[:400] + "..."


def home_digest(home: Path) -> str:
    """Return the label value for a state directory."""
    return hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:16]


def container_name(sandbox_id: str, role: str) -> str:
    """Return the name of a sandbox's container (``km-ID-main``)."""
    return f"km-{sandbox_id}-{role}"


def labels(home: Path, sandbox_id: str, role: str) -> dict[str, str]:
    """Return the labels of a sandbox's container."""
    return {LABEL_HOME: home_digest(home), LABEL_SANDBOX: sandbox_id, LABEL_ROLE: role}


def find(client: DockerClient, home: Path, sandbox_id: str = "", role: str = "") -> list[Container]:
    """
    Return this home's containers, running or not, in the order in which to remove them.

    Found by label, never by name: a container that merely has our name is not ours to touch.
    """
    wanted = [f"{LABEL_HOME}={home_digest(home)}"]
    wanted += [f"{LABEL_SANDBOX}={sandbox_id}"] if sandbox_id else []
    wanted += [f"{LABEL_ROLE}={role}"] if role else []
    with translate("the engine cannot list containers"):
        found = client.containers.list(all=True, filters={"label": wanted}, ignore_removed=True)
    return sorted(found, key=lambda item: ROLES.index(role_of(item)))


def role_of(container: Container) -> str:
    """Return a container's role; one that is not known counts as a helper."""
    role = str((container.labels or {}).get(LABEL_ROLE, ""))
    return role if role in ROLES else "helper"


def remove(container: Container) -> None:
    """Kill and remove a container with its anonymous volumes; one that is gone already is fine."""
    from docker.errors import APIError, NotFound

    with translate("a container cannot be removed", where=str(container.name)):
        try:
            container.remove(force=True, v=True)
        except NotFound:
            return
        except APIError as error:
            # 409: the engine is removing it right now on behalf of somebody else.
            if error.status_code != 409:
                raise
            _await_gone(container)


def _await_gone(container: Container) -> None:
    from docker.errors import NotFound

    try:
        container.wait(condition="removed", timeout=_TIMEOUT_S)
    except NotFound:
        return
