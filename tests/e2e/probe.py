"""
Attempts to reach the canary, run both inside a sandbox and (as control) outside it.

Standard library only; ``python3 probe.py NAME JSON`` prints one JSON line ``{"sent": N, "errors": [...]}``.
*sent* counts attempts that did not raise, which proves nothing: the canary's own record decides.
JSON: ``{"token": str, "addresses": [..], "ports": {...}, ...}``.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import json
import mmap
import os
import socket
import struct
import sys

TIMEOUT_S = 1.5
LIBC = ctypes.CDLL(None, use_errno=True)
SENT: list[str] = []
ERRORS: list[str] = []


def attempt(label, function):
    """Run one attempt; any error is written down, never raised."""
    try:
        function()
        SENT.append(label)
    except Exception as error:  # every way to fail is an outcome here
        ERRORS.append(f"{label}: {type(error).__name__}: {error}")


def stream(family, address, port, token, protocol=0):
    with socket.socket(family, socket.SOCK_STREAM, protocol) as sock:
        sock.settimeout(TIMEOUT_S)
        sock.connect((address, port))
        sock.sendall(token)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(100)


def datagram(family, address, port, data, protocol=0):
    with socket.socket(family, socket.SOCK_DGRAM, protocol) as sock:
        sock.sendto(data, (address, port))


def family_of(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def tcp(args):
    for address in args["addresses"]:
        for port in args["tcp_ports"]:
            attempt(f"{address}:{port}", lambda a=address, p=port: stream(family_of(a), a, p, args["token"]))


def v4_mapped(args):
    for address in args["addresses"]:
        if ":" not in address:
            mapped = "::ffff:" + address
            for port in args["tcp_ports"]:
                attempt(mapped, lambda m=mapped, p=port: stream(socket.AF_INET6, m, p, args["token"]))
            for port in args["udp_ports"]:
                attempt(mapped, lambda m=mapped, p=port: datagram(socket.AF_INET6, m, p, args["token"]))


def udp(args):
    for address in args["addresses"]:
        for port in args["udp_ports"]:
            attempt(
                f"{address}:{port}", lambda a=address, p=port: datagram(family_of(a), a, p, args["token"])
            )


def udplite(args):
    for address in args["addresses"]:
        for port in args["udp_ports"]:
            attempt(
                f"{address}:{port}",
                lambda a=address, p=port: datagram(family_of(a), a, p, args["token"], 136),
            )


def quic(args):
    """A QUIC version 1 Initial (RFC 9000 section 17.2.2), padded to 1200 bytes, token as connection id."""
    cid = args["token"][:20]
    packet = b"\xc0" + struct.pack("!I", 1) + bytes([len(cid)]) + cid + b"\0\0" + args["token"]
    for address in args["addresses"]:
        attempt(address, lambda a=address: datagram(family_of(a), a, 443, packet.ljust(1200, b"\0")))


def mptcp(args):
    for address in args["addresses"]:
        for port in args["tcp_ports"]:
            attempt(
                f"{address}:{port}", lambda a=address, p=port: stream(family_of(a), a, p, args["token"], 262)
            )


def fast_open(args):
    """Data in the SYN (RFC 7413)."""

    def one(address, port):
        with socket.socket(family_of(address), socket.SOCK_STREAM) as sock:
            # A Python timeout makes the socket non-blocking, which sends no data with the SYN.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 2, 0))
            sock.sendto(args["token"], 0x20000000, (address, port))

    for address in args["addresses"]:
        for port in args["tcp_ports"]:
            attempt(f"{address}:{port}", lambda a=address, p=port: one(a, p))


def raw_packets(args):
    """ICMP echo through a raw socket, then a frame on every link."""

    def icmp(address):
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
            body = struct.pack("!BBHHH", 8, 0, 0, 1, 1) + args["token"]
            total = sum(
                struct.unpack(
                    f"!{len(body.ljust(-(-len(body) // 2) * 2, b'0')) // 2}H",
                    body.ljust(-(-len(body) // 2) * 2, b"\0"),
                )
            )
            while total >> 16:
                total = (total & 0xFFFF) + (total >> 16)
            sock.sendto(body[:2] + struct.pack("!H", ~total & 0xFFFF) + body[4:], (address, 0))

    def raw_udp(address, port):
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as sock:
            sock.sendto(
                struct.pack("!HHHH", 4444, port, 8 + len(args["token"]), 0) + args["token"], (address, 0)
            )

    for address in args["addresses"]:
        if ":" not in address:
            attempt(f"icmp {address}", lambda a=address: icmp(a))
            for port in args["udp_ports"]:
                attempt(f"raw udp {address}", lambda a=address, p=port: raw_udp(a, p))
    for _, name in socket.if_nameindex():

        def frame(name=name):
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
                sock.bind((name, 0))
                sock.send(b"\xff" * 12 + b"\x88\xb5" + args["token"])

        attempt(f"frame on {name}", frame)


def vsock(args):
    for cid in (1, 2, socket.VMADDR_CID_ANY, args.get("own_cid", 3)):

        def one(cid=cid):
            with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
                sock.settimeout(TIMEOUT_S)
                sock.connect((cid, args["vsock_port"]))
                sock.sendall(args["token"])

        attempt(f"cid {cid}", one)


def vsock_opens(args):
    def one():
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()

    attempt("AF_VSOCK", one)


def unix(args):
    """Named and abstract sockets of the host, and every socket file that can be found."""

    def one(path):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(TIMEOUT_S)
            sock.connect(path)
            sock.sendall(args["token"])

    places = list(args["paths"]) + ["\0" + name for name in args["abstract"]]
    if args.get("search"):
        for root in (
            "/run",
            "/var/run",
            "/tmp",
            "/workspace",
            "/home",
            "/dev",
            "/proc/1/root/run",
            "/proc/1/root/tmp",
        ):
            for found in glob.glob(root + "/**", recursive=True)[:5000]:
                if os.path.exists(found) and os.stat(found).st_mode & 0o170000 == 0o140000:
                    places.append(found)
    for place in places:
        attempt(repr(place), lambda p=place: one(p))


def keyring(args):
    """Find the host's key in every keyring, and leave one there."""
    add, request, control = 248, 249, 250  # system call numbers, x86-64
    rings = (-1, -2, -3, -4, -5, -7)  # thread, process, session, user, user session, requestor

    def search(ring):
        key = LIBC.syscall(control, 10, ring, b"user", args["key"].encode(), 0)
        if key < 0:
            raise OSError(ctypes.get_errno(), "search")
        data = ctypes.create_string_buffer(100)
        size = LIBC.syscall(control, 11, key, data, 100, 0)
        print(json.dumps({"read": data.raw[: max(size, 0)].decode("latin-1")}))

    def leave(ring):
        name = args["token"]
        if LIBC.syscall(add, b"user", name, name, len(name), ring) < 0:
            raise OSError(ctypes.get_errno(), "add_key")

    def ask():
        if LIBC.syscall(request, b"user", args["key"].encode(), None, 0) < 0:
            raise OSError(ctypes.get_errno(), "request_key")

    for ring in rings:
        attempt(f"search {ring}", lambda r=ring: search(r))
    for ring in (-3, -4, -5):
        attempt(f"add {ring}", lambda r=ring: leave(r))
    attempt("request", ask)


