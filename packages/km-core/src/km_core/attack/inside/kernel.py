"""Attempts at the kernel: io_uring, keyrings, namespaces, programs."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import struct

from km_core.attack.inside.base import ERRORS, LIBC, SENT, Args, attempt, held, say
from km_core.attack.inside.network import tcp, udp


def keyring(args: Args) -> None:
    """Find the host's key in every keyring, and leave one there."""
    add, request, control = 248, 249, 250  # system call numbers, x86-64
    rings = (-1, -2, -3, -4, -5, -7)  # thread, process, session, user, user session, requestor

    def search(ring: int) -> None:
        key = LIBC.syscall(control, 10, ring, b"user", args["key"].encode(), 0)
        if key < 0:
            raise OSError(ctypes.get_errno(), "search")
        data = ctypes.create_string_buffer(100)
        size = LIBC.syscall(control, 11, key, data, 100, 0)
        say(read=data.raw[: max(size, 0)].decode("latin-1"))

    def leave(ring: int) -> None:
        name = args["token"]
        if LIBC.syscall(add, b"user", name, name, len(name), ring) < 0:
            raise OSError(ctypes.get_errno(), "add_key")

    def ask() -> None:
        if LIBC.syscall(request, b"user", args["key"].encode(), None, 0) < 0:
            raise OSError(ctypes.get_errno(), "request_key")

    for ring in rings:
        attempt(f"search {ring}", search, ring)
    for ring in (-3, -4, -5):
        attempt(f"add {ring}", leave, ring)
    attempt("request", ask)


class Ring:
    """Just enough of io_uring (io_uring_setup(2), io_uring_enter(2)) to make a socket and use it."""

    SETUP, ENTER = 425, 426
    SOCKET, CONNECT, SEND = 45, 16, 26

    def __init__(self) -> None:
        params = bytearray(120)
        buffer = (ctypes.c_char * 120).from_buffer(params)
        self.fd = LIBC.syscall(self.SETUP, 8, buffer)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "io_uring_setup")
        words = struct.unpack("30I", params)
        self.sq = words[10:20]  # head, tail, ring_mask, ring_entries, flags, dropped, array
        self.cq = words[20:30]  # head, tail, ring_mask, ring_entries, overflow, cqes
        size = max(self.sq[6] + words[0] * 4, self.cq[5] + words[1] * 16)
        self.sq_ring = mmap.mmap(self.fd, size, offset=0)
        self.cq_ring = mmap.mmap(self.fd, size, offset=0x8000000)
        self.sqes = mmap.mmap(self.fd, words[0] * 64, offset=0x10000000)

    def run(self, opcode: int, fd: int, addr: int = 0, length: int = 0, off: int = 0) -> int:
        """Submit one operation, wait for it and return its result."""
        entry = struct.pack("<BBHiQQIIQHHIQQ", opcode, 0, 0, fd, off, addr, length, 0, 1, 0, 0, 0, 0, 0)
        tail = struct.unpack_from("<I", self.sq_ring, self.sq[1])[0]
        mask = struct.unpack_from("<I", self.sq_ring, self.sq[2])[0]
        index = tail & mask
        self.sqes[index * 64 : index * 64 + 64] = entry
        struct.pack_into("<I", self.sq_ring, self.sq[6] + index * 4, index)
        struct.pack_into("<I", self.sq_ring, self.sq[1], tail + 1)
        if LIBC.syscall(self.ENTER, self.fd, 1, 1, 1, 0, 0) < 0:
            raise OSError(ctypes.get_errno(), "io_uring_enter")
        head = struct.unpack_from("<I", self.cq_ring, self.cq[0])[0]
        cq_mask = struct.unpack_from("<I", self.cq_ring, self.cq[2])[0]
        _, result, _ = struct.unpack_from("<QiI", self.cq_ring, self.cq[5] + (head & cq_mask) * 16)
        struct.pack_into("<I", self.cq_ring, self.cq[0], head + 1)
        if result < 0:
            raise OSError(-result, errno.errorcode.get(-result, "?"))
        return int(result)

    def stream(self, address: str, port: int, token: bytes) -> None:
        """Connect, send and close."""
        sock = self.run(self.SOCKET, socket.AF_INET, 0, 0, socket.SOCK_STREAM)
        place = ctypes.create_string_buffer(
            struct.pack("<H", socket.AF_INET)
            + struct.pack("!H", port)
            + socket.inet_aton(address)
            + bytes(8),
            16,
        )
        self.run(self.CONNECT, sock, ctypes.addressof(place), 0, 16)
        data = ctypes.create_string_buffer(token, len(token))
        self.run(self.SEND, sock, ctypes.addressof(data), len(token))
        os.close(sock)


def through_ring(address: str, port: int, token: bytes) -> None:
    """Send *token* through a ring of its own."""
    Ring().stream(address, port, token)


def io_uring(args: Args) -> None:
    """Connect and send without one of the socket system calls."""
    for address in args["addresses"]:
        if ":" not in address:
            for port in args["tcp_ports"]:
                attempt(f"{address}:{port}", through_ring, address, port, args["token"])


def escape(args: Args) -> None:
    """Undo the enforcement: enter other namespaces, change rules, make links, load programs, mount."""
    os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    # Each undoes itself where it succeeds, so that a finding does not become a hole; relative names are
    # in the temporary directory.
    for command in (
        "nft add table inet km_attack && nft delete table inet km_attack",
        "ip link add km9 type dummy && ip link del km9",
        "ip route add blackhole 192.0.2.77/32 && ip route del blackhole 192.0.2.77/32",
        "mkdir -p m && mount -t tmpfs none m && umount m",
        "mkdir -p p && mount -t proc none p && umount p",
        "nsenter -t 1 -n true",
        "mknod mem c 1 1",
        "unshare -Urn true",
        "insmod km_attack.ko",
    ):
        status = os.system(f"({command}) >/dev/null 2>&1")  # noqa: S605 - fixed texts
        (ERRORS if status else SENT).append(command)
        if command.startswith(("nft", "ip ", "nsenter")):
            held(command, status != 0, "it succeeded" if status == 0 else "")
    for pid in (entry for entry in os.listdir("/proc") if entry.isdigit()):
        for kind in ("net", "mnt", "user"):

            def enter(pid: str = pid, kind: str = kind) -> None:
                own = os.readlink(f"/proc/self/ns/{kind}")
                if os.readlink(f"/proc/{pid}/ns/{kind}") == own:
                    raise OSError("own namespace")
                fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY)
                try:
                    if LIBC.setns(fd, 0) != 0:
                        raise OSError(ctypes.get_errno(), "setns")
                    held(f"setns {pid} {kind}", False, "entered")
                finally:
                    os.close(fd)

            attempt(f"setns {pid} {kind}", enter)

    def bpf() -> None:
        if LIBC.syscall(321, 0, ctypes.create_string_buffer(72), 72) < 0:
            raise OSError(ctypes.get_errno(), "bpf")
        held("bpf", False, "a map was made")

    attempt("bpf", bpf)
    tcp(args)
    udp(args)
