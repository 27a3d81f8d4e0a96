"""
Grammars of single values (spec/profile.md section 4, the rules marked D).

Each rule takes the text and raises `ValueError` with a clause that follows the value, or returns.  They
exist because these values reach a policy engine, a shell, a unit file or an IAM document later: what is
accepted here is what those can take literally.
"""

from __future__ import annotations

import posixpath
import re
from fnmatch import fnmatchcase

from km_core.policy.addresses import forbidden_range, parse_address
from km_core.policy.names import canonical_name
from km_core.policy.patterns import compile_address
from km_core.policy.repos import OWNER_PATTERN
from km_core.profile.duration import UNIT_SECONDS, parse_duration
from km_core.profile.kinds import RuleError

RESOURCE_PREFIX = "km"
"""Prefix of the platform's own parameter names (spec/cli.md section 2)."""

NAME_PATTERN = r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
LABEL_KEY_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}"
REGION_PATTERN = r"[a-z]{2}(?:-[a-z]+)+-[0-9]"
INSTANCE_TYPE_PATTERN = r"[a-z][a-z0-9-]*\.[a-z0-9-]+"
AMI_PATTERN = r"ami-[0-9a-f]{8,17}"
ENV_NAME_PATTERN = r"[A-Za-z_][A-Za-z0-9_]*"
GROUP_PATTERN = r"@[a-z][a-z0-9-]*"
REPO_PATTERN = rf"\*|(?:github\.com/)?{OWNER_PATTERN}/[A-Za-z0-9._*-]{{1,100}}"
REF_PATTERN = r"[^\x00-\x20\x7f~^:?\[\]\\]+"
SECRET_PATH_PATTERN = r"/[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+){0,14}"  # noqa: S105 - a grammar, not a secret
ADDRESS_PATTERN = r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+"
MAIL_ALIAS_PATTERN = r"[a-z][a-z0-9-]*\.[a-z][a-z0-9-]*"
SENDER_PATTERN = r"[A-Za-z0-9._*+-]+|(?:\*|[A-Za-z0-9._%+-]+)@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*"
_NAMES_PATTERN = r"(?:\*|(?:\.|\*\.)?[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?)"
DNS_SUFFIX_PATTERN = rf"{_NAMES_PATTERN}|{GROUP_PATTERN}"
HOST_PATTERN = (
    rf"{_NAMES_PATTERN}(?::[0-9]{{1,5}})?|{GROUP_PATTERN}"
    r"|[0-9a-fA-F.:]+/[0-9]{1,3}|\[[0-9a-fA-F.:]+\]:[0-9]{1,5}"
)

_MIN_SESSION_S, _MAX_SESSION_S = 15 * 60, 12 * 3600

_MOUNT_FORBIDDEN = [
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib64",
    "/opt/km",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
    "/var/lib",
]
_MOUNT_FORBIDDEN_EXACT = frozenset(["/home", "/home/sandbox", "/tmp", "/var", "/opt", "/mnt"])  # noqa: S108 - compared only
_CONFIG_FORBIDDEN = [
    "/etc/km",
    "/etc/systemd",
    "/etc/sudoers.d",
    "/etc/ssh",
    "/etc/pam.d",
    "/etc/cron.*",
    "/opt/km",
    "/run",
    "/proc",
    "/sys",
    "/dev",
    "/boot",
    "/root",
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
]
_CONFIG_FORBIDDEN_EXACT = frozenset(
    ["/etc/passwd", "/etc/shadow", "/etc/sudoers", "/etc/resolv.conf", "/etc/ld.so.preload"]
)


def duration(text: str) -> None:
    """Accept one number and a unit: ``30m``, ``4h``, ``2d``."""
    parse_duration(text)


def ttl(text: str) -> None:
    """Accept a duration, or ``0`` for no expiry."""
    if text != "0":
        parse_duration(text)


def short_duration(text: str) -> None:
    """Accept a duration in seconds, minutes or hours."""
    if parse_duration(text) and text.endswith("d"):
        raise RuleError("must be given in h, m or s", f"write {int(text[:-1]) * 24}h")


def session_duration(text: str) -> None:
    """Accept 15 minutes to 12 hours, the range of an STS session."""
    short_duration(text)
    seconds = int(text[:-1]) * UNIT_SECONDS[text[-1]]
    if not _MIN_SESSION_S <= seconds <= _MAX_SESSION_S:
        raise ValueError("must be between 15m and 12h")


