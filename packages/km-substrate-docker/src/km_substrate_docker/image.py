"""Which images a sandbox uses: km's own for what km runs, the operator's choice for the workload."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from attrs import frozen

from km_core import __version__
from km_core.errors import ProvisionError
from km_substrate_docker.base.closure import base_digest
from km_substrate_docker.engine import translate

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.images import Image

    from km_core.config import Config


@frozen
class Images:
    """Image ids (``sha256:…``), so that a tag that moves later changes nothing for this sandbox."""

    base: str
    workload: str


def base_tag() -> str:
    """Return the base image's name for the code that is installed (`base_digest`)."""
    return f"km-base:{__version__}-{base_digest()}"


def build_command() -> str:
    """Return the command that builds the base image, for hints."""
    return f"{sys.executable} -m km_substrate_docker.base.build"


def resolve(client: DockerClient, config: Config) -> Images:
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
        return Images(str(base.id), str(base.id))
    workload = _lookup(client, config.docker_image)
    if workload is None:
        raise ProvisionError(
            "the sandbox image is not on this engine",
            where=config.docker_image,
            hint=f"docker pull {config.docker_image}, or correct docker.image (KM_SANDBOX_IMAGE)",
        )
    return Images(str(base.id), str(workload.id))


def _lookup(client: DockerClient, name: str) -> Image | None:
    from docker.errors import ImageNotFound

    with translate("the engine cannot look up an image", where=name):
        try:
            return client.images.get(name)
        except ImageNotFound:
            return None
