"""A stand-in for GitHub: ``git http-backend`` (git-http-backend(1)) behind the gate's rig, and a git client."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import subprocess

from gate_rig import Rig

from km_core.compile.draft import draft_plan
from km_core.plan import GitPlan, LimitsPlan

TOKEN = "ghs_operators-own-token"
IDENTITY = ("-c", "user.name=t", "-c", "user.email=t@example.org")


def draft_environment():
    """Return the variables that a plan with repositories puts into its sandbox."""
    data = {
        "metadata": {"name": "t"},
        "spec": {
            "lifecycle": {"ttl": "1h", "idleTimeout": "1h", "teardownPolicy": "destroy"},
            "execution": {"shell": "/bin/sh", "workingDir": "/workspace"},
            "network": {},
            "sourceAccess": {"mode": "allowlist", "github": {"allowedRepos": ["o/r"]}},
        },
    }
    plan = draft_plan(data, digest="0", substrate="local", groups=(), meters=(), limits=LimitsPlan())
    return dict(plan.workload.env)


class Lfs:
    """GitHub's LFS server and the hosts that hold its objects (git-lfs, docs/api/)."""

    cloud, checks = "github-cloud.githubusercontent.com", "lfs.github.com"

    def __init__(self):
        self.objects = {}
        self.verified = []
        self.refs = []

    async def serve(self, rig):
        """Start the hosts."""
        await rig.serve(self.cloud, self.store)
        await rig.serve(self.checks, self.check)

    def answer(self, path, body):
        """Answer a request below ``info/lfs``."""
        asked = json.loads(body or b"{}")
        if path.endswith("/locks/verify"):
            return {"ours": [], "theirs": []}
        self.refs.append((asked["operation"], asked.get("ref", {}).get("name")))
        return {
            "transfer": "basic",
            "objects": [self.actions(asked["operation"], one) for one in asked["objects"]],
        }

    def actions(self, operation, one):
        """Return what a client may do with one object."""
        if operation == "upload" and one["oid"] in self.objects:
            return one
        signed = {"header": {"Authorization": f"RemoteAuth {one['oid'][:8]}"}, "expires_in": 600}
        wanted = {operation: {"href": f"https://{self.cloud}/alambic/{one['oid']}?sig=1", **signed}}
        if operation == "upload":
            wanted["verify"] = {"href": f"https://{self.checks}/o/r/objects/{one['oid']}/verify", **signed}
        return {**one, "authenticated": True, "actions": wanted}

    async def store(self, head, body, writer):
        method, target, _ = head.decode("latin-1").split(" ", 2)
        oid = target.partition("?")[0].rpartition("/")[2]
        assert f"authorization: RemoteAuth {oid[:8]}".lower() in head.decode("latin-1").lower()
        if method == "PUT":
            assert hashlib.sha256(body).hexdigest() == oid
            self.objects[oid] = body
        kept = self.objects[oid] if method == "GET" else b""
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(kept), kept))

    async def check(self, _head, body, writer):
        self.verified.append(json.loads(body)["oid"])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


