"""One test's world: a network, stand-ins, a canary, a ``KM_HOME`` and the real ``km`` command."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen
from demo.ai import AiUpstream
from demo.names import NameServer
from demo.pki import Authority
from demo.serving import Origin, Server
from demo.traces import Traces

from km_core.attack import Canary, host_addresses

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ORIGIN = "origin.test"
WEB = "web.test"
REBIND = "rebind.test"
CLOUD = "s3.us-east-1.amazonaws.com"
"""Judged by signature; nothing plays it."""
DENIED = "denied.test"
KEYS = {"anthropic-api-key": "outside-anthropic-key-4f1d", "openai-api-key": "outside-openai-key-88ce"}
FORBIDDEN_NAMES = {
    REBIND: "127.0.0.1",
    "private.test": "10.99.0.1",
    "metadata.test": "169.254.169.254",
    "shared.test": "100.64.0.1",
    "six.test": "fd12:3456::1",
    "local6.test": "::1",
    "mapped.test": "::ffff:127.0.0.1",
}
"""Names a profile allows and whose addresses nothing may reach."""


@frozen
class Outcome:
    """What a command did; the repr can be pasted into a shell."""

    argv: tuple[str, ...]
    env: dict[str, str]
    code: int
    stdout: str
    stderr: str

    def __repr__(self) -> str:
        settings = " ".join(f"{key}={shlex.quote(value)}" for key, value in self.env.items())
        return (
            f"\n$ {settings} {shlex.join(self.argv)}\n(exit {self.code})\n"
            f"--- stdout\n{self.stdout}--- stderr\n{self.stderr}"
        )

    def assert_ok(self) -> Outcome:
        assert self.code == 0, self
        return self

    def assert_failed(self, code: int, *words: str) -> Outcome:
        """The command ended with *code*, said *words* and showed no traceback."""
        assert self.code == code, self
        assert "Traceback" not in self.stderr, self
        for word in words:
            assert word in self.stderr + self.stdout, (word, self)
        return self

    def json(self) -> Any:
        self.assert_ok()
        return json.loads(self.stdout)

    def json_lines(self) -> list[Any]:
        return [json.loads(line) for line in self.stdout.splitlines()]


@define
class World:
    """See the module; made by `new_world`."""

    directory: Path
    authority: Authority
    origin: Server
    ai: AiUpstream
    names: NameServer
    canary: Canary
    home: Path = field(init=False)
    runtime_dir: Path = field(init=False)
    extra: dict[str, Any] = field(factory=dict)
    variables: dict[str, str] = field(factory=dict)
    """What else is in the environment of every command."""

    def __attrs_post_init__(self) -> None:
        self.home = self.directory / "home"
        self.runtime_dir = self.directory / "run"
        self.home.mkdir(mode=0o700)
        self.configure()

    @property
    def settings(self) -> dict[str, str]:
        """The variables of every command."""
        return {"KM_HOME": str(self.home), "KM_RUNTIME_DIR": str(self.runtime_dir)} | self.variables

    @property
    def env(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("KM_")}
        if image := os.environ.get("KM_SANDBOX_IMAGE"):
            kept["KM_SANDBOX_IMAGE"] = image
        return kept | self.settings

    def configure(self, **changes: Any) -> None:
        """Write ``config.yaml``: the stand-ins, and what *changes* adds or replaces."""
        ca_file = str(self.authority.ca_file)
        upstreams = {ORIGIN: self.origin.url, WEB: self.origin.url}
        upstreams |= dict.fromkeys(("api.anthropic.com", "api.openai.com"), self.ai.url)
        config = {
            "upstreams": {host: {"url": url, "ca_file": ca_file} for host, url in upstreams.items()},
            "upstream_dns": self.names.address,
        }
        self.extra = config | changes
        (self.home / "config.yaml").write_text(json.dumps(self.extra), encoding="utf-8")

    def argv(self, *arguments: str) -> tuple[str, ...]:
        return (str(Path(sys.executable).with_name("km")), *arguments)

    def km(
        self, *arguments: str, stdin: str = "", timeout_s: float = 90, env: dict[str, str] | None = None
    ) -> Outcome:
        """Run one km command to its end."""
        argv = self.argv(*arguments)
        done = subprocess.run(
            argv,
            env=self.env | (env or {}),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            cwd=self.directory,
        )
        return Outcome(argv, self.settings | (env or {}), done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start one km command; the caller ends it."""
        return subprocess.Popen(
            self.argv(*arguments),
            env=self.env | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.directory,
        )

    def profile(self, name: str = "world", **changes: Any) -> Path:
        """
        Write a profile and return its path.

        *changes* by section of ``spec``; ``hosts`` is short for the allowed hosts, ``ai`` for the
        ceiling in dollars (None leaves it out).
        """
        vendors = ["api.anthropic.com", "api.openai.com", CLOUD]
        hosts = changes.pop("hosts", [ORIGIN, WEB, *vendors, *FORBIDDEN_NAMES])
        ceiling = changes.pop("ai", None)
        spec: dict[str, Any] = {
            "lifecycle": {"ttl": "1h", "idleTimeout": "30m", "teardownPolicy": "destroy"},
            "runtime": {"substrate": "local", "instanceType": "none", "region": "us-east-1"},
            "execution": {"shell": "/bin/bash", "workingDir": "/workspace"},
            "sourceAccess": {"mode": "none"},
            "network": {"egress": {"allowedDNSSuffixes": [], "allowedHosts": hosts}},
            "identity": {
                "roleSessionDuration": "1h",
                "allowedRegions": ["us-east-1"],
                "sessionPolicy": "minimal",
            },
        }
        if ceiling is not None:
            spec["budget"] = {"ai": {"maxSpendUSD": ceiling}}
        document = {
            "apiVersion": "klankermaker.ai/v1alpha1",
            "kind": "SandboxProfile",
            "metadata": {"name": name, "prefix": "t"},
            "spec": spec | changes,
        }
        path = self.directory / f"{name}.yaml"
        path.write_text(json.dumps(document, indent=2), encoding="utf-8")
        return path

    def create(self, profile: Path, substrate: str, *arguments: str) -> Sandbox:
        """Create a sandbox; it is destroyed with the world."""
        outcome = self.km("create", str(profile), "--substrate", substrate, "--json", *arguments)
        return Sandbox(self, outcome.json()["id"], substrate)

    def pid(self, what: str) -> int:
        """The process id of ``kmd``."""
        assert what == "kmd"
        return int(self.km("daemon", "status", "--json").json()["pid"])

    @property
    def addresses(self) -> list[str]:
        """Every address of the network that plays the host, without interface names."""
        return [address.partition("%")[0] for address in host_addresses()]


