"""
A test double that speaks the gate's bootstrap protocol and answers on the sandbox's listeners.

For a TCP connection it writes ``SAW ADDRESS PORT`` and closes; DNS queries get themselves back as a
response.  The destination port decides about faults: 7001 exits, 7002 stops answering pings, 7003 keeps
the connection open.  ``state_dir/fault`` names a fault at start: ``exit``, ``error``, ``mute``, ``other-ca``.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

from km_host.inside import frames

CA = "-----BEGIN CERTIFICATE-----\nZmFrZQ==\n-----END CERTIFICATE-----\n"


def main() -> int:
    channel = socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1]))
    message, (tcp_fd, dns_fd) = frames.receive(channel, max_descriptors=2)
    tcp, dns = socket.socket(fileno=tcp_fd), socket.socket(fileno=dns_fd)
    state = Path(message["state_dir"])
    (state / "bootstrap.json").write_text(json.dumps(message | {"token": "kept out of files"}))
    fault = state / "fault"
    kind = fault.read_text() if fault.exists() else ""
    if kind == "exit":
        return 3
    if kind == "mute":
        time.sleep(600)
    if kind == "error":
        error = {"code": "audit", "what": "the audit chain is broken", "where": "", "why": "", "hint": ""}
        channel.sendall(json.dumps({"ready": False, "error": error}).encode() + b"\n")
        return 1
    ca = CA.replace("ZmFrZQ", "b3RoZX") if kind == "other-ca" else CA
    channel.sendall(json.dumps({"ready": True, "ca_pem": ca, "pid": os.getpid()}).encode() + b"\n")
    held, buffer, silent = [], b"", False
    while True:
        ready, _, _ = select.select([channel, tcp, dns], [], [], 60)
        if channel in ready:
            data = channel.recv(65536)
            if not data:
                return 0
            buffer += data
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                if not silent:
                    pong = {"pong": json.loads(line)["ping"], "lease": "valid", "connections": len(held)}
                    channel.sendall(json.dumps(pong).encode() + b"\n")
        if dns in ready:
            answer(dns)
        if tcp in ready:
            try:
                connection, _ = tcp.accept()
            except BlockingIOError:
                continue
            address, port = connection.getsockname()[:2]
            if port == 7001:
                os.kill(os.getpid(), signal.SIGKILL)
            silent = silent or port == 7002
            connection.sendall(f"SAW {address.removeprefix('::ffff:')} {port} PID {os.getpid()}\n".encode())
            if port == 7003:
                held.append(connection)
            else:
                connection.close()


def answer(dns: socket.socket) -> None:
    data, ancillary, _, peer = dns.recvmsg(2000, 256)
    local = [item for item in ancillary if item[:2] == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)]
    if len(data) >= 12 and not data[2] & 0x80 and peer[1] != 53:
        dns.sendmsg([data[:2] + b"\x80" + data[3:]], local, 0, peer)


if __name__ == "__main__":
    sys.exit(main())
