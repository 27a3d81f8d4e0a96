"""
A gate with real sockets around it: a control plane on a Unix socket, servers with real TLS, fronts.

A *front* is a loopback listener whose connections count as dialled to one destination, which is what
tproxy does with the sandbox's; everything behind it is the product's own code.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import shutil
import socket
import ssl
import tempfile
import time
from pathlib import Path

import uvloop

from km_core.audit import defects
from km_core.control.rpc import encode
from km_core.plan import AddressRule, BudgetPlan, GitPlan, HostRule, NetworkPlan, SandboxPlan, policy_data
from km_core.secrets import AwsAccess
from km_core.types import CallPlan, Endpoint, EndpointKind, InjectionRule, Usage
from km_net_proxy import bootstrap as boot
from km_net_proxy.gate import Gate
from km_net_proxy.http.ca import Authority
from km_net_proxy.http.dial import Override
from km_net_proxy.http.dispatch import Dispatcher
from km_net_proxy.http.listener import Listener

SANDBOX = "sb-0123abcd"
AI = "api.anthropic.com"
WEB = "web.test"
KEY = "sk-ant-operators-own-key"
GITHUB = ("github.com", "githubusercontent.com", "amazonaws.com")
HOSTS = (AI, WEB, "other.test", "alt.test", *GITHUB)


def run(main, timeout=180):
    """Run a coroutine function on uvloop with a limit."""

    async def limited():
        async with asyncio.timeout(timeout):
            return await main()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(limited())


class FakeKmd:
    """The control plane's side of a sandbox socket, with a real ledger rule in memory."""

    def __init__(self, path: Path, *, limit=None, token="the-token"):
        self.path = path
        self.token = token
        self.limit = limit
        self.spent = 0
        self.reserved = {}
        self.settled = {}
        self.released = set()
        self.peak = 0
        self.secrets = {"anthropic-api-key": KEY}
        self.deadline = 0.0
        self.plan = None
        self.grants = []
        self.valid_s = 60
        self.calls = []
        self.broken = ""
        self.writers = set()
        self.server = None

    async def start(self):
        self.server = await asyncio.start_unix_server(self.client, str(self.path))

    async def stop(self):
        if self.server is not None:
            self.server.close()
            for writer in list(self.writers):
                writer.close()
            await self.server.wait_closed()
            self.server = None
        self.path.unlink(missing_ok=True)

    async def client(self, reader, writer):
        self.writers.add(writer)
        greeted = False
        try:
            while line := await reader.readline():
                message = json.loads(line)
                op, args = message["op"], message.get("args") or {}
                self.calls.append((op, args))
                try:
                    if op == "hello":
                        greeted = args["token"] == self.token
                        result = {}
                    assert greeted, "no token"
                    if op != "hello":
                        result = getattr(self, "do_" + op.replace(".", "_"))(**args)
                    answer = {"id": message["id"], "ok": True, "result": result}
                except AssertionError as error:
                    answer = {
                        "id": message["id"],
                        "ok": False,
                        "error": {"code": "guard", "what": str(error)},
                    }
                writer.write(encode(answer))
                await writer.drain()
        except (ConnectionError, OSError):
            pass
        finally:
            self.writers.discard(writer)
            writer.close()

    def ai(self):
        remaining = None if self.limit is None else self.limit - self.spent - sum(self.reserved.values())
        return {
            "spent_nusd": self.spent,
            "reserved_nusd": sum(self.reserved.values()),
            "limit_nusd": self.limit,
            "remaining_nusd": remaining,
        }

    def do_lease(self, holder):
        return {
            "valid_s": self.valid_s,
            "deadline": self.deadline,
            "state": "running",
            "policy_version": "" if self.plan is None else self.plan.digest(),
            "grants": [grant.to_data() for grant in self.grants],
        }

    def do_policy_current(self):
        return {"version": self.plan.digest(), "policy": policy_data(self.plan)}

    def do_ledger_reserve(self, call_id, model, provider, amount_nusd):
        total = self.spent + sum(self.reserved.values()) + amount_nusd
        granted = self.limit is None or total <= self.limit
        if granted:
            self.reserved[call_id] = amount_nusd
            self.peak = max(self.peak, total)
        return {"granted": granted, **self.ai()}

    def do_ledger_settle(self, call_id, cost_nusd, usage):
        if call_id not in self.settled:
            self.settled[call_id] = (cost_nusd, usage)
            self.spent += cost_nusd
        self.reserved.pop(call_id, None)
        return self.ai()

    def do_ledger_release(self, call_id):
        self.released.add(call_id)
        self.reserved.pop(call_id, None)
        return self.ai()

    def do_budget_get(self):
        return {
            "ai": {**self.ai(), "exhausted": False, "models": []},
            "compute": {"limit_nusd": None, "spent_nusd": 5},
            "warning_threshold": 0.8,
            "warned": False,
        }

    def do_secret_for(self, names):
        return {name: self.secrets[name] for name in names if name in self.secrets}

    def do_secret_stamp(self, name, host):
        assert not self.broken, self.broken
        return {"stamp": str(hash(self.secrets[name])) if name in self.secrets else ""}

    def do_audit_head(self, **head):
        return {}

    def do_activity(self, at):
        return {}

    def do_event(self, kind, detail):
        return {}