def dns_suffix(text: str) -> None:
    """
    Accept an entry of ``allowedDNSSuffixes``: ``*``, a name with an optional leading ``.`` or ``*.``, ``@group``.

    A group may stand where the suffix of a package index stood; it opens exact hosts in either list.
    """
    if text.startswith("@"):
        _group(text)
        return
    if _cidr_or_address(text):
        raise RuleError("is an address, which no name lookup asks for", "move it to allowedHosts")
    _host_name(text)


def host(text: str) -> None:
    """
    Accept an entry of ``allowedHosts``: as in ``allowedDNSSuffixes``, an IPv4 address, a CIDR.

    A name and an address may end in ``:PORT``, an IPv6 address with one stands in brackets.
    """
    if text.startswith("@"):
        _group(text)
        return
    text = _without_port(text)
    if not _cidr_or_address(text):
        _host_name(text)
        return
    try:
        rule = compile_address(text)
    except ValueError as error:
        raise ValueError(f"is no address range: {error}") from None
    if rule is None:
        raise ValueError("is no address range")
    network = rule.cidr.partition("/")[0]
    address = parse_address(network)
    entry = forbidden_range(address) if address is not None else None
    if entry is not None and entry.never:
        raise ValueError(f"is {entry.what}, which no profile can open")


def _without_port(text: str) -> str:
    base, colon, port = text.rpartition(":")
    bracketed = base.startswith("[") and base.endswith("]")
    if not colon or "/" in text or (":" in base and not bracketed):
        return text
    if re.fullmatch(r"[1-9][0-9]{0,4}", port) is None or int(port) > 65535:
        raise RuleError("has a port that is none", f"write {base}:PORT, a number from 1 to 65535")
    if not bracketed:
        return base
    if parse_address(base[1:-1]) is None or ":" not in base[1:-1]:
        raise RuleError("has brackets around no IPv6 address", "write [2001:db8::1]:443")
    return f"{base[1:-1]}/128"


def _group(text: str) -> None:
    if re.fullmatch(GROUP_PATTERN, text) is None:
        raise RuleError("is no egress group name", "@ and lower-case letters, digits and hyphens")


def _cidr_or_address(text: str) -> bool:
    base, slash, length = text.partition("/")
    if slash:
        return parse_address(base) is not None and length.isascii() and length.isdigit()
    if parse_address(text) is None:
        return False
    if ":" in text:
        raise RuleError("is an IPv6 address", f"write {text.strip('[]')}/128")
    if re.fullmatch(r"(?:(?:0|[1-9][0-9]{0,2})\.){3}(?:0|[1-9][0-9]{0,2})", text) is None:
        address = parse_address(text)
        raise RuleError("is an IPv4 address in disguise", f"write {address}")
    return True


def _host_name(text: str) -> None:
    if text == "*":
        return
    if not text:
        raise ValueError("is empty")
    if "://" in text:
        rest = re.split(r"[/:]", text.partition("://")[2])[0]
        raise RuleError("is a URL; a host name is expected", f"write {rest}" if rest else "")
    if "," in text or any(character.isspace() for character in text):
        raise RuleError("holds a comma or blank", "write one list item per host")
    if "/" in text:
        raise RuleError("has a path; a host name is expected", f"write {text.partition('/')[0]}")
    if ":" in text:
        raise RuleError("has a port; a host name is expected", f"write {text.partition(':')[0]}")
    if not text.isascii():
        raise RuleError("is not ASCII", _punycode_hint(text))
    name = text.removeprefix("*.") if text.startswith("*.") else text.removeprefix(".")
    if "*" in name:
        raise RuleError(
            "has a * that is not alone or a leading label", "write *, *.example.com or .example.com"
        )
    try:
        canonical_name(name)
    except ValueError as error:
        raise ValueError(f"is no host name: {error}") from None


def _punycode_hint(text: str) -> str:
    try:
        return f"write {canonical_name(text.lstrip('.*'))}"
    except ValueError:
        return "write its xn-- form"


def repo(text: str) -> None:
    """Accept an entry of ``allowedRepos``: ``*``, ``owner/*``, ``owner/name``, ``github.com/owner/name``."""
    hint = "write owner/name, owner/* or *"
    if "://" in text or text.startswith("git@"):
        rest = (
            re.sub(r"\A(?:[a-z+]+://)?(?:git@)?(?:github\.com[:/])?", "", text)
            .removesuffix(".git")
            .strip("/")
        )
        raise RuleError("is a URL", f"write {rest}" if rest.count("/") == 1 else hint)
    if re.fullmatch(REPO_PATTERN, text) is None or text.rpartition("/")[2] in {".", ".."}:
        raise RuleError("is no repository pattern", hint)


