"""Threaded HTTP(S) servers for stand-ins: the TLS handshake happens in the connection's own thread."""

from __future__ import annotations

import contextlib
import http.server
import socket
import socketserver
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any, Self

from attrs import define

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

HANDSHAKE_TIMEOUT_S = 20.0


@define
class Arrival:
    """One request as it arrived; *finished* says whether the whole answer could be sent."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float
    server_name: str = ""
    finished: bool = False


class Server(socketserver.ThreadingTCPServer):
    """
    A stand-in that runs in threads of this process.

    Args:
        handler: the request handler class.
        context: TLS context; None serves plain HTTP.
        host: address to listen on; port 0 in *port* takes a free one.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(
        self,
        handler: type[Handler],
        context: ssl.SSLContext | None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.context = context
        self.arrivals: list[Arrival] = []
        self.connections = 0
        self._open: set[socket.socket] = set()
        self._mutex = threading.Lock()
        if context is not None:
            context.sni_callback = _remember_name
        super().__init__((host, port), handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """The URL to write into ``upstreams:``."""
        scheme = "https" if self.context is not None else "http"
        return f"{scheme}://{self.server_address[0]!s}:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
        self.server_close()
        with self._mutex:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)

    def get_request(self) -> tuple[Any, Any]:
        """Accept one connection; the handshake is left to the handler's thread."""
        connection, address = super().get_request()
        self.connections += 1
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection, address

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handshake, then serve one connection."""
        connection: socket.socket = request
        try:
            if self.context is not None:
                connection.settimeout(HANDSHAKE_TIMEOUT_S)
                connection = self.context.wrap_socket(connection, server_side=True)
                connection.settimeout(None)
        except (OSError, ssl.SSLError):
            connection.close()
            return
        with self._mutex:
            self._open.add(connection)
        try:
            super().process_request_thread(connection, client_address)
        finally:
            with self._mutex:
                self._open.discard(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that goes away is ordinary here."""


class Handler(http.server.BaseHTTPRequestHandler):
    """Reads whole requests, records them and answers through `answer`."""

    protocol_version = "HTTP/1.1"
    server: Server

    def answer(self, arrival: Arrival) -> None:
        """Answer one request; overridden by each stand-in."""
        raise NotImplementedError

    def handle_one_request(self) -> None:
        """Serve one request of the connection."""
        with contextlib.suppress(ConnectionError, TimeoutError, ssl.SSLError):
            super().handle_one_request()
            return
        self.close_connection = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def _serve(self) -> None:
        arrival = Arrival(
            method=self.command,
            path=self.path,
            headers={key.lower(): value for key, value in self.headers.items()},
            body=self._body(),
            at=time.time(),
            server_name=getattr(self.connection, "km_server_name", ""),
        )
        self.server.arrivals.append(arrival)
        self.answer(arrival)
        arrival.finished = True

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def send(self, status: int, body: bytes, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Send a whole answer."""
        self.send_response(status)
        for key, value in headers:
            self.send_header(key, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def start_stream(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        """Begin a chunked answer."""
        self.send_response(status)
        for key, value in headers:
            self.send_header(key, value)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def send_chunk(self, data: bytes) -> None:
        """Send one chunk of a chunked answer; empty data ends it."""
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """Say nothing; arrivals are recorded."""


class Origin(Handler):
    """A web site: answers every request with one line, or with ``/bytes/N`` of that many bytes."""

    def answer(self, arrival: Arrival) -> None:
        """Answer one request."""
        body = b"hello from the stand-in origin\n"
        if arrival.path.startswith("/bytes/"):
            body = b"x" * int(arrival.path.removeprefix("/bytes/"))
        self.send(200, body, [("content-type", "text/plain")])


def _remember_name(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
    connection.km_server_name = name or ""  # type: ignore[union-attr]  # ours: read back when the request is recorded
