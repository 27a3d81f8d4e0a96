#!/usr/bin/python3 -I
"""
A gate that keeps the bootstrap contract (docs/internals.md) and tells every client what it saw.

The last argument is the bootstrap socket.  Each TCP connection gets one line with the destination it was meant for;
each DNS question gets an empty answer.  Standard library only: it runs in the gate's container.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
import sys
import threading


def receive(channel):
    data, ancillary, _flags, _address = channel.recvmsg(4, socket.CMSG_SPACE(8))
    (length,) = struct.unpack(">I", data)
    body = b""
    while len(body) < length:
        body += channel.recv(length - len(body))
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(payload)
    sockets = [socket.socket(fileno=number) for number in descriptors]
    for sock in sockets:
        # A timeout makes Python poll; the descriptions are shared with the supervisor and stay as they are.
        sock.settimeout(3600)
    return json.loads(body), sockets


def serve_tcp(listener):
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(5)
            connection.sendall(("gate saw " + json.dumps(connection.getsockname()[:2]) + "\n").encode())


def serve_dns(sock):
    while True:
        data, ancillary, _flags, peer = sock.recvmsg(2000, 256)
        if len(data) >= 12 and not data[2] & 0x80:
            local = [item for item in ancillary if item[:2] == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)]
            sock.sendmsg([data[:2] + b"\x81\x83" + data[4:]], local, 0, peer)


def main():
    channel = socket.socket(socket.AF_UNIX)
    channel.connect(sys.argv[-1])
    message, (tcp, dns) = receive(channel)
    for target, sock in ((serve_tcp, tcp), (serve_dns, dns)):
        threading.Thread(target=target, args=(sock,), daemon=True).start()
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(message["kmd_socket"])
    for folder in (message["state_dir"], message["audit_dir"]):
        with open(folder + "/gate.proof", "w", encoding="ascii") as out:
            out.write("here")
    sys.stderr.write("fake gate serves\n")
    sys.stderr.flush()
    ready = {
        "ready": True,
        "ca_pem": "-----BEGIN CERTIFICATE-----\nfake\n-----END CERTIFICATE-----\n",
        "pid": os.getpid(),
    }
    channel.sendall(json.dumps(ready).encode() + b"\n")
    for line in channel.makefile("rb"):
        ping = json.loads(line)
        channel.sendall(
            json.dumps({"pong": ping["ping"], "lease": "valid", "connections": 0}).encode() + b"\n"
        )


main()
