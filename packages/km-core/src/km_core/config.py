"""
The operator's configuration: ``KM_HOME/config.yaml``, ``KM_*`` variables, defaults.

Precedence, lowest first: defaults, the file, the environment (spec/cli.md section 2.1).  Unknown keys
are errors with a spelling suggestion, except below ``x-`` keys.
"""

from __future__ import annotations

import difflib
import hashlib
import ipaddress
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from km_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from km_core.secrets import AwsAccess, CredentialRule, SecretSource

_KNOWN: dict[str, Any] = {
    "control_plane": str,
    "upstreams": dict,
    "upstream_dns": str,
    "upstream_proxy": str,
    "docker": dict,
    "local": dict,
    "limits": dict,
    "ai": dict,
    "dns": dict,
    "aws": dict,
    "credentials": list,
    "secrets": dict,
    "prices_file": str,
    "private_hosts": list,
    "secrets_backend": str,
    "max_sandboxes": int,
    "profile_search_paths": list,
    "log_level": str,
    "timezone": str,
    "domain": str,
}
_SUBKEYS: dict[str, dict[str, Any]] = {
    "docker": {"image": str},
    "local": {"read_only_paths": list},
    "limits": {"memory": str, "cpus": (int, float), "pids": int},
    "ai": {"openaiCompatibleHosts": list},
    "dns": {"name_bytes": int, "name_bytes_per_hour": int},
    "aws": {"access_key_ids": list, "accounts": list, "services": list, "regions": list, "buckets": list},
}

_TEXT_LISTS = frozenset({"profile_search_paths", "local.read_only_paths", "ai.openaiCompatibleHosts"}) | {
    f"aws.{name}" for name in _SUBKEYS["aws"]
}


def known_keys() -> tuple[str, ...]:
    """Return every key that the configuration may hold, nested ones dotted (``docker.image``)."""
    nested = [f"{section}.{key}" for section, keys in _SUBKEYS.items() for key in keys]
    return (*_KNOWN, *nested)


@frozen
class Upstream:
    """A stand-in for a host: dial *url* and trust *ca_file* there."""

    url: str
    ca_file: str = ""


@frozen
class Config:
    """
    Resolved configuration.

    Attributes:
        home: the state directory (``KM_HOME``, default ``~/.km``).
        runtime_dir: short directory for sockets, mode 0700, one per user and home.
        upstreams: host to stand-in.
        upstream_dns: ``ADDRESS[:PORT]`` of the resolver the gate asks; empty means the host's own.
        private_hosts: ``(host, CIDR)`` exceptions of the operator.
        dns_name_bytes: what the names asked for below one suffix may carry at once, in bytes.
        dns_name_bytes_per_hour: what they earn back.
        credentials: which secret the gate puts on requests to which host.
        aws: whose requests to AWS pass.
        secrets: where secrets are kept that do not stand in the control plane, by name.
        read_only_paths: host paths shown read-only in local sandboxes (tool chains).
        timezone: IANA name of the operator's zone; empty means the host's.
    """

    home: Path
    runtime_dir: Path
    control_plane: str = "embedded"
    upstreams: dict[str, Upstream] = field(factory=dict)
    upstream_dns: str = ""
    upstream_proxy: str = ""
    docker_image: str = ""
    limits: dict[str, Any] = field(factory=dict)
    openai_compatible_hosts: tuple[str, ...] = ()
    prices_file: str = ""
    private_hosts: tuple[tuple[str, str], ...] = ()
    dns_name_bytes: int = 8192
    dns_name_bytes_per_hour: int = 8192
    secrets_backend: str = "file"
    max_sandboxes: int = 10
    profile_search_paths: tuple[str, ...] = ("./profiles", "~/.km/profiles")
    log_level: str = "info"
    read_only_paths: tuple[str, ...] = ()
    domain: str = "klankermaker.ai"
    timezone: str = ""
    credentials: tuple[CredentialRule, ...] = ()
    aws: AwsAccess | None = None
    secrets: dict[str, SecretSource] = field(factory=dict)

    def sandbox_dir(self, sandbox_id: str) -> Path:
        """Return the state directory of a sandbox."""
        return self.home / "sandboxes" / sandbox_id

    def sandbox_runtime_dir(self, sandbox_id: str) -> Path:
        """Return the socket directory of a sandbox."""
        return self.runtime_dir / sandbox_id

    def audit_dir(self, sandbox_id: str) -> Path:
        """Return the directory of a sandbox's audit chains, one file per writer."""
        return self.home / "audit" / sandbox_id

    def anchor_file(self, sandbox_id: str) -> Path:
        """Return where the control plane keeps what it signed last of a sandbox's evidence."""
        return self.home / "anchors" / f"{sandbox_id}.json"