def query(name):
    labels = b"".join(bytes([len(label)]) + label for label in name.encode().split(b".") if label)
    return b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + labels + b"\0\0\x01\0\x01"


def dns_udp(args):
    for address in args["addresses"]:
        attempt(address, lambda a=address: datagram(family_of(a), a, 53, query(args["name"])))


def dns_tcp(args):
    packet = query(args["name"])
    for address in args["addresses"]:
        attempt(
            address, lambda a=address: stream(family_of(a), a, 53, struct.pack("!H", len(packet)) + packet)
        )


def ask_resolver(args):
    """Ask the configured resolver for a name, over UDP and TCP, for several types."""

    def one(kind, tcp_too):
        packet = query(args["name"])[:-4] + struct.pack("!HH", kind, 1)
        if tcp_too:
            with socket.create_connection(("127.0.0.1", 53), TIMEOUT_S) as sock:
                sock.sendall(struct.pack("!H", len(packet)) + packet)
                reply = sock.recv(4096)[2:]
        else:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(TIMEOUT_S)
                sock.sendto(packet, ("127.0.0.1", 53))
                reply = sock.recv(4096)
        print(json.dumps({"type": kind, "tcp": tcp_too, "rcode": reply[3] & 15}))

    for kind in (1, 28, 16, 15, 65, 255, 5, 12):
        for over_tcp in (False, True):
            attempt(f"type {kind} tcp {over_tcp}", lambda k=kind, t=over_tcp: one(k, t))


