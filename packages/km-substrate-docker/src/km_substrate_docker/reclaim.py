"""Giving a sandbox's files back to an operator who is not root."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from km_core.errors import ProvisionError
from km_substrate_docker import image
from km_substrate_docker.engine import connect, container_name, labels, remove, translate

if TYPE_CHECKING:
    from km_core.control.substrate import Box


def reclaim(box: Box) -> None:
    """
    Make everything below workspace and home the operator's.

    Root inside may have left files that only root can remove; a container that holds just these two
    directories, no network and the right to change owners does it.

    Raises:
        ProvisionError: it could not be done.
    """
    try:
        images = image.load(box.state_dir)
    except Exception:  # noqa: BLE001 - never prepared: there is nothing that was written by anyone else
        return
    folders = [box.state_dir / name for name in ("workspace", "home") if (box.state_dir / name).is_dir()]
    mounts: list[Any] = [
        {"Type": "bind", "Source": str(path), "Target": f"/reclaim/{path.name}", "ReadOnly": False}
        for path in folders
    ]
    owner = f"{os.geteuid()}:{os.getegid()}"
    with (
        connect(images.engine) as client,
        translate("the sandbox's files cannot be taken back", where=box.id),
    ):
        container = client.containers.create(
            images.base,
            entrypoint=["chown", "-R", "--no-dereference", owner, "/reclaim"],
            command=[],
            name=container_name(box.id, "helper"),
            labels=labels(box.config.home, box.id, "helper"),
            network_mode="none",
            read_only=True,
            cap_drop=["ALL"],
            cap_add=["CHOWN", "DAC_OVERRIDE"],
            security_opt=["no-new-privileges"],
            mounts=mounts,
            use_config_proxy=False,
        )
        try:
            container.start()
            code = int(container.wait(timeout=300)["StatusCode"])
            if code != 0:
                raise ProvisionError(
                    "the sandbox's files cannot be taken back", where=box.id, why=f"chown ended with {code}"
                )
        finally:
            remove(container)
