"""Attempts at what should not be inside: keys, the control plane, inherited descriptors, other groups."""

from __future__ import annotations

import os
import re
import stat

from km_core.attack.inside.base import Args, attempt, held
from km_core.attack.inside.network import tcp, udp

_KEY = re.compile(
    r"(sk-ant-[A-Za-z0-9_-]{20,}|sk-(proj-)?[A-Za-z0-9_-]{32,}|gh[pousr]_[A-Za-z0-9]{30,}"
    r"|github_pat_[A-Za-z0-9_]{30,}|AKIA[A-Z0-9]{16}|xox[abprs]-[A-Za-z0-9-]{10,}|-----BEGIN [A-Z ]*PRIVATE KEY)"
)
_FILES = (
    ".aws/credentials",
    ".claude/.credentials.json",
    ".codex/auth.json",
    ".config/gh/hosts.yml",
    ".config/gcloud/application_default_credentials.json",
    ".docker/config.json",
    ".git-credentials",
    ".kube/config",
    ".netrc",
    ".npmrc",
    ".pypirc",
    ".ssh/id_ed25519",
    ".ssh/id_rsa",
)


def keys(args: Args) -> None:  # noqa: ARG001 - every attempt takes them
    """Look for keys by their form in every environment and the usual files; values are never printed."""
    places = {"own environment": "\n".join(os.environ.values())}
    for pid in [entry for entry in os.listdir("/proc") if entry.isdigit()]:
        try:
            with open(f"/proc/{pid}/environ", "rb") as source:
                places[f"environment of {pid}"] = source.read().decode("latin-1").replace("\0", "\n")
        except OSError:
            continue
    for home in {os.path.expanduser("~"), "/root", "/home/sandbox"}:
        for name in _FILES:
            try:
                with open(os.path.join(home, name), encoding="latin-1") as file:
                    places[os.path.join(home, name)] = file.read(65536)
            except OSError:
                continue
    for place, text in places.items():
        found = [m.group(0)[:7] for m in _KEY.finditer(text) if "placeholder" not in m.group(0).lower()]
        attempt(place, held, place, not found, f"{len(found)} of the form {found[0]}…" if found else "")


def descriptors(args: Args) -> None:  # noqa: ARG001 - every attempt takes them
    """Look for sockets that were handed in: one made outside would be judged by nobody."""
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        try:
            kind = os.fstat(number).st_mode
        except OSError:
            continue
        if number > 2:
            held(f"descriptor {number}", not stat.S_ISSOCK(kind), os.readlink(f"/proc/self/fd/{number}"))
    attempt("descriptors", held, "searched", True)


def leave_the_group(args: Args) -> None:
    """Move into every control group that can be written, and to other supervisors; then try to get out."""
    for folder, _, names in os.walk("/sys/fs/cgroup"):
        if "cgroup.procs" in names:

            def move(path: str = os.path.join(folder, "cgroup.procs")) -> None:
                with open(path, "w", encoding="ascii") as target:
                    target.write(str(os.getpid()))

            attempt(folder, move)
    tcp(args)
    udp(args)