class Server:
    """A server whose handler gets ``(head, body, writer)``; what it received is kept."""

    def __init__(self, handler, *, context=None):
        self.handler = handler
        self.context = context
        self.requests = []
        self.connections = 0
        self.port = 0
        self.server = None
        self.tasks = set()

    async def start(self):
        self.server = await asyncio.start_server(self.client, "127.0.0.1", 0, ssl=self.context, limit=1 << 20)
        self.port = self.server.sockets[0].getsockname()[1]

    async def client(self, reader, writer):
        self.connections += 1
        self.tasks.add(asyncio.current_task())
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lower = head.lower()
                body = b""
                if b"transfer-encoding: chunked" in lower:
                    if b"expect: 100-continue" in lower:
                        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                    while True:
                        size = int((await reader.readline()).strip(), 16)
                        body += await reader.readexactly(size)
                        await reader.readline()
                        if not size:
                            break
                elif b"content-length:" in lower:
                    size = int(lower.split(b"content-length:")[1].split(b"\r\n")[0])
                    if b"expect: 100-continue" in lower:
                        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                    body = await reader.readexactly(size)
                self.requests.append((head, body))
                if await self.handler(head, body, writer) == "close":
                    break
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError, ssl.SSLError, asyncio.CancelledError):
                await writer.wait_closed()
            self.tasks.discard(asyncio.current_task())

    async def stop(self):
        if self.server is not None:
            self.server.close()
            for task in list(self.tasks):
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)


def ok(body=b"hello", *fields):
    """Return a handler that answers 200 with *body*."""

    async def handler(head, _body, writer):
        lines = b"".join(b"%b\r\n" % field for field in fields)
        sent = b"" if head.startswith(b"HEAD") else body
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%b\r\n%b" % (len(body), lines, sent))

    return handler


class FakeMeter:
    """A provider's rules in few lines: usage stands in lines ``data: {...}`` or in a JSON body."""

    name = "anthropic"
    hosts = (AI,)
    injection = InjectionRule("anthropic-api-key", ("authorization", "x-api-key"), "x-api-key", "{secret}")

    def endpoint(self, method, path, headers):
        path = path.partition("?")[0]
        if (method, path) == ("POST", "/v1/messages"):
            return Endpoint("messages", EndpointKind.METERED)
        if (method, path) == ("GET", "/v1/models"):
            return Endpoint("models", EndpointKind.FREE)
        return Endpoint(path, EndpointKind.REFUSED, "not metered")

    def plan_call(self, endpoint, headers, body):
        data = json.loads(body)
        return CallPlan(data["model"], bool(data.get("stream")), len(body), data["max_tokens"], body)

    def clamp(self, endpoint, plan, output_limit):
        return json.dumps({**json.loads(plan.body), "max_tokens": output_limit}).encode()

    def parser(self, endpoint, plan, status, headers):
        return FakeParser(plan, status)

    def decoder(self, content_encoding):
        return FakeDecoder(content_encoding)

    def refusal(self, code, message, km):
        status = 503 if code == "control_plane_unavailable" else 403
        error = {"type": "permission_error", "message": message}
        return status, json.dumps({"type": "error", "error": error, "km": dict(km)}).encode()

    def response_filter(self, plan):
        return None


