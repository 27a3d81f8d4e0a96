"""
Run a command as an ordinary user: ``python as_user.py UID COMMAND…`` (needs root).

What the interpreter needs may lie below a directory of root's alone; in a mount namespace of its own
that directory is covered by one that everybody can pass, with the needed trees bound into it.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from km_host import namespaces


def needed() -> list[Path]:
    return [Path(sys.prefix), Path(sys.base_prefix), Path(__file__).resolve().parents[3]]


def closed_ancestor(path: Path) -> Path | None:
    """Return the topmost directory above *path* that others cannot pass."""
    for parent in reversed(path.parents):
        if not parent.stat().st_mode & stat.S_IXOTH:
            return parent
    return None


def main() -> None:
    uid = int(sys.argv[1])
    namespaces.unshare(namespaces.CLONE_NEWNS)
    namespaces.mount("none", "/", flags=namespaces.MS_REC | namespaces.MS_PRIVATE)
    covered: dict[Path, list[tuple[Path, int]]] = {}
    for path in needed():
        closed = closed_ancestor(path)
        if closed is not None:
            covered.setdefault(closed, []).append((path, os.open(path, os.O_PATH)))
    for closed, trees in covered.items():
        namespaces.mount("tmpfs", str(closed), "tmpfs", 0, "mode=0755,size=1m")
        for path, descriptor in trees:
            path.mkdir(parents=True)
            namespaces.mount(
                f"/proc/self/fd/{descriptor}", str(path), flags=namespaces.MS_BIND | namespaces.MS_REC
            )
            os.close(descriptor)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    os.environ["HOME"] = "/nonexistent"
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
