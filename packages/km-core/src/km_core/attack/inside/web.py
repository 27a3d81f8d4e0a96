"""Attempts at HTTP, TLS and the gate as an explicit proxy."""

from __future__ import annotations

import socket

from km_core.attack.inside.base import TIMEOUT_S, Args, attempt, say


def http(args: Args) -> None:
    """Plain HTTP to each URL, by hand, so that no proxy variable counts."""
    for address, port, path, host in args["urls"]:

        def one(address: str = address, port: int = port, path: str = path, host: str = host) -> None:
            with socket.create_connection((address, port), TIMEOUT_S) as sock:
                sock.settimeout(TIMEOUT_S)
                sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                say(answer=sock.recv(300).decode("latin-1"))

        attempt(f"{address}:{port}{path}", one)


def explicit_proxy(args: Args) -> None:
    """Ask the gate, as a proxy, for what it must not give."""
    for address in args["addresses"]:
        target = f"[{address}]" if ":" in address else address
        for port in args["tcp_ports"]:

            def connect(target: str = target, port: int = port) -> None:
                with socket.create_connection(("127.0.0.1", 3128), TIMEOUT_S) as sock:
                    sock.settimeout(TIMEOUT_S)
                    sock.sendall(
                        f"CONNECT {target}:{port} HTTP/1.1\r\nHost: {target}:{port}\r\n\r\n".encode()
                    )
                    say(answer=sock.recv(200).decode("latin-1"))
                    sock.sendall(args["token"])
                    sock.recv(100)

            def absolute(target: str = target, port: int = port) -> None:
                with socket.create_connection(("127.0.0.1", 3128), TIMEOUT_S) as sock:
                    sock.settimeout(TIMEOUT_S)
                    token = args["token"].decode()
                    sock.sendall(
                        f"GET http://{target}:{port}/{token} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode()
                    )
                    sock.recv(200)

            attempt(f"CONNECT {target}:{port}", connect)
            attempt(f"GET {target}:{port}", absolute)