class FakeDecoder:
    def __init__(self, coding):
        self.failed = coding not in ("", "identity", "gzip")
        self.pending = False
        import zlib

        self.inflate = zlib.decompressobj(31) if coding == "gzip" else None

    def feed(self, data):
        return data if self.inflate is None else self.inflate.decompress(data)

    def finish(self):
        return b""


class FakeParser:
    def __init__(self, plan, status):
        self.plan, self.status, self.data = plan, status, b""

    def feed(self, data):
        self.data += data

    def finish(self):
        best, complete = {}, False
        for line in self.data.splitlines():
            text = line.removeprefix(b"data: ")
            if text.startswith(b"{"):
                with contextlib.suppress(ValueError):
                    data = json.loads(text)
                    best |= data.get("usage", {})
                    complete = complete or bool(data.get("final"))
        return Usage(
            "anthropic",
            self.plan.model,
            input_tokens=best.get("input_tokens", 0),
            output_tokens=best.get("output_tokens", 0),
            status=self.status,
            complete=complete or self.status >= 400,
            estimated_input_tokens=self.plan.input_bound,
            estimated_output_tokens=self.data.count(b"delta") * 10,
        )


class Names:
    """Synthetic addresses by hand."""

    def __init__(self):
        self.by_name = {}

    def address(self, name):
        host = self.by_name.setdefault(name, 256 + len(self.by_name))
        return ipaddress.IPv4Address("198.18.0.0") + host

    def lookup(self, address):
        if int(address) == int(ipaddress.IPv4Address("198.18.0.1")):
            return "km.internal"
        for name, host in self.by_name.items():
            if int(address) == int(ipaddress.IPv4Address("198.18.0.0")) + host:
                return name
        return None


class FakeResolver:
    """Answers from a table."""

    def __init__(self):
        self.table = {}
        self.asked = []
        self.ttl = 60

    async def resolve(self, name):
        self.asked.append(name)

        class Resolution:
            addresses = self.table.get(name, ())
            rcode = 0 if addresses else 3
            ttl = self.ttl
            denied = None

        return Resolution


class _Front(Listener):
    def __init__(self, *args, destination, **kwargs):
        super().__init__(*args, **kwargs)
        self.fixed = destination

    def destination(self, sock):
        return self.fixed


