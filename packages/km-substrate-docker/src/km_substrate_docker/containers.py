"""
The four containers of a sandbox, as arguments for the engine: what each may do stands here.

| container | network | capabilities | shares with the host |
|---|---|---|---|
| pause | none; owns the namespaces | none | nothing |
| helper, for a moment | the pause container's | NET_ADMIN, NET_BIND_SERVICE | the hand-over's directory |
| gate | the host's | none | its socket directory, its state, the audit directory |
| main | the pause container's | `WORKLOAD_CAPABILITIES` | workspace, home, resolver file |

None has the engine's socket, an environment of the host, or a way to new privileges.
"""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

from attrs import frozen

from km_core.errors import ProvisionError
from km_host import trust
from km_substrate_docker.engine import container_name, labels

if TYPE_CHECKING:
    from km_core.config import Config
    from km_core.plan import LimitsPlan, SandboxPlan
    from km_substrate_docker.hostfiles import Owners, Paths
    from km_substrate_docker.image import Images

WORKLOAD_CAPABILITIES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETGID",
    "SETUID",
)
"""
What root inside needs to install packages, change owners and users, and nothing else.

Never: NET_RAW (packets past the listeners), NET_ADMIN (the rules), SYS_ADMIN, BPF, SYS_PTRACE,
SYS_MODULE, MKNOD, and the rest of the engine's own default set.
"""

HANDOVER_MOUNT = "/run/km-handover"
CA_EXTRA = "/usr/local/share/ca-certificates/km-sandbox.crt"
"""Where Debian's ``update-ca-certificates`` finds it again when a package renews the bundle."""

_MIB = 1024 * 1024
_HELPER_MEMORY = 256 * _MIB
_GATE_MEMORY = 1024 * _MIB
_GATE_PIDS = 256
_DEFAULT_PIDS = 512
_FIRST_PROCESS = "trap '' TERM HUP INT; while :; do sleep 86400; done"
"""Holds the container open and leaves ending it to its supervisor; any image has a shell."""


@frozen
class Limits:
    """Resolved limits: *memory* in bytes, *cpus* as a number of cores, *pids* as processes."""

    memory: int
    cpus: float
    pids: int

    @classmethod
    def of(cls, limits: LimitsPlan, info: dict[str, Any]) -> Limits:
        """Return the plan's limits, or half the host's memory and cores and 512 processes."""
        return cls(
            memory=limits.memory_bytes or int(info["MemTotal"]) // 2,
            cpus=limits.cpus or max(1.0, int(info["NCPU"]) / 2),
            pids=limits.pids or _DEFAULT_PIDS,
        )