@define
class Sandbox:
    """A running sandbox of a `World`."""

    world: World
    id: str
    substrate: str

    def run(self, *command: str, stdin: str = "", root: bool = False, timeout_s: float = 90) -> Outcome:
        """Run a command inside."""
        flags = ["--root"] if root else []
        return self.world.km("exec", *flags, self.id, "--", *command, stdin=stdin, timeout_s=timeout_s)

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command inside; the caller ends it."""
        return self.world.start("exec", self.id, "--", *command)

    def python(self, source: str, *arguments: str, **options: Any) -> Outcome:
        """Run Python inside; the source travels on stdin."""
        return self.run("python3", "-", *arguments, stdin=source, **options)

    def put(self, name: str, content: str) -> None:
        """Write a file below ``/workspace``."""
        self.run("sh", "-c", 'cat > "$0"', name, stdin=content).assert_ok()

    def put_quietly(self, name: str, content: str) -> None:
        """Write a file below ``/workspace`` if the sandbox can take it just now."""
        self.run("sh", "-c", 'cat > "$0"', name, stdin=content)

    def status(self) -> Any:
        return self.world.km("status", self.id, "--json").json()

    def decisions(self, verdict: str = "deny") -> list[dict[str, Any]]:
        """Return the audit records with *verdict*."""
        records = self.world.km("audit", "show", self.id, "--json").json()
        return [record for record in records if record.get("verdict") == verdict]

    def wait(self, what: str, predicate: Any, timeout_s: float = 20) -> Any:
        """Wait until *predicate* of the status holds and return the status."""
        deadline = time.monotonic() + timeout_s
        while True:
            status = self.status()
            if predicate(status):
                return status
            assert time.monotonic() < deadline, (what, status)
            time.sleep(0.2)

    def destroy(self) -> Outcome:
        return self.world.km("destroy", self.id, "--yes")


@contextlib.contextmanager
def new_world(ai_reply: Any = None) -> Iterator[World]:
    """Make a world and, at its end, check that nothing of it is left on the host."""
    # Short, because Unix sockets live below it (108 bytes at most, unix(7)).
    directory = Path(tempfile.mkdtemp(prefix="kmt"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        authority = Authority(directory / "pki")
        names = (ORIGIN, WEB, "api.anthropic.com", "api.openai.com", "127.0.0.1")
        reply = [ai_reply] if ai_reply is not None else []
        world = World(
            directory=directory,
            authority=authority,
            origin=stack.enter_context(Server(Origin, authority.server_context(*names))),
            ai=stack.enter_context(AiUpstream(authority.server_context(*names), *reply)),
            names=stack.enter_context(
                NameServer({name: [[address]] for name, address in FORBIDDEN_NAMES.items()})
            ),
            canary=stack.enter_context(Canary(directory)),
        )
        traces = Traces(world.home, world.runtime_dir)
        try:
            yield world
            for sandbox in world.km("list", "--json").json():
                traces.note(sandbox["id"])
        finally:
            _end(world)
        left = traces.left()
        assert not left, "left over: " + "; ".join(left)
        files = sorted(str(path) for path in (world.home / "sandboxes").rglob("[!.]*"))
        assert not files, "left over: " + "; ".join(files)


def _end(world: World) -> None:
    listing = world.km("list", "--json")
    ids: Sequence[str] = [sandbox["id"] for sandbox in json.loads(listing.stdout or "[]")]
    for sandbox_id in ids:
        world.km("destroy", sandbox_id, "--yes")
    world.km("reconcile")
    world.km("daemon", "stop")
