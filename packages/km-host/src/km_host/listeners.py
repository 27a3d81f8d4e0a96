"""
The two sockets that are a sandbox's only way out, made inside its network namespace.

The namespace holds loopback only.  Every address is routed to loopback, nftables' tproxy steers every
TCP connection to one listener with its destination untouched, and every UDP datagram for port 53 reaches
one socket that is bound to port 53 itself.  A socket belongs to the namespace it was made in, so both are
handed to the gate outside, which answers there and dials out from its own namespace.

`make_listeners` runs once, before the sandbox's first command, with ``CAP_NET_ADMIN`` over a fresh
namespace.  It also runs as ``python -m km_host.listeners FD|PATH`` in a helper container: standard
library, ``nft`` and ``ip`` only.
"""

from __future__ import annotations

import array
import errno
import os
import shutil
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from km_host.inside import frames

if TYPE_CHECKING:
    from collections.abc import Callable

TCP_PORT = 3128
DNS_PORT = 53
BACKLOG = 4096
SO_NETNS_COOKIE = 71
IP_TRANSPARENT = 19
IPV6_TRANSPARENT = 75
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
"""Where `nft` and `ip` are looked for: an operator's PATH does not decide what runs with NET_ADMIN."""

_IPV6_SWITCH = "/proc/sys/net/ipv6/conf/lo/disable_ipv6"
_OUTPUT = """
 chain out {{
   type filter hook output priority 10; policy drop;
   oif != lo drop
   meta l4proto tcp accept
   udp dport {dns} accept
   udp sport {dns} accept
   ip daddr 127.0.0.0/8 accept
   ip6 daddr ::1 accept
   meta l4proto 58 accept
 }}
"""
# 58 is ICMPv6: nft resolves names by a protocols file that a container may not have.  A stream to port 53
# of loopback is DNS over TCP and goes to the gate; other connections to loopback are the sandbox's own.
_TPROXY = """table inet km {{
 chain pre {{
   type filter hook prerouting priority mangle;
   ip daddr 127.0.0.0/8 tcp dport {dns} tproxy ip to :{tcp} accept
   ip6 daddr ::1 tcp dport {dns} tproxy ip6 to :{tcp} accept
   ip daddr 127.0.0.0/8 return
   ip6 daddr ::1 return
   meta l4proto tcp tproxy to :{tcp} accept
 }}"""
_REDIRECT = """table inet km {{
 chain nat {{
   type nat hook output priority -100;
   tcp dport {dns} redirect to :{tcp}
   ip daddr 127.0.0.0/8 return
   ip6 daddr ::1 return
   meta l4proto tcp redirect to :{tcp}
 }}"""


class Listeners(NamedTuple):
    """The sandbox's sockets and how connections are steered to them (``tproxy`` or ``redirect``)."""

    how: str
    tcp: socket.socket
    dns: socket.socket

    def close(self) -> None:
        """Close both sockets."""
        self.tcp.close()
        self.dns.close()


class ListenerError(Exception):
    """The listeners cannot be made; the message says what to do."""


def make_listeners(allow_redirect: bool = True) -> Listeners:
    """
    Make the rules and the sockets in this process's network namespace, and prove that they work.

    Args:
        allow_redirect: fall back to `redirect` where the kernel lacks tproxy.

    Raises:
        ListenerError: something is missing, or a connection was not steered as it must be.
    """
    _require_empty_namespace()
    _routes()
    how = _rules(allow_redirect)
    tcp = _socket(socket.SOCK_STREAM, TCP_PORT, transparent=how == "tproxy")
    try:
        # Transparent whatever steers TCP: an answer leaves from the address that was asked.
        dns = _socket(socket.SOCK_DGRAM, DNS_PORT, transparent=True)
    except BaseException:
        tcp.close()
        raise
    listeners = Listeners(how, tcp, dns)
    try:
        _prove(listeners)
    except BaseException:
        listeners.close()
        raise
    return listeners


def send_listeners(channel: socket.socket, listeners: Listeners) -> None:
    """Hand the sockets over: one frame ``{"how"}`` with the descriptors ``[tcp, dns]``."""
    frames.send(channel, {"how": listeners.how}, (listeners.tcp.fileno(), listeners.dns.fileno()))