class Rig:
    """Everything of one test; use as ``async with Rig(...) as rig``."""

    def __init__(
        self,
        *,
        limit=None,
        hosts=None,
        https_only=False,
        addresses=(),
        meter=True,
        services=None,
        credentials=(),
        aws=None,
        aws_regions=(),
        git=None,
    ):
        self.directory = Path(tempfile.mkdtemp(prefix="kg"))
        self.kmd = FakeKmd(self.directory / "k.sock", limit=limit)
        self.pki = Authority.load_or_make(
            _made(self.directory / "pki"), HOSTS, sandbox_id="standins", life_s=3600
        )
        rules = hosts
        if rules is None:
            rules = [HostRule(AI, "exact"), HostRule(WEB, "exact"), HostRule("other.test", "exact")]
        self.plan = SandboxPlan(
            profile="t",
            profile_digest="0",
            prefix="sb",
            substrate="local",
            network=NetworkPlan(
                hosts=tuple(rules),
                https_only=https_only,
                addresses=tuple(addresses),
                aws_regions=tuple(aws_regions),
            ),
            budget=BudgetPlan(ai_limit_nusd=limit),
            git=git or GitPlan(),
        )
        self.meters = {"anthropic": FakeMeter()} if meter is True else (meter or {})
        self.services = services or {}
        self.credentials = tuple(credentials)
        self.aws = aws or AwsAccess()
        self.upstreams = {}
        self.servers = []
        self.fronts = []
        self.names = Names()
        self.resolver = FakeResolver()
        self.gate = None

    async def serve(self, name, handler, *, tls=True, cert=None, override_host="127.0.0.1"):
        """Start a stand-in for *name*."""
        server = Server(handler, context=self.pki.context(cert or name) if tls else None)
        await server.start()
        self.servers.append(server)
        scheme = "https" if tls else "http"
        self.upstreams[name] = Override.from_url(
            name, f"{scheme}://{override_host}:{server.port}", self.pki.pem if tls else ""
        )
        return server

    async def __aenter__(self):
        await self.kmd.start()
        return self

    async def up(self):
        """Open the gate, after the stand-ins are known."""
        given = boot.Bootstrap(
            sandbox_id=SANDBOX,
            plan=self.plan,
            how="tproxy",
            state_dir=self.directory / "gate",
            audit_dir=self.directory / "audit",
            kmd_socket=self.kmd.path,
            token=self.kmd.token,
            upstreams=self.upstreams,
            upstream_dns=(),
            upstream_proxy="",
            private_hosts=(),
            prices={},
            alias="",
            credentials=self.credentials,
            aws=self.aws,
        )
        self.gate = await Gate.open(given, self.meters, self.services)
        self.gate.context.names = self.names
        self.gate.context.dialer._resolver = self.resolver
        self.gate._parts.journal.start()
        await self.gate._parts.lease.renew()
        self.gate._parts.lease.start()
        self.gate.context.connections.start_sweeping()
        self.dispatcher = Dispatcher(self.gate.context)
        self.ca = self.directory / "ca.pem"
        self.ca.write_text(self.gate.context.authority.pem)
        return self

    def front(self, destination, port):
        """Return the loopback port whose connections count as dialled to *destination*, a name or address."""
        try:
            address = ipaddress.ip_address(destination)
        except ValueError:
            address = self.names.address(destination)
        sock = socket.create_server(("127.0.0.1", 0), backlog=256)
        listener = _Front(
            sock, self.gate.context.connections, self.dispatcher.serve, destination=(address, port)
        )
        listener.start()
        self.fronts.append((listener, sock))
        return sock.getsockname()[1]

    def proxy(self):
        """Return the port of the explicit proxy."""
        return self.front("127.0.0.1", 3128)

    def client_context(self, alpn=()):
        context = ssl.create_default_context(cadata=self.gate.context.authority.pem)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context

    async def tls(self, name, port=443, *, sni=None, front=None):
        """Open TLS to a front; returns ``(reader, writer)``."""
        front = front or self.front(name, port)
        return await asyncio.open_connection(
            "127.0.0.1", front, ssl=self.client_context(), server_hostname=sni or name, limit=1 << 22
        )

    def events(self):
        """Return the audit records."""
        self.gate._parts.log.flush(everything=True)
        lines = (self.directory / "audit" / "gate.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert {str(record): found for record in records if (found := defects(record))} == {}
        return records

    async def settled(self, count):
        """Wait until the ledger has *count* settlements or releases."""
        await until(lambda: len(self.kmd.settled) + len(self.kmd.released) >= count)

    async def __aexit__(self, *exc):
        for listener, sock in self.fronts:
            listener.close()
            sock.close()
        if self.gate is not None:
            self.gate._listener = None
            await self.gate.close()
        for server in self.servers:
            await server.stop()
        await self.kmd.stop()
        await asyncio.sleep(0.02)
        shutil.rmtree(self.directory)


async def until(condition, within=30.0):
    """Wait until *condition* holds; long, because a loaded machine is slow and not wrong."""
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, "it never happened"
        await asyncio.sleep(0.01)


def _made(path):
    path.mkdir()
    return path


def post(body, *, path="/v1/messages", host=AI, extra=""):
    """Return the bytes of a model call."""
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    return (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n{extra}\r\n"
    ).encode() + data


async def answer(reader):
    """Read one response; returns ``(status, fields, body)``."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    status = int(lines[0].split()[1])
    fields = {}
    for line in lines[1:]:
        if line:
            name, _, value = line.partition(": ")
            fields[name.lower()] = value
    if status < 200:
        return status, fields, b""
    if fields.get("transfer-encoding") == "chunked":
        body = b""
        while True:
            line = await reader.readline()
            if not line:
                raise asyncio.IncompleteReadError(body, None)
            size = int(line.strip(), 16)
            body += await reader.readexactly(size)
            await reader.readline()
            if not size:
                return status, fields, body
    if "content-length" in fields:
        return status, fields, await reader.readexactly(int(fields["content-length"]))
    return status, fields, await reader.read()


__all__ = ["AddressRule", "HostRule"]
