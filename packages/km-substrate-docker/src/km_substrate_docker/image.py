"""Which images a sandbox uses: km's own for what km runs, the operator's choice for the workload."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from attrs import asdict, frozen

from km_core import __version__
from km_core.errors import ProvisionError
from km_core.lifecycle.files import write_private
from km_substrate_docker.base.closure import base_digest
from km_substrate_docker.engine import translate

if TYPE_CHECKING:
    from pathlib import Path

    from docker import DockerClient
    from docker.models.images import Image

    from km_core.config import Config

FILE = "docker.json"
"""In a sandbox's state directory."""


@frozen
class Images:
    """
    What a sandbox runs on, settled when it is prepared.

    Attributes:
        engine: the engine's address; later commands use it whatever their ``DOCKER_HOST`` says.
        base: id (``sha256:…``) of km's image, so that a tag that moves changes nothing for this sandbox.
        workload: id of the sandbox's image.
    """

    engine: str
    base: str
    workload: str


def base_tag() -> str:
    """Return the base image's name for the code that is installed (`base_digest`)."""
    return f"km-base:{__version__}-{base_digest()}"


def has_base(client: DockerClient) -> bool:
    """Tell whether the base image for the installed code is on the engine."""
    return _lookup(client, base_tag()) is not None


def build_command() -> str:
    """Return the command that builds the base image, for hints."""
    return f"{sys.executable} -m km_substrate_docker.base.build"


def resolve(client: DockerClient, host: str, config: Config) -> Images:
    """
    Return the images for a new sandbox.

    ``docker.image`` (or ``KM_SANDBOX_IMAGE``) names the workload's; without it the base image is used.
    Nothing is pulled: what runs is what the operator put on this engine.

    Raises:
        ProvisionError: one of them is not on the engine.
    """
    base = _lookup(client, base_tag())
    if base is None:
        raise ProvisionError(
            "km's base image is not on this engine, or belongs to another version of km",
            where=base_tag(),
            hint=f"build it once with: {build_command()}",
        )
    if not config.docker_image:
        return Images(host, str(base.id), str(base.id))
    workload = _lookup(client, config.docker_image)
    if workload is None:
        raise ProvisionError(
            "the sandbox image is not on this engine",
            where=config.docker_image,
            hint=f"docker pull {config.docker_image}, or correct docker.image (KM_SANDBOX_IMAGE)",
        )
    return Images(host, str(base.id), str(workload.id))


def _lookup(client: DockerClient, name: str) -> Image | None:
    from docker.errors import ImageNotFound

    with translate("the engine cannot look up an image", where=name):
        try:
            return client.images.get(name)
        except ImageNotFound:
            return None


def store(images: Images, state_dir: Path) -> None:
    """Write down which images a sandbox uses, for its supervisor."""
    write_private(state_dir / FILE, json.dumps(asdict(images)) + "\n")


def load(state_dir: Path) -> Images:
    """
    Return what `store` wrote.

    Raises:
        ProvisionError: the sandbox was not prepared.
    """
    path = state_dir / FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Images(str(data["engine"]), str(data["base"]), str(data["workload"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProvisionError("the sandbox's images are not known", where=str(path), why=str(error)) from error