class World:
    """One gate with repositories behind it; use as ``async with World(...) as world``."""

    def __init__(self, repos=("o/r",), refs=None, token=TOKEN, **rig):
        self.rig = Rig(git=GitPlan("allowlist", tuple(repos), refs), **rig)
        if token:
            self.rig.kmd.secrets["github-token"] = token
        self.root = self.rig.directory / "served"
        self.server = None
        self.lfs = None
        self.proxy = ""

    async def __aenter__(self):
        await self.rig.__aenter__()
        return self

    async def up(self, *names, web=None, **stand_ins):
        """Make bare repositories and start; *stand_ins* are further hosts, *web* stands in for git."""
        for name in names:
            self.make(name)
        for host, handler in stand_ins.items():
            await self.rig.serve(host.replace("__", "-").replace("_", "."), handler)
        self.server = await self.rig.serve("github.com", web or self.backend)
        await self.rig.up()
        self.proxy = f"http://127.0.0.1:{self.rig.proxy()}"
        return self

    def make(self, name, *options):
        """Make a bare repository with one commit on main."""
        path = self.root / f"{name}.git"
        work = self.rig.directory / "seed" / name
        work.mkdir(parents=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        for command in (
            ["init", "-q", "-b", "main", *options],
            [*IDENTITY, "commit", "-q", "--allow-empty", "-m", "first"],
            ["clone", "-q", "--bare", ".", str(path)],
            ["-C", str(path), "config", "http.receivepack", "true"],
            ["-C", str(path), "config", "receive.advertisePushOptions", "true"],
        ):
            subprocess.run(["git", *command], cwd=work, check=True, capture_output=True, env=self.env())
        return path

    def env(self):
        keep = {
            key: value
            for key, value in os.environ.items()
            if "proxy" not in key.lower() and not key.startswith("GIT_")
        }
        return keep | {
            "HOME": str(self.rig.directory),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "LC_ALL": "C",
        }

    async def backend(self, head, body, writer):
        line, *rest = head.decode("latin-1").split("\r\n")
        method, target, _ = line.split(" ")
        fields = dict(field.lower().split(": ", 1) for field in rest if field)
        path, _, query = target.partition("?")
        if self.lfs is not None and "/info/lfs/" in path:
            said = json.dumps(self.lfs.answer(path, body)).encode()
            kind = b"Content-Type: application/vnd.git-lfs+json\r\n"
            writer.write(b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (kind, len(said), said))
            return
        env = self.env() | {
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": method,
            "CONTENT_TYPE": fields.get("content-type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": fields.get("content-encoding", ""),
            "GIT_PROTOCOL": fields.get("git-protocol", ""),
        }
        # In a thread: uvloop raises when a program ends before its input is written.
        command = ["git", "http-backend"]
        done = await asyncio.to_thread(
            subprocess.run, command, env=env, input=body, capture_output=True, check=False
        )
        top, _, answer = done.stdout.partition(b"\r\n\r\n")
        headers = dict(field.split(": ", 1) for field in top.decode().splitlines())
        status = headers.pop("Status", "200 OK")
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(answer)}\r\n{lines}\r\n".encode() + answer)

    async def git(self, *arguments, cwd=None, env=None):
        """Run a git client that has only the proxy and the sandbox's CA; returns code and what it printed."""
        process = await asyncio.create_subprocess_exec(
            "git",
            *IDENTITY,
            "-c",
            f"http.proxy={self.proxy}",
            *arguments,
            cwd=cwd or self.rig.directory,
            env=self.env() | {"GIT_SSL_CAINFO": str(self.rig.ca)} | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=-1,
            stderr=-1,
        )
        out, err = await process.communicate()
        return process.returncode, (out + err).decode()

    async def clone(self, name="o/r", *options):
        """Clone and return the work tree."""
        code, text = await self.git("clone", "-q", *options, f"https://github.com/{name}", "work")
        assert code == 0, text
        return self.rig.directory / "work"

    async def commit(self, work, branch="main", *, size=0):
        """Make a commit on *branch*, with a file of *size* random bytes."""
        await self.git("checkout", "-q", "-B", branch, cwd=work)
        if size:
            (work / "blob").write_bytes(os.urandom(size))
            await self.git("add", "blob", cwd=work)
        code, text = await self.git("commit", "-q", "--allow-empty", "-m", "more", cwd=work)
        assert code == 0, text

    def refs(self, name="o/r"):
        """Return the server's refs."""
        done = subprocess.run(
            ["git", "for-each-ref", "--format=%(refname)"],
            cwd=self.root / f"{name}.git",
            check=True,
            capture_output=True,
            env=self.env(),
        )
        return done.stdout.decode().split()

    def asked(self, text):
        """Return the heads of requests to the server that hold *text*."""
        return [head for head, _ in self.server.requests if text in head]

    async def __aexit__(self, *exc):
        with contextlib.suppress(FileNotFoundError):
            (self.rig.directory / "work").rename(self.rig.directory / "done")
        await self.rig.__aexit__(*exc)
