"""What a sandbox's containers share with the host: directories, their owners, generated files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from attrs import frozen

from km_core.errors import ProvisionError

if TYPE_CHECKING:
    from pathlib import Path

    from km_host.backend import PodContext

SANDBOX_USER = "sandbox"
_SANDBOX_ID = 1000
_GATE_ID = 65529
"""Just below the ids Debian reserves (Debian Policy 9.2.2): no account of the host has it."""

RESOLV_CONF = "nameserver 127.0.0.1\noptions timeout:5 attempts:2\n"


@frozen
class Owners:
    """
    Who the processes in containers are, as (uid, gid) on the host.

    An operator who is root gives both an id of their own.  Any other operator's files must stay that
    operator's, so both run with that id: in containers without a capability, each with its own files.
    """

    sandbox: tuple[int, int]
    gate: tuple[int, int]

    @classmethod
    def here(cls) -> Owners:
        """Return the owners for the operator this process runs as."""
        if os.geteuid() == 0:
            return cls((_SANDBOX_ID, _SANDBOX_ID), (_GATE_ID, _GATE_ID))
        own = (os.geteuid(), os.getegid())
        return cls(own, own)


@frozen
class Paths:
    """Where the shared files of one sandbox are, on the host."""

    workspace: Path
    home: Path
    generated: Path
    gate_state: Path
    gate_runtime: Path
    handover: Path
    audit: Path

    @classmethod
    def of(cls, context: PodContext) -> Paths:
        """Return the paths of a sandbox (docs/internals.md, Files)."""
        return cls(
            workspace=context.state_dir / "workspace",
            home=context.state_dir / "home",
            generated=context.state_dir / "rootfs",
            gate_state=context.state_dir / "gate",
            gate_runtime=context.runtime_dir / "gate",
            handover=context.runtime_dir / "handover",
            audit=context.audit_dir,
        )

    @property
    def resolv_conf(self) -> Path:
        """The sandbox's resolver file."""
        return self.generated / "resolv.conf"

    def make(self, owners: Owners) -> None:
        """
        Make the directories and files with the modes their users need; safe to repeat.

        Raises:
            ProvisionError: one of them cannot be made, or is a symbolic link.
        """
        for path in (
            self.workspace,
            self.home,
            self.generated,
            self.gate_state,
            self.gate_runtime,
            self.audit,
        ):
            try:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise ProvisionError("a directory cannot be made", where=str(path), why=str(error)) from error
        _give(self.workspace, *owners.sandbox, 0o755)
        _give(self.home, *owners.sandbox, 0o755)
        if os.geteuid() == 0:
            # Root keeps owning them: the gate adds files of its own, and in the audit directory the
            # sticky bit keeps it from removing or replacing what another writer wrote.
            _give(self.gate_state, 0, owners.gate[1], 0o770)
            _give(self.gate_runtime, 0, owners.gate[1], 0o750)
            _give(self.audit, 0, owners.gate[1], 0o1770)
        _give(self.generated, os.geteuid(), os.getegid(), 0o755)
        self.resolv_conf.write_text(RESOLV_CONF, encoding="ascii")
        self.resolv_conf.chmod(0o644)


def _give(path: Path, uid: int, gid: int, mode: int) -> None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if os.geteuid() == 0:
                os.fchown(handle, uid, gid)
            os.fchmod(handle, mode)
        finally:
            os.close(handle)
    except OSError as error:
        raise ProvisionError(
            "a directory cannot be given to its user", where=str(path), why=str(error)
        ) from error


def share_socket(source: Path, target: Path, gid: int) -> bool:
    """
    Make *target* another name of the Unix socket *source*, for group *gid*; True when it stands.

    A hard link is the same socket, so connecting to either reaches the same process.  A process that
    starts again makes a new socket: call this again, it replaces an outdated link in one step.
    """
    try:
        current = source.stat()
        if target.exists() and os.path.samestat(current, target.stat()):
            return True
        fresh = target.with_name(f".{target.name}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        os.link(source, fresh)
        if os.geteuid() == 0:
            os.chown(fresh, -1, gid)
            fresh.chmod(0o660)
        fresh.replace(target)
    except OSError:
        return False
    return True


def with_user(passwd: str, group: str, uid: int, gid: int) -> tuple[str, str]:
    """
    Return an image's ``passwd`` and ``group`` with the user ``sandbox`` in front (passwd(5), group(5)).

    In front, because look-ups by number take the first match and an image may use the number itself.
    """
    user = f"{SANDBOX_USER}:x:{uid}:{gid}:sandbox:/home/{SANDBOX_USER}:/bin/sh\n"
    own = f"{SANDBOX_USER}:x:{gid}:\n"
    return user + _without(passwd), own + _without(group)


def _without(text: str) -> str:
    kept = [line for line in text.splitlines() if line and not line.startswith(f"{SANDBOX_USER}:")]
    return "".join(line + "\n" for line in kept)