def receive_listeners(channel: socket.socket, expect_uid: int) -> Listeners:
    """
    Take a hand-over from *channel* (blocking) and check everything about it.

    Args:
        channel: a connected Unix socket that nobody else can reach.
        expect_uid: the only uid that may be at its other end.

    Raises:
        ProvisionError: the peer, the number or the kind of the sockets, or their namespace is not
            what it must be; nothing stays open.
    """
    credentials = array.array("i", channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if credentials[1] != expect_uid:
        raise _refused(f"the peer has uid {credentials[1]}, not {expect_uid}")
    try:
        received = frames.receive(channel, max_descriptors=2, limit=65536)
    except (frames.FrameError, OSError) as error:
        raise _refused(str(error)) from error
    if received is None:
        raise _refused("the helper ended without handing anything over")
    return check_listeners(*received)


def check_listeners(message: dict[str, Any], descriptors: list[int]) -> Listeners:
    """
    Check a hand-over's message and descriptors; closes the descriptors unless all is well.

    Raises:
        ProvisionError: as `receive_listeners`.
    """
    try:
        how = message.get("how")
        if how not in {"tproxy", "redirect"} or len(descriptors) != 2:
            why = str(message.get("error") or f"{len(descriptors)} sockets, how={how!r}")
            raise _refused(why, str(message.get("hint") or ""))
        tcp, dns = (socket.socket(fileno=os.dup(descriptor)) for descriptor in descriptors)
    finally:
        frames.close_all(descriptors)
    listeners = Listeners(str(how), tcp, dns)
    try:
        _check(listeners)
    except BaseException:
        listeners.close()
        raise
    return listeners


def netns_cookie(sock: socket.socket) -> bytes:
    """Return the number of the network namespace a socket belongs to (``SO_NETNS_COOKIE``, Linux 5.14)."""
    return sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)


def _check(listeners: Listeners) -> None:
    tcp, dns = listeners.tcp, listeners.dns
    for sock, kind, port in ((tcp, socket.SOCK_STREAM, TCP_PORT), (dns, socket.SOCK_DGRAM, DNS_PORT)):
        if sock.family != socket.AF_INET6 or sock.type != kind:
            raise _refused(f"a socket is of family {sock.family} and type {sock.type}")
        if sock.getsockname()[:2] != ("::", port):
            raise _refused(f"a socket is bound to {sock.getsockname()[:2]}")
        if sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
            raise _refused("a socket serves IPv6 only")
    if not tcp.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise _refused("the TCP socket does not listen")
    if not dns.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO):
        raise _refused("the DNS socket does not tell which address was asked")
    with socket.socket(socket.AF_UNIX) as ours:
        own = netns_cookie(ours)
    if netns_cookie(tcp) != netns_cookie(dns):
        raise _refused("the sockets come from two network namespaces")
    if netns_cookie(tcp) == own:
        raise _refused("the sockets come from the host's own network namespace")


def _refused(why: str, hint: str = "") -> Exception:
    from km_core.errors import ProvisionError

    return ProvisionError("the sandbox's listeners are not as they must be", why=why, hint=hint)


def _require_empty_namespace() -> None:
    devices = [name for _, name in socket.if_nameindex()]
    if devices != ["lo"]:
        raise ListenerError(f"this network namespace has devices besides loopback: {', '.join(devices)}")


def _tool(name: str, package: str) -> str:
    path = shutil.which(name, path=SYSTEM_PATH)
    if path is None:
        raise ListenerError(f"the program {name} is missing: install the package {package}")
    return path


def _run(argv: list[str], text: str) -> str:
    """Run a program with *text* as input; returns its complaint, empty when it succeeded."""
    done = subprocess.run(
        argv, input=text, text=True, capture_output=True, check=False, timeout=20, env={"PATH": SYSTEM_PATH}
    )
    return "" if done.returncode == 0 else (done.stderr.strip() or f"exit code {done.returncode}")


def _routes() -> None:
    ip = _tool("ip", "iproute2")
    _switch_ipv6(off=False)
    failed = _run([ip, "-batch", "-"], "link set lo up\nroute add local default dev lo\n")
    if failed:
        raise ListenerError(f"loopback cannot be set up: {failed}")
    failed = _run([ip, "-6", "route", "add", "local", "default", "dev", "lo"], "")
    if failed and not _switch_ipv6(off=True):
        raise ListenerError(f"IPv6 cannot be routed to loopback: {failed}")