def default_runtime_dir(home: Path, env: Mapping[str, str]) -> Path:
    """
    Return the socket directory for *home*.

    A Unix socket's path holds 108 bytes at most, so it lives in ``XDG_RUNTIME_DIR`` or ``/tmp`` under a
    short digest of the home directory, never below the home directory itself.
    """
    if env.get("KM_RUNTIME_DIR"):
        # Absolute, because kmd and supervisors leave the caller's directory.
        return Path(env["KM_RUNTIME_DIR"]).absolute()
    base = env.get("XDG_RUNTIME_DIR") or ""
    if not base.startswith("/") or not os.path.isdir(base):  # noqa: PTH112 - False, not an error, without permission
        user_run = Path(f"/run/user/{os.getuid()}")
        base = str(user_run) if user_run.is_dir() else "/tmp"  # noqa: S108 - made 0700 and owner-checked
    digest = hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:8]
    return Path(base) / f"km-{os.getuid()}-{digest}"


def load_config(env: Mapping[str, str] | None = None) -> Config:
    """
    Read the configuration.

    Raises:
        ConfigError: the file does not parse, holds an unknown key or a value of the wrong type.
    """
    env = os.environ if env is None else env
    try:
        home = Path(env.get("KM_HOME") or "~/.km").expanduser().absolute()
    except (RuntimeError, OSError) as error:
        raise ConfigError("the home directory is not known", why=str(error), hint="set KM_HOME") from error
    named = env.get("KM_CONFIG_PATH")
    path = Path(named).absolute() if named else home / "config.yaml"
    data = _read(path, needed=bool(named))
    for key, kind in _KNOWN.items():
        text = env.get("KM_" + key.upper())
        if text and kind is str:
            data[key] = text
        elif text and kind is int:
            data[key] = _int(text, f"KM_{key.upper()}")
    if (data.get("max_sandboxes") or 0) < 0:
        raise ConfigError("max_sandboxes must be 0 (no limit) or more", where=str(path))
    dns = {key: value for key, value in (data.get("dns") or {}).items() if value is not None}
    for key, least in (("name_bytes", 256), ("name_bytes_per_hour", 0)):
        if dns.get(key, least) < least:
            raise ConfigError(f"dns.{key} must be {least} or more", where=str(path))
    docker = dict(data.get("docker") or {})
    if env.get("KM_SANDBOX_IMAGE"):
        docker["image"] = env["KM_SANDBOX_IMAGE"]
    return Config(
        home=home,
        runtime_dir=default_runtime_dir(home, env),
        control_plane=data.get("control_plane", "embedded"),
        upstreams=_upstreams(data.get("upstreams") or {}, path),
        upstream_dns=data.get("upstream_dns", ""),
        upstream_proxy=data.get("upstream_proxy", ""),
        docker_image=docker.get("image", ""),
        limits=dict(data.get("limits") or {}),
        openai_compatible_hosts=tuple((data.get("ai") or {}).get("openaiCompatibleHosts") or ()),
        prices_file=data.get("prices_file", ""),
        private_hosts=_private(data.get("private_hosts") or [], path),
        dns_name_bytes=dns.get("name_bytes", 8192),
        dns_name_bytes_per_hour=dns.get("name_bytes_per_hour", 8192),
        secrets_backend=data.get("secrets_backend", "file"),
        max_sandboxes=data.get("max_sandboxes", 10),
        profile_search_paths=tuple(
            data.get("profile_search_paths") or ("./profiles", str(home / "profiles"))
        ),
        log_level=data.get("log_level", "info"),
        read_only_paths=tuple((data.get("local") or {}).get("read_only_paths") or ()),
        domain=data.get("domain", "klankermaker.ai"),
        timezone=data.get("timezone", ""),
        credentials=_credentials(data.get("credentials") or [], path),
        aws=_aws(data.get("aws"), path),
        secrets=_sources(data.get("secrets") or {}, path),
    )