def http(args):
    """Plain HTTP to each URL, by hand, so that no proxy variable counts."""
    for address, port, path, host in args["urls"]:

        def one(address=address, port=port, path=path, host=host):
            with socket.create_connection((address, port), TIMEOUT_S) as sock:
                sock.settimeout(TIMEOUT_S)
                sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                print(json.dumps({"answer": sock.recv(300).decode("latin-1")}))

        attempt(f"{address}:{port}{path}", one)


def explicit_proxy(args):
    """Ask the gate, as a proxy, for what it must not give."""
    for address in args["addresses"]:
        target = f"[{address}]" if ":" in address else address
        for port in args["tcp_ports"]:

            def connect(target=target, port=port):
                with socket.create_connection(("127.0.0.1", 3128), TIMEOUT_S) as sock:
                    sock.settimeout(TIMEOUT_S)
                    sock.sendall(
                        f"CONNECT {target}:{port} HTTP/1.1\r\nHost: {target}:{port}\r\n\r\n".encode()
                    )
                    print(json.dumps({"answer": sock.recv(200).decode("latin-1")}))
                    sock.sendall(args["token"])
                    sock.recv(100)

            def absolute(target=target, port=port):
                with socket.create_connection(("127.0.0.1", 3128), TIMEOUT_S) as sock:
                    sock.settimeout(TIMEOUT_S)
                    token = args["token"].decode()
                    sock.sendall(
                        f"GET http://{target}:{port}/{token} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode()
                    )
                    sock.recv(200)

            attempt(f"CONNECT {target}:{port}", connect)
            attempt(f"GET {target}:{port}", absolute)


class Ring:
    """Just enough of io_uring (io_uring_setup(2), io_uring_enter(2)) to make a socket and use it."""

    SETUP, ENTER = 425, 426
    SOCKET, CONNECT, SEND = 45, 16, 26

    def __init__(self):
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

    def run(self, opcode, fd, addr=0, length=0, off=0):
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
        return result

    def stream(self, address, port, token):
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


def io_uring(args):
    for address in args["addresses"]:
        if ":" not in address:
            for port in args["tcp_ports"]:
                attempt(f"{address}:{port}", lambda a=address, p=port: Ring().stream(a, p, args["token"]))


def escape(args):
    """Undo the enforcement: enter other namespaces, change rules, make links, load programs, mount."""
    os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    for command in (
        "nft flush ruleset",
        "ip link add km9 type dummy && ip addr add 10.99.9.1/24 dev km9 && ip link set km9 up",
        "ip route add default dev lo",
        "ip link add v0 type veth peer name v1",
        "mount -t tmpfs none /mnt",
        "mount -t proc none /tmp",
        "sysctl -w net.ipv4.ip_forward=1",
        "nsenter -t 1 -n true",
        "mknod /tmp/mem c 1 1",
        "unshare -Urn true",
    ):
        status = os.system(f"({command}) >/dev/null 2>&1")
        (ERRORS if status else SENT).append(command)
    for pid in (entry for entry in os.listdir("/proc") if entry.isdigit()):
        for kind in ("net", "mnt", "user"):

            def enter(pid=pid, kind=kind):
                own = os.readlink(f"/proc/self/ns/{kind}")
                if os.readlink(f"/proc/{pid}/ns/{kind}") == own:
                    raise OSError("own namespace")
                fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY)
                if LIBC.setns(fd, 0) != 0:
                    raise OSError(ctypes.get_errno(), "setns")

            attempt(f"setns {pid} {kind}", enter)

    def bpf():
        if LIBC.syscall(321, 0, ctypes.create_string_buffer(72), 72) < 0:
            raise OSError(ctypes.get_errno(), "bpf")

    attempt("bpf", bpf)
    tcp(args)
    udp(args)


def main():
    name, args = sys.argv[1], json.loads(sys.argv[2])
    args["token"] = args["token"].encode()
    globals()[name](args)
    print(json.dumps({"sent": len(SENT), "sent_to": SENT[:20], "errors": ERRORS[:20]}))


if __name__ == "__main__":
    main()