def _ipv6_is_off() -> bool:
    try:
        with open(_IPV6_SWITCH, encoding="ascii") as switch:  # noqa: PTH123 - one read, no path arithmetic
            return switch.read().strip() == "1"
    except OSError:
        return False


def _switch_ipv6(*, off: bool) -> bool:
    """Set the switch of loopback where it can be written; says whether it stands as asked."""
    if _ipv6_is_off() == off:
        return True
    try:
        with open(_IPV6_SWITCH, "w", encoding="ascii") as switch:  # noqa: PTH123 - as above
            switch.write("1" if off else "0")
    except OSError:
        return False
    return True


def _rules(allow_redirect: bool) -> str:
    nft = _tool("nft", "nftables")
    ports = {"tcp": TCP_PORT, "dns": DNS_PORT}
    output = _OUTPUT.format(**ports)
    failed = _run([nft, "-f", "-"], _TPROXY.format(**ports) + output + "}\n")
    if not failed:
        return "tproxy"
    if allow_redirect:
        why = _run([nft, "-f", "-"], _REDIRECT.format(**ports) + output + "}\n")
        if not why:
            return "redirect"
        failed += "; " + why
    raise ListenerError(f"nftables refuses the rules, is the module nft_tproxy there? {failed}")


def _socket(kind: socket.SocketKind, port: int, *, transparent: bool) -> socket.socket:
    try:
        sock = socket.socket(socket.AF_INET6, kind)
    except OSError as error:
        raise ListenerError(
            f"the kernel has no IPv6, which the dual-stack listeners need: {error}"
        ) from error
    try:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if transparent:
            sock.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
        if kind == socket.SOCK_DGRAM:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        sock.bind(("::", port))
        if kind == socket.SOCK_STREAM:
            sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ListenerError(f"port {port} cannot be bound inside: {error}") from error
    return sock


def _prove(listeners: Listeners) -> None:
    """Connect to an outside address and see it arrive; send a datagram elsewhere and see it refused."""
    # Addresses of RFC 5737 and RFC 3849: nobody's, so an answer can only come from our own listener.
    _prove_stream(listeners, socket.AF_INET, ("192.0.2.1", 9), "::ffff:192.0.2.1")
    if not _ipv6_is_off():
        _prove_stream(listeners, socket.AF_INET6, ("2001:db8::1", 9), "2001:db8::1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.sendto(b"", ("192.0.2.1", 9))
        except OSError as error:
            if error.errno != errno.EPERM:
                raise ListenerError(f"a datagram was not refused by the rules but by {error}") from error
            return
    raise ListenerError("a datagram to an outside address was not refused")


def _prove_stream(listeners: Listeners, family: int, address: tuple[str, int], seen: str) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        listeners.tcp.settimeout(5)
        try:
            probe.connect(address)
            accepted, _ = listeners.tcp.accept()
        except OSError as error:
            raise ListenerError(f"connections are not steered to the listener: {error}") from error
        finally:
            listeners.tcp.settimeout(None)
        with accepted:
            name = accepted.getsockname()[:2]
            if listeners.how == "tproxy" and name != (seen, address[1]):
                raise ListenerError(f"a connection to {address} arrived as one to {name}")


def main(argv: list[str] | None = None, *, make: Callable[[], Listeners] = make_listeners) -> int:
    """Make the listeners and hand them over to a descriptor or to the socket at a path."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m km_host.listeners FD|PATH\n")
        return 2
    if arguments[0].isdigit():
        channel = socket.socket(fileno=int(arguments[0]))
    else:
        channel = socket.socket(socket.AF_UNIX)
        channel.connect(arguments[0])
    with channel:
        try:
            listeners = make()
        except (ListenerError, OSError, subprocess.SubprocessError) as error:
            frames.send(channel, {"error": str(error)})
            return 1
        send_listeners(channel, listeners)
        listeners.close()
        # The other side checks first: its answer is the sign that the sockets are held elsewhere.
        frames.receive(channel)
    return 0


if __name__ == "__main__":
    sys.exit(main())