@frozen
class Specs:
    """Makes the containers' arguments for one sandbox."""

    sandbox_id: str
    plan: SandboxPlan
    config: Config
    images: Images
    paths: Paths
    owners: Owners

    def pause(self) -> dict[str, Any]:
        """Return the container that owns the network and process namespaces."""
        uid, gid = self.owners.gate
        return self._common("pause", self.images.base) | {
            "entrypoint": ["/opt/km/libexec/pause.py"],
            "command": [],
            "network_mode": "none",
            "hostname": self.sandbox_id,
            # Programs look their own host up; that is no question for the gate.
            "extra_hosts": [f"{self.sandbox_id}:{address}" for address in ("127.0.0.1", "::1")],
            "user": f"{uid}:{gid}",
            "read_only": True,
            # Loopback only, but both families: `::1` and the sandbox's own synthetic addresses.
            "sysctls": {f"net.ipv6.conf.{name}.disable_ipv6": "0" for name in ("all", "default", "lo")},
            "security_opt": _confined(),
            # Its standard input is the leash: it ends when the one attached stream does.
            "stdin_open": True,
            "mem_limit": 64 * _MIB,
            "pids_limit": 16,
        }

    def helper(self, pause_id: str, socket_name: str) -> dict[str, Any]:
        """Return the container that makes the listeners and ends."""
        return self._common("helper", self.images.base) | {
            "entrypoint": ["/opt/km/libexec/km_listeners.py", f"{HANDOVER_MOUNT}/{socket_name}"],
            "command": [],
            "network_mode": f"container:{pause_id}",
            "user": "0:0",
            # nft, ip and IP_TRANSPARENT; port 53.
            "cap_add": ["NET_ADMIN", "NET_BIND_SERVICE"],
            "read_only": True,
            # The engine's own profile: ours has no netlink for netfilter, which is the point of ours.
            "security_opt": ["no-new-privileges"],
            "mounts": [_bind(self.paths.handover, HANDOVER_MOUNT)],
            "mem_limit": _HELPER_MEMORY,
            "pids_limit": 64,
        }

    def gate(self, bootstrap_socket: str, ca_bundle: str) -> dict[str, Any]:
        """
        Return the gate's container.

        It shares the host's network: it dials, resolves and reaches stand-ins as a host process would
        (docs/decisions/0017-docker-gate-network.md).  Paths are the same inside, so that the bootstrap
        message means the same on both sides.
        """
        uid, gid = self.owners.gate
        shared = (self.paths.gate_runtime, self.paths.gate_state, self.paths.audit)
        mounts = [_bind(path, str(path)) for path in shared]
        if ca_bundle:
            mounts.append(_bind(ca_bundle, trust.BUNDLE, read_only=True))
        return self._common("gate", self.images.base) | {
            "entrypoint": ["/opt/km/libexec/km_sidecar.py", "gate", "--connect", bootstrap_socket],
            "command": [],
            "network_mode": "host",
            "user": f"{uid}:{gid}",
            "read_only": True,
            "tmpfs": {"/tmp": "rw,noexec,nosuid,nodev,size=64m"},  # noqa: S108 - inside the container
            "security_opt": _confined(),
            "mounts": mounts,
            "mem_limit": _GATE_MEMORY,
            "pids_limit": _GATE_PIDS,
        }

    def main(self, pause_id: str, limits: Limits) -> dict[str, Any]:
        """Return the workload's container; every command joins it by the engine's exec."""
        env = dict.fromkeys(trust.CA_VARIABLES, trust.BUNDLE) | {"KM_SANDBOX_ID": self.sandbox_id}
        return self._common("main", self.images.workload) | {
            "entrypoint": ["/bin/sh", "-c", _FIRST_PROCESS],
            "command": [],
            "network_mode": f"container:{pause_id}",
            "pid_mode": f"container:{pause_id}",
            "user": "0:0",
            "working_dir": "/",
            "environment": env,
            "cap_add": list(WORKLOAD_CAPABILITIES),
            "security_opt": _confined(),
            "mounts": [
                _bind(self.paths.workspace, "/workspace"),
                _bind(self.paths.home, "/home/sandbox"),
                _bind(self.paths.resolv_conf, "/etc/resolv.conf", read_only=True),
            ],
            "mem_limit": limits.memory,
            # The same number as memory: no swap on top.
            "memswap_limit": limits.memory,
            "nano_cpus": int(limits.cpus * 1_000_000_000),
            "pids_limit": limits.pids,
        }

    def _common(self, role: str, image: str) -> dict[str, Any]:
        return {
            "image": image,
            "name": container_name(self.sandbox_id, role),
            "labels": labels(self.config.home, self.sandbox_id, role),
            "cap_drop": ["ALL"],
            # What the containers say comes through streams that km holds, not through the engine's disk.
            "log_config": _no_log(),
            # The client's configuration may hold the operator's proxies, with passwords: never inside.
            "use_config_proxy": False,
            "healthcheck": {"test": ["NONE"]},
            "restart_policy": {"Name": "no"},
        }


def limit_gaps(info: dict[str, Any]) -> tuple[str, ...]:
    """Return which of memory, cpus and pids this engine cannot limit."""
    able = {
        "memory": bool(info.get("MemoryLimit")),
        "cpus": bool(info.get("CpuCfsQuota")) or bool(info.get("CPUCfsQuota")),
        "pids": bool(info.get("PidsLimit")),
    }
    return tuple(name for name, fine in able.items() if not fine)


def _bind(source: object, target: str, *, read_only: bool = False) -> dict[str, Any]:
    """Return a bind mount; one whose source is missing fails instead of making a directory."""
    text = str(source)
    if "\0" in text:
        raise ProvisionError("a path holds a NUL character", where=repr(text))
    return {"Type": "bind", "Source": text, "Target": target, "ReadOnly": read_only}


def _no_log() -> dict[str, Any]:
    return {"Type": "none", "Config": {}}


def _confined() -> list[str]:
    return ["no-new-privileges", f"seccomp={_seccomp()}"]


@cache
def _seccomp() -> str:
    from km_host.seccomp import docker_profile

    return json.dumps(docker_profile(), separators=(",", ":"))
