"""
Runs the matrix against one sandbox and judges it.

What counts is arrival at the canary, never the client's error; where no canary can stand, what the client
could read, or the gate's own record.  An attempt that did not run to its end counts as a failure, and so
does one whose expected record is missing.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import asdict, define, evolve, field, frozen

from km_core.attack.bundle import bundle
from km_core.attack.capture import Denials, Said, parsed, standing_in
from km_core.attack.checks import CHECKS, Subject
from km_core.attack.forms import address_forms, targets

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from km_core.attack.canary import Canary
    from km_core.attack.matrix import Case
    from km_core.control.substrate import Box, Substrate

_LIMIT_S = 60
_LATE_S = 1.0
_SHOWN = 3
_CLOUD_RESOLVERS = ("169.254.169.253", "169.254.169.254", "168.63.129.16", "fd00:ec2::253")
_TOO_OLD = "import sys; sys.exit(sys.version_info < (3, 8))"


@frozen
class Result:
    """
    What became of one case.

    Attributes:
        row: of the matrix.
        name: of the case.
        layer: that had to hold.
        title: what should hold.
        user: who tried: ``sandbox``, ``root``, or ``host`` for what is judged outside.
        result: ``pass``, ``fail`` or ``skipped``.
        detail: what was seen, or why it was skipped.
        seconds: how long it took.
    """

    row: str
    name: str
    layer: str
    title: str
    user: str
    result: str
    detail: str = ""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self)


@frozen
class Target:
    """
    The sandbox that is tried.

    Attributes:
        substrate: where it runs.
        box: the sandbox.
        env: of commands inside.
        recorded: digest of the plan it was made with.
        addresses: of this host, where the canary stands.
        allowed: a name that the profile allows and that may be dialled at 443; empty for none.
        rebind: names that the profile allows and that lead to this host.
        ai: a model host that the profile allows and that a stand-in plays; empty for none.
        model: a model host that the profile allows; it is not reached.  Empty for none.
        cloud: a host of AWS that the profile allows and that the gate judges by signature; it is not reached.
    """

    substrate: Substrate
    box: Box
    env: dict[str, str]
    recorded: str
    addresses: tuple[str, ...]
    allowed: str = ""
    rebind: tuple[str, ...] = ()
    ai: str = ""
    model: str = ""
    cloud: str = ""


@define
class Attack:
    """
    One run; see the module.

    Args:
        target: the sandbox.
        canary: listens already.
        tell: called with each result, and again with one that what arrived late has changed.
        program: what runs inside.
        late_s: how long to wait at the end for what arrives late, in seconds.
    """

    target: Target
    canary: Canary
    tell: Callable[[Result], None]
    _program: str = field(factory=bundle)
    _late_s: float = _LATE_S
    _tokens: dict[int, str] = field(factory=dict, init=False)
    _controls: dict[str, str] = field(factory=dict, init=False)

    def run(self, cases: Sequence[Case]) -> list[Result]:
        """Try *cases* one after the other, telling each result; what arrives late is corrected at the end."""
        users = self._users()
        results: list[Result] = []
        for case in cases:
            for user in ("host",) if case.host else users:
                began = time.monotonic()
                result = self._one(case, user, len(results))
                result = evolve(result, seconds=round(time.monotonic() - began, 3))
                results.append(result)
                self.tell(result)
        time.sleep(self._late_s)
        for index, token in self._tokens.items():
            if results[index].result == "pass" and (places := self.canary.saw(token, 0)):
                results[index] = evolve(results[index], result="fail", detail=_arrived(places))
                self.tell(results[index])
        return results

    def _users(self) -> tuple[str, ...]:
        return ("sandbox", "root") if "root" in self.target.substrate.capabilities else ("sandbox",)

    def _one(self, case: Case, user: str, index: int) -> Result:
        def result(outcome: str, detail: str) -> Result:
            return Result(case.row, case.name, case.layer, case.title, user, outcome, detail)

        if case.host:
            wrong = CHECKS[case.attempt](self._subject())
            return result("fail" if wrong else "pass", ", ".join(wrong[:_SHOWN]))
        if missing := self._no_python(user) or self._lacking(case, user):
            return result("skipped", missing)
        if case.control and (why := self._control(case)):
            return result("skipped", why)
        token = _token()
        self._tokens[index] = token
        recorded = Denials(self.target.box.audit_dir)
        said = self._inside(case, token, user)
        outcome, detail = self._judge(case, token, said, recorded)
        return result(outcome, detail)

    def _judge(self, case: Case, token: str, said: Said, recorded: Denials) -> tuple[str, str]:
        if places := self.canary.saw(token, 0.05):
            return "fail", _arrived(places)
        loose = [line for line in said.lines if line.get("held") is False]
        if loose:
            return "fail", "; ".join(f"{line['what']}: {line['seen']}" for line in loose[:_SHOWN])
        if skip := [line["skip"] for line in said.lines if "skip" in line]:
            return "skipped", str(skip[0])
        if not said.ended:
            last = said.errors.strip().splitlines()[-1:] or [""]
            return (
                "fail",
                f"the attempt did not run to its end (exit code {said.code}) {last[0][:200]}".strip(),
            )
        if case.recorded and not recorded.has(token if case.recorded == "token" else case.recorded):
            return "fail", f"nothing in the audit says so: {case.recorded}"
        tried = int(said.lines[-1]["sent"]) + int(said.lines[-1]["failed"])
        if not tried:
            return "fail", "the attempt tried nothing"
        read = sum(1 for line in said.lines if line.get("held") is True)
        return "pass", f"{tried} attempts, nothing arrived" + (f"; {read} answers read" if read else "")

    def _subject(self) -> Subject:
        box = self.target.box
        status = self.target.substrate.status(box)
        return Subject(box.plan, self.target.recorded, box.config, status, self.target.addresses)

    def _lacking(self, case: Case, user: str) -> str:
        """Say which need of a case is not met; empty when all are."""
        for need in case.needs:
            kind, _, port = need.partition(":")
            if kind in {"tcp", "udp"}:
                have = self.canary.tcp_ports if kind == "tcp" else self.canary.udp_ports
                if int(port) not in have:
                    return f"{kind.upper()} port {port} of this host is taken, or not permitted to this user"
            elif kind == "allowed" and not self.target.allowed:
                return "needs an allowed host that may be dialled: --allowed NAME"
            elif kind == "ai" and not self.target.ai:
                return "needs an allowed model host that `upstreams` in the configuration stands in for"
            elif kind == "model" and not self.target.model:
                return "needs a profile that allows a metered model host"
            elif kind == "cloud" and not self.target.cloud:
                return "needs a profile that names AWS by suffix, or a host there that all customers share"
            elif kind == "rebind" and not self.target.rebind:
                return "needs an allowed name that leads to this host: --rebind NAME"
            elif kind == "gate" and (why := self._gate(user)):
                return why
            elif kind in {"ipv4", "ipv6"} and not self._addresses(4 if kind == "ipv4" else 6):
                return f"this host has no {kind} address"
        return ""

    def _addresses(self, family: int) -> list[str]:
        return [a for a in self.target.addresses if not family or (":" in a) == (family == 6)]

    def _no_python(self, user: str) -> str:
        if user not in self._controls:
            code = self._exec(["/bin/sh", "-c", f'exec python3 -c "{_TOO_OLD}"'], user, "").code
            self._controls[user] = "" if code == 0 else "needs python3 (3.8 or later) inside"
        return self._controls[user]

    def _gate(self, user: str) -> str:
        """Say why attempts by way of the gate as a proxy would prove nothing; empty when it answers."""
        key = f"gate {user}"
        if key not in self._controls:
            said = self._exec(
                ["python3", "-", "gate_answers", json.dumps({"token": ""})], user, self._program
            )
            answers = any(line.get("held") is True for line in said.lines)
            self._controls[key] = "" if answers else "the gate does not answer as a proxy inside"
        return self._controls[key]

    def _control(self, case: Case) -> str:
        """Run the attempt on the host, where it has to arrive; once for a case."""
        if case.id not in self._controls:
            token = _token()
            argv = [sys.executable, "-I", "-", case.attempt, self._arguments(case, token, control=True)]
            with contextlib.suppress(subprocess.TimeoutExpired):
                # An environment of its own: what the operator holds is not part of an attempt.
                subprocess.run(
                    argv,
                    input=self._program.encode(),
                    env={"PATH": os.environ.get("PATH", os.defpath)},
                    capture_output=True,
                    timeout=_LIMIT_S,
                    check=False,
                )
            arrived = self.canary.saw(token)
            self._controls[case.id] = "" if arrived else "the attempt does not arrive from this host either"
        return self._controls[case.id]

    def _arguments(self, case: Case, token: str, *, control: bool = False) -> str:
        """Return the JSON that the attempt reads."""
        canary, target = self.canary, self.target
        addresses = self._addresses(case.family)
        suffix = target.allowed or "km.internal"
        extra = dict(case.extra)
        if kind := extra.get("forms"):
            first = next((a for a in self._addresses(4) if a != "127.0.0.1"), "127.0.0.1")
            extra["forms"] = address_forms(kind, first, canary.tcp_ports[0], suffix)
        if kind := extra.get("targets"):
            extra["targets"] = targets(kind, target.box.plan, token, addresses, canary.tcp_ports[0])
        name = f"{token}.km-attack.invalid"
        if case.attempt == "hello_to_canary":
            wanted = extra.get("server_name")
            name = target.allowed if wanted == "allowed" else name if wanted else ""
        tcp = [p for p in case.tcp if p in canary.tcp_ports] or canary.tcp_ports[:1]
        udp = [p for p in case.udp if p in canary.udp_ports] or canary.udp_ports[:1]
        data = {
            "token": token,
            # Where packets are dropped each way out costs its own time-out.
            "limit_s": _LIMIT_S + 2 * len(addresses) * (len(tcp) + len(udp)),
            "control": control,
            "addresses": addresses,
            "tcp_ports": tcp,
            "udp_ports": udp,
            "vsock_port": canary.vsock_port,
            "paths": [canary.unix_path],
            "abstract": [canary.abstract],
            "name": name,
            "allowed": target.allowed,
            "rebind": target.rebind,
            "ai": target.ai,
            "model": target.model,
            "cloud": target.cloud,
            "resolvers": [*_host_resolvers(), *_CLOUD_RESOLVERS],
            "suffix": suffix,
        }
        return json.dumps(data | extra)

    def _inside(self, case: Case, token: str, user: str) -> Said:
        argv = ["python3", "-", case.attempt, self._arguments(case, token)]
        return self._exec(argv, user, self._program)

    def _exec(self, argv: Sequence[str], user: str, text: str) -> Said:
        """Run a command inside with *text* as its input, and keep what it prints."""
        with (
            tempfile.TemporaryFile() as given,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):
            given.write(text.encode())
            given.seek(0)
            with standing_in(given.fileno(), out.fileno(), err.fileno()):
                code = self.target.substrate.exec(
                    self.target.box, argv, env=self.target.env, cwd="/", root=user == "root", tty=False
                )
            out.seek(0)
            err.seek(0)
            lines = tuple(parsed(out.read(4 << 20)))
            return Said(code, lines, err.read(65536).decode("utf-8", "replace"))


def _token() -> str:
    return f"kma{secrets.token_hex(8)}"


def _arrived(places: Sequence[str]) -> str:
    return f"it arrived at {', '.join(sorted(set(places))[:_SHOWN])}"


def _host_resolvers() -> list[str]:
    try:
        lines = Path("/etc/resolv.conf").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    words = [line.split() for line in lines]
    return [w[1].partition("%")[0] for w in words if len(w) > 1 and w[0] == "nameserver"]
