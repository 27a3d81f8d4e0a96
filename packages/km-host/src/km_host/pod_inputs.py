"""What a supervisor is told over its stdin: nothing secret is ever in an argument or a variable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attrs import asdict, field, frozen

from km_core.config import Config, Upstream
from km_core.errors import ProvisionError
from km_core.secrets import AwsAccess, CredentialRule

MAX_LINE = 4 * 1024 * 1024


@frozen
class PodInputs:
    """
    The first and only line of a supervisor's stdin.

    Attributes:
        token: credential for *control_socket*, of this sandbox alone.
    """

    id: str
    config: Config
    state_dir: Path
    runtime_dir: Path
    audit_dir: Path
    control_socket: Path
    token: str = field(repr=False)
    alias: str = ""

    def to_line(self) -> bytes:
        """Return one line of JSON."""
        data = asdict(
            self, value_serializer=lambda _o, _f, value: str(value) if isinstance(value, Path) else value
        )
        return json.dumps(data).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> PodInputs:
        """
        Rebuild the inputs.

        Raises:
            ProvisionError: the line is not what `to_line` makes.
        """
        try:
            data = json.loads(line)
            config = data["config"]
            return cls(
                id=data["id"],
                config=_config(config),
                state_dir=Path(data["state_dir"]),
                runtime_dir=Path(data["runtime_dir"]),
                audit_dir=Path(data["audit_dir"]),
                control_socket=Path(data["control_socket"]),
                token=data["token"],
                alias=data["alias"],
            )
        except (ValueError, KeyError, TypeError) as error:
            # The line holds a credential: only the kind of the error is told.
            raise ProvisionError("the supervisor's inputs are damaged", why=type(error).__name__) from None


def _config(data: dict[str, Any]) -> Config:
    data = dict(data)
    data["home"], data["runtime_dir"] = Path(data["home"]), Path(data["runtime_dir"])
    data["upstreams"] = {host: Upstream(**upstream) for host, upstream in data["upstreams"].items()}
    data["private_hosts"] = tuple((host, cidr) for host, cidr in data["private_hosts"])
    data["credentials"] = tuple(CredentialRule.from_data(rule) for rule in data["credentials"])
    data["aws"] = None if data["aws"] is None else AwsAccess.from_data(data["aws"])
    # Where secrets are kept is the control plane's business alone.
    data["secrets"] = {}
    for name in ("openai_compatible_hosts", "profile_search_paths", "read_only_paths"):
        data[name] = tuple(data[name])
    return Config(**data)