def ref(text: str) -> None:
    """Accept a git ref pattern (git-check-ref-format, plus ``*``)."""
    if not text:
        raise ValueError("is empty")
    bad = (
        re.fullmatch(REF_PATTERN, text) is None
        or ".." in text
        or "//" in text
        or "@{" in text
        or text.startswith(("-", "/"))
        or text.endswith(("/", "."))
        or any(part.startswith(".") or part.endswith(".lock") for part in text.split("/"))
    )
    if bad:
        raise RuleError("is no ref pattern", "write main, feature/* or refs/tags/v*")


def env_name(text: str) -> None:
    """Accept a variable name that is not one of km's own."""
    if re.fullmatch(ENV_NAME_PATTERN, text) is None:
        raise ValueError("is no variable name: letters, digits and _, not starting with a digit")
    if text.startswith("KM_") or text == "SANDBOX_ID":
        raise ValueError("is reserved: names starting with KM_ and SANDBOX_ID are set by km")


def absolute_path(text: str) -> None:
    """Accept a normalised absolute path."""
    if not text.startswith("/"):
        raise ValueError("must be an absolute path")
    if text != posixpath.normpath(text) or text.startswith("//"):
        raise RuleError("is not normalised", f"write {posixpath.normpath('/' + text.lstrip('/'))}")


def shell(text: str) -> None:
    """Accept the absolute path of a program, without blanks or shell characters."""
    absolute_path(text)
    if re.fullmatch(r"(?:/[A-Za-z0-9._+-]+)+", text) is None:
        raise ValueError("must be the path of a program, of letters, digits and . _ + - /")


def artifact_path(text: str) -> None:
    """Accept an absolute path or glob without ``..``."""
    if not text.startswith("/"):
        raise ValueError("must be an absolute path")
    if ".." in text.split("/"):
        raise ValueError("must not hold ..")


def relative_path(text: str) -> None:
    """Accept a relative path (globs too) that stays below its start."""
    if not text:
        raise ValueError("is empty")
    if text.startswith(("/", "~")):
        raise ValueError("must be a relative path")
    if ".." in text.split("/"):
        raise ValueError("must not hold ..")


def mount_point(text: str) -> None:
    """Accept a directory that may become a mount point without hiding the system or km (rule MP)."""
    absolute_path(text)
    if re.fullmatch(r"[A-Za-z0-9._/-]+", text) is None:
        raise ValueError("may hold only letters, digits and . _ - /")
    if text == "/" or text in _MOUNT_FORBIDDEN_EXACT or _below(text, _MOUNT_FORBIDDEN):
        raise RuleError("is not a place to mount at", "use a directory of its own, such as /data")


def efs_mount_point(text: str) -> None:
    """Accept a mount point other than ``/workspace``, which is the sandbox's own."""
    mount_point(text)
    if text == "/workspace":
        raise RuleError("is the sandbox's own directory", "use /shared")


def config_file(text: str) -> None:
    """Accept the target of a config file (rule CF): nothing that guards the sandbox."""
    if re.search(r"['\"`\n\r\x00]", text):
        raise ValueError("must not hold quotes or line breaks")
    absolute_path(text)
    if text == "/" or text in _CONFIG_FORBIDDEN_EXACT or _below(text, _CONFIG_FORBIDDEN):
        raise ValueError("is not writable by a profile")
    if fnmatchcase(text, "/etc/profile.d/km-*"):
        raise ValueError("is km's own file")


def _below(path: str, roots: list[str]) -> bool:
    """Say whether *path* is one of *roots* or below it; a root may be a pattern (``/etc/cron.*``)."""
    parts = path.split("/")
    return any(fnmatchcase("/".join(parts[: root.count("/") + 1]), root) for root in roots)


def secret_path(text: str) -> None:
    """Accept the name of a parameter that becomes a variable inside (rule SP)."""
    if len(text) > 1011:
        raise ValueError("is longer than 1011 characters")
    if re.fullmatch(SECRET_PATH_PATTERN, text) is None:
        raise RuleError("is no secret path", "write /team/api-key: up to 15 levels of letters, digits, . _ -")
    for owner in (
        f"/{RESOURCE_PREFIX}/config/",
        f"/{RESOURCE_PREFIX}/slack/",
        f"/{RESOURCE_PREFIX}/sandbox/",
        "/sandbox/",
    ):
        if (text + "/").startswith(owner):
            raise ValueError("is one of the platform's own names")
    name = secret_variable(text)
    try:
        env_name(name)
    except ValueError as error:
        raise ValueError(f"would become the variable {name}, which {error}") from None


def secret_variable(path: str) -> str:
    """Return the variable a secret path becomes: its last segment, upper case, ``-`` as ``_``."""
    return path.rpartition("/")[2].upper().replace("-", "_")