def _read(path: Path, *, needed: bool) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, FileNotFoundError) and not needed:
            return {}
        raise ConfigError("the configuration cannot be read", where=str(path), why=str(error)) from error
    import yaml  # not before there is something to read: a gate has no use for a megabyte of parser

    try:
        data = yaml.safe_load(text)
    except (ValueError, RecursionError) as error:
        # Such as a date that does not exist.
        why = str(error) if isinstance(error, ValueError) else "it is nested too deeply"
        raise ConfigError("the configuration is not valid YAML", where=str(path), why=why) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise ConfigError(
            "the configuration is not valid YAML", where=where, why=getattr(error, "problem", "") or ""
        ) from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError("the configuration must be a mapping", where=str(path))
    _check(data, _KNOWN, path, "")
    for section, keys in _SUBKEYS.items():
        if data.get(section) is not None:
            _check(data[section], keys, path, section + ".")
    # A key without a value is one that was not written.
    return {key: value for key, value in data.items() if value is not None}


def _check(data: Mapping[Any, Any], known: Mapping[str, Any], path: Path, prefix: str) -> None:
    for key, value in data.items():
        if str(key).startswith("x-"):
            continue
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise ConfigError(
                f"unknown key {prefix}{key}",
                where=str(path),
                hint=f"did you mean {prefix}{near[0]}?"
                if near
                else "known keys: " + ", ".join(sorted(known)),
            )
        if value is not None and (not isinstance(value, known[key]) or isinstance(value, bool)):
            raise ConfigError(f"{prefix}{key} has the wrong type ({type(value).__name__})", where=str(path))
        if isinstance(value, list) and prefix + str(key) in _TEXT_LISTS:
            for item in value:
                if not isinstance(item, str):
                    raise ConfigError(
                        f"{prefix}{key} must be a list of texts, not of {type(item).__name__}",
                        where=str(path),
                    )


def _upstreams(data: Mapping[str, Any], path: Path) -> dict[str, Upstream]:
    result = {}
    for host, value in data.items():
        entry = {"url": value} if isinstance(value, str) else value
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("url"), str)
            or set(entry) - {"url", "ca_file"}
        ):
            raise ConfigError(
                f"upstreams.{host} must be a URL or {{url, ca_file}}",
                where=str(path),
                hint="write url: https://127.0.0.1:8443 and ca_file: /path/ca.pem",
            )
        result[str(host).lower().rstrip(".")] = Upstream(entry["url"], str(entry.get("ca_file") or ""))
    return result


def _private(data: list[Any], path: Path) -> tuple[tuple[str, str], ...]:
    result = []
    for item in data:
        if not isinstance(item, dict) or set(item) != {"host", "cidr"}:
            raise ConfigError("each of private_hosts must be {host, cidr}", where=str(path))
        try:
            ipaddress.ip_network(str(item["cidr"]))
        except ValueError as error:
            raise ConfigError("private_hosts: not a CIDR", where=str(path), why=str(error)) from error
        result.append((str(item["host"]).lower().rstrip("."), str(item["cidr"])))
    return tuple(result)


def _credentials(data: list[Any], path: Path) -> tuple[CredentialRule, ...]:
    if not data:
        return ()
    from km_core.secrets import parse_rules

    return parse_rules(data, str(path))


def _aws(data: Mapping[str, Any] | None, path: Path) -> AwsAccess | None:
    if data is None:
        return None
    from km_core.secrets import AwsAccess

    try:
        return AwsAccess.from_data({key: items for key, items in data.items() if not key.startswith("x-")})
    except ValueError as error:
        raise ConfigError("aws is not what it must be", where=str(path), why=str(error)) from error


def _sources(data: Mapping[str, Any], path: Path) -> dict[str, SecretSource]:
    if not data:
        return {}
    from km_core.secrets import parse_sources

    return parse_sources(data, str(path))


def _int(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"{name} must be a whole number, not {text!r}") from error
