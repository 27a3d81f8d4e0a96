"""The base image's operating system: a minimal Debian, made from the operator's own package sources."""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from km_core.errors import ProvisionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PACKAGES = (
    "ca-certificates",
    "curl",
    "git",
    "iproute2",
    "jq",
    "less",
    "nftables",
    "openssl",
    "procps",
    "python3",
    "python3-venv",
    "tmux",
    "uuid-runtime",
)
"""What the image holds beyond Debian's required packages and apt."""

_DPKG_OPTIONS = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
)
_CLEAN = (
    'rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/*'
    ' "$1"/etc/hostname "$1"/etc/resolv.conf'
)
_RECIPE = 1
_SOURCES_DIR = Path("/etc/apt")
_CARRIED = ("Acquire::http", "Acquire::https", "Acquire::Retries", "Acquire::Check-Valid-Until")


def recipe_digest() -> str:
    """Return 12 hex digits over what this module would build."""
    text = repr((_RECIPE, PACKAGES, _DPKG_OPTIONS, codename(), platform.machine()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def codename() -> str:
    """Return the release of this machine (os-release(5)), whose package sources are used."""
    try:
        return platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    except OSError:
        return ""


def ensure_rootfs(cache: Path, progress: Callable[[str], None]) -> Path:
    """
    Return the root file system's archive (tar) in *cache*, building it when it is not there.

    Raises:
        ProvisionError: mmdebstrap or the package sources are missing, or the build failed.
    """
    archive = cache / f"rootfs-{codename()}-{recipe_digest()}.tar"
    if archive.exists():
        return archive
    tool = shutil.which("mmdebstrap")
    if tool is None:
        raise ProvisionError(
            "mmdebstrap is not installed, and the base image is made with it",
            hint="install the package mmdebstrap and try again",
        )
    sources = package_sources(_SOURCES_DIR, codename())
    if not sources:
        raise ProvisionError(
            f"no package source for the release {codename() or 'of this machine'} is configured",
            where=str(_SOURCES_DIR),
            hint="build the image on a Debian or Ubuntu machine with working apt sources",
        )
    progress(f"making a minimal {codename()} with {len(PACKAGES)} packages (about a minute)")
    with tempfile.TemporaryDirectory(prefix="rootfs-", dir=cache) as work:
        partial = Path(work) / "rootfs.tar"
        _run(tool, sources, partial, Path(work), progress)
        partial.rename(archive)
    return archive


def _run(
    tool: str, sources: dict[str, str], target: Path, work: Path, progress: Callable[[str], None]
) -> None:
    paths = []
    for number, (name, text) in enumerate(sources.items()):
        path = work / f"{number}-{name}"
        path.write_text(text, encoding="utf-8")
        path.chmod(0o644)
        paths.append(path)
    clean = work / "clean"
    clean.mkdir()
    for path in paths:
        (clean / path.name).write_text(
            without_credentials(path.read_text(encoding="utf-8")), encoding="utf-8"
        )
    command = [
        tool,
        "--variant=minbase",
        f"--include={','.join(PACKAGES)}",
        '--aptopt=Apt::Install-Recommends "false"',
        *(f"--aptopt={line}" for line in _apt_settings()),
        *(f"--dpkgopt={option}" for option in _DPKG_OPTIONS),
        # The settings and addresses needed to fetch may hold credentials: none stays in the image.
        f"--customize-hook={_CLEAN}",
        *(f"--customize-hook=copy-in {clean / path.name} /etc/apt/sources.list.d/" for path in paths),
        codename(),
        str(target),
        *map(str, paths),
    ]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        lines: list[str] = []
        for line in process.stdout or ():
            lines = [*lines[-20:], line.rstrip()]
            if line.startswith("I: ") and "hook" not in line and "temp" not in line:
                progress(line[3:].strip())
    if process.returncode:
        raise ProvisionError(
            "mmdebstrap failed",
            why=_redact("; ".join(lines[-5:])),
            hint="check that apt-get update works on this machine",
        )


def package_sources(folder: Path, release: str) -> dict[str, str]:
    """
    Return this machine's package sources for *release*, file name to content (sources.list(5)).

    Entries for other suites (a vendor's own repository) are left out: they are not needed and their
    keys may not be at hand.
    """
    found: dict[str, str] = {}
    main = folder / "sources.list"
    parts = sorted((folder / "sources.list.d").glob("*")) if (folder / "sources.list.d").is_dir() else []
    for path in [main, *parts]:
        if not path.is_file() or path.suffix not in {".list", ".sources"}:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        kept = _stanzas(text, release) if path.suffix == ".sources" else _lines(text, release)
        if kept:
            found[path.name] = kept
    return found


def without_credentials(text: str) -> str:
    """Return a sources file with user names and passwords removed from its addresses."""
    return re.sub(r"\b(?:https?|ftp)://\S+", lambda match: _bare(match[0]), text)


def _bare(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _redact(text: str) -> str:
    return re.sub(r"://[^/@\s]+@", "://***@", text)


def _matches(suites: Iterable[str], release: str) -> bool:
    return any(suite == release or suite.startswith((f"{release}-", f"{release}/")) for suite in suites)


def _lines(text: str, release: str) -> str:
    kept = []
    for line in text.splitlines():
        words = re.sub(r"\[[^\]]*\]", " ", line).split()
        if len(words) >= 3 and words[0] == "deb" and _matches([words[2]], release):
            kept.append(line + "\n")
    return "".join(kept)


def _stanzas(text: str, release: str) -> str:
    kept = []
    for stanza in re.split(r"\n\s*\n", text):
        body = "\n".join(line for line in stanza.splitlines() if not line.startswith("#"))
        fields = {
            key.strip().lower(): value.split()
            for key, colon, value in (line.partition(":") for line in body.splitlines() if line[:1].strip())
            if colon
        }
        enabled = (fields.get("enabled") or ["yes"])[0].lower() not in {"no", "false", "0"}
        if enabled and "deb" in fields.get("types", []) and _matches(fields.get("suites", []), release):
            kept.append(body.strip() + "\n")
    return "\n".join(kept)


def _apt_settings() -> list[str]:
    """Return the operator's fetch settings (proxies, certificates, retries) as apt configuration lines."""
    tool = shutil.which("apt-config")
    if tool is None:
        return []
    dump = subprocess.run([tool, "dump"], capture_output=True, text=True, check=False).stdout
    return [line.rstrip(";") for line in dump.splitlines() if line.startswith(_CARRIED) and '""' not in line]
