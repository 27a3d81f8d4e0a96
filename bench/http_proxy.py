"""
The TCP half of the gate beside the proxies installed here, on loopback, in one interleaved run.

    python bench/http_proxy.py [--side km] [--side squid] … [--mode plain] … [--runs 3] [--seconds 2]

Sides: ``km`` with 500 suffixes, 200 hosts, git rules, AWS and a credential; ``km-open`` without rules;
``km-before`` the same without rules from the checkout that ``--base`` names; ``squid``, ``tinyproxy``, ``proxy.py``.
Modes: ``plain`` (1 KiB GET, 20 kept clients), ``plain_bulk`` (one 100 MiB GET), ``tunnel_new`` (CONNECT,
one GET, close, serially), ``tunnel_bulk`` (100 MiB through CONNECT), ``mitm``, ``mitm_new`` and
``mitm_bulk`` (the same over opened TLS), ``idle`` (memory with 1,000 open tunnels), ``sse`` (delay of a
streamed event through opened TLS).  The server runs on the first core, load and origin on the last.
Prints one JSON document: medians per side, and each side's ratio to squid.  Wants nginx, hey, curl,
openssl and taskset; the mitm modes need root for port 443 of a loopback alias.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

MIB = 100
ALIAS = "127.77.0.1"  # port 443 of this address: load generators leave the default port out of the name
MODES = ("plain", "plain_bulk", "tunnel_new", "tunnel_bulk", "mitm", "mitm_new", "mitm_bulk", "idle", "sse")
OPENED = frozenset({"mitm", "mitm_new", "mitm_bulk", "sse"})
PEERS = {"squid": "squid", "tinyproxy": "tinyproxy", "proxy.py": "proxy"}


def tool(name: str) -> str | None:
    path = os.pathsep.join(
        [os.environ.get("PATH", ""), "/usr/sbin", "/sbin", str(Path(sys.executable).parent)]
    )
    return shutil.which(name, path=path)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cores() -> tuple[str, str]:
    known = sorted(os.sched_getaffinity(0))
    return str(known[0]), str(known[-1])


def family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = [pid]
    with contextlib.suppress(OSError):
        for child in children.read_text().split():
            found += family(int(child))
    return found


def cpu_seconds(pid: int) -> float:
    """Nanoseconds of living threads, or ticks that keep the ended ones too: the larger is nearer."""
    total = 0.0
    for member in family(pid):
        with contextlib.suppress(OSError, ValueError, IndexError):
            tasks = Path(f"/proc/{member}/task").iterdir()
            fine = sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            total += max(fine, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
    return total


def rss_mib(pid: int) -> float:
    pages = 0
    for member in family(pid):
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{member}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextlib.contextmanager
def server(argv: list[str], port: int, core: str, log: Path):
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["taskset", "-c", core, *argv], stdout=out, stderr=out, start_new_session=True
        )
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                break
            if process.poll() is not None:
                raise RuntimeError(f"{argv[0]} ended: {log.read_text(errors='replace')[-400:]}")
            time.sleep(0.05)
        yield process.pid
    finally:
        members = family(process.pid)
        for number in (signal.SIGTERM, signal.SIGKILL):
            for member in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)


def make_pki(folder: Path) -> None:
    def run(*argv: str) -> None:
        subprocess.run(argv, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    run(
        "openssl", "req", "-x509", *curve, "-days", "7", "-subj", "/CN=bench CA", "-keyout", f"{folder}/ca.key",
        "-out", f"{folder}/ca.pem", "-addext", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature",
    )  # fmt: skip
    run(
        "openssl",
        "req",
        *curve,
        "-subj",
        "/CN=localhost",
        "-keyout",
        f"{folder}/o.key",
        "-out",
        f"{folder}/o.csr",
    )
    (folder / "o.ext").write_text(f"subjectAltName=DNS:localhost,IP:127.0.0.1,IP:{ALIAS}\n")
    run(
        "openssl", "x509", "-req", "-in", f"{folder}/o.csr", "-CA", f"{folder}/ca.pem", "-CAkey", f"{folder}/ca.key",
        "-CAcreateserial", "-days", "7", "-extfile", f"{folder}/o.ext", "-out", f"{folder}/o.pem",
    )  # fmt: skip


def make_origin(folder: Path, http: int, https: int) -> list[str]:
    (folder / "www").mkdir()
    (folder / "www" / "1k").write_bytes(b"x" * 1024)
    with (folder / "www" / "100m").open("wb") as big:
        big.write(os.urandom(1 << 20) * MIB)
    root = os.geteuid() == 0
    temporary = "".join(
        f" {kind}_temp_path {folder}/t_{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    alias = f" listen {ALIAS}:443 ssl;" if root else ""
    (folder / "nginx.conf").write_text(
        f"{'user root; ' if root else ''}daemon off; worker_processes 1; pid {folder}/n.pid; error_log {folder}/n.err;\n"
        f"events {{ worker_connections 4096; }}\nhttp {{ access_log off; sendfile on; keepalive_requests 1000000;\n"
        f" root {folder}/www;{temporary} server {{ listen 127.0.0.1:{http}; listen 127.0.0.1:{https} ssl;{alias}\n"
        f" ssl_certificate {folder}/o.pem; ssl_certificate_key {folder}/o.key; }} }}\n"
    )
    return [tool("nginx") or "nginx", "-c", f"{folder}/nginx.conf", "-e", f"{folder}/n.err"]


def command(side: str, folder: Path, port: int, *, opened: bool, base: str = "") -> list[str] | None:
    """Return how a side is started, or None when it cannot do this."""
    if side.startswith("km"):
        argv = [sys.executable, "-m", "km_net_proxy.http.bench_server", "--listen", f"127.0.0.1:{port}"]
        if side == "km-before":
            sources = ":".join(str(found) for found in Path(base).glob("packages/*/src"))
            argv = ["env", f"PYTHONPATH={sources}", "PYTHONDONTWRITEBYTECODE=1", *argv]
        argv += ["--full-policy"] if side == "km" else []
        ca = f"{folder}/ca.pem"
        return (
            [*argv, "--ca-cert", ca, "--ca-key", f"{folder}/ca.key", "--upstream-ca", ca] if opened else argv
        )
    if side == "squid":
        return squid(folder, port, opened=opened)
    if opened:
        return None
    if side == "tinyproxy":
        (folder / "tiny.conf").write_text(
            f"Port {port}\nListen 127.0.0.1\nMaxClients 1200\nTimeout 60\nLogLevel Critical\nAllow 127.0.0.1\n"
        )
        return [tool("tinyproxy") or "", "-d", "-c", f"{folder}/tiny.conf"]
    workers = ["--num-workers", "1", "--num-acceptors", "1", "--threadless", "--log-level", "e"]
    return [tool("proxy") or "", "--hostname", "127.0.0.1", "--port", str(port), *workers]


def squid(folder: Path, port: int, *, opened: bool) -> list[str] | None:
    conf = (
        "http_access allow all\ncache deny all\naccess_log none\npid_filename none\nnetdb_filename none\n"
        f"cache_log {folder}/squid.log\nshutdown_lifetime 0 seconds\ncoredump_dir {folder}\nmax_filedescriptors 8192\n"
    )
    if opened:
        helper = next((found for found in Path("/usr").glob("lib*/squid/security_file_certgen")), None)
        if helper is None:
            return None
        store = folder / f"store{port}"
        subprocess.run([helper, "-c", "-s", store, "-M", "16MB"], check=True, capture_output=True)
        for path in (store, *store.rglob("*"), folder / "ca.key"):
            path.chmod(0o777 if path.is_dir() else 0o666)
            if os.geteuid() == 0:
                shutil.chown(path, "proxy")
        conf += (
            f"http_port 127.0.0.1:{port} ssl-bump tls-cert={folder}/ca.pem tls-key={folder}/ca.key"
            f" generate-host-certificates=on\nsslcrtd_program {helper} -s {store} -M 16MB\nsslcrtd_children 2\n"
            f"tls_outgoing_options cafile={folder}/ca.pem\nacl s1 at_step SslBump1\nssl_bump peek s1\nssl_bump bump all\n"
            "sslproxy_cert_error allow all\n"
        )
    else:
        conf += f"http_port 127.0.0.1:{port}\n"
    (folder / f"squid{port}.conf").write_text(conf)
    return [tool("squid") or "", "-N", "-n", f"bench{port}", "-f", f"{folder}/squid{port}.conf"]


def hey(url: str, proxy: int, core: str, seconds: float, *, fresh: bool = False) -> dict[str, float]:
    argv = ["taskset", "-c", core, tool("hey") or "hey", "-z", f"{seconds:g}s", "-c", "20", "-t", "5"]
    argv += ["-x", f"http://127.0.0.1:{proxy}", *(["-disable-keepalive"] if fresh else []), url]
    out = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 30, check=False).stdout
    counts = {code: int(count) for code, count in re.findall(r"\[(\d{3})\]\s+(\d+) responses", out)}
    good = counts.get("200", 0)
    row = {"ops": float(good), "errors": float(sum(counts.values()) - good)}
    if found := re.search(r"Total:\s+([\d.]+)", out):
        row["per_s"] = good / float(found[1])
    for quantile in (50, 99):
        if found := re.search(rf"{quantile}%+ in ([\d.]+) secs", out):
            row[f"p{quantile}_ms"] = float(found[1]) * 1e3
    return row


def bulk(url: str, proxy: int, core: str, *, tunnel: bool) -> dict[str, float]:
    argv = [
        "taskset",
        "-c",
        core,
        "curl",
        "-sk",
        "-o",
        "/dev/null",
        "-m",
        "20",
        "-w",
        "%{speed_download} %{size_download}",
    ]
    argv += ["-x", f"http://127.0.0.1:{proxy}", *(["-p"] if tunnel else []), url]
    out = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.split()
    if float(out[1]) < MIB << 20:
        raise RuntimeError(f"short body: {out}")
    return {"mib_per_s": float(out[0]) / 2**20, "ops": MIB / 1024}


def tunnel(proxy: int, origin: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", proxy), 5)
    place = f"127.0.0.1:{origin}"
    sock.sendall(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode())
    head = b""
    while b"\r\n\r\n" not in head:
        piece = sock.recv(4096)
        if not piece:
            raise RuntimeError("no tunnel")
        head += piece
    return sock


def tunnels(proxy: int, origin: int, count: int = 200) -> dict[str, float]:
    times = []
    for _ in range(count):
        started = time.perf_counter()
        with tunnel(proxy, origin) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.sendall(b"GET /1k HTTP/1.1\r\nHost: x\r\n\r\n")
            got = 0
            while got < 1024:
                got += len(sock.recv(65536))
        times.append((time.perf_counter() - started) * 1e3)
    times.sort()
    return {"ops": float(count), "p50_ms": times[count // 2], "p99_ms": times[int(count * 0.99)]}


def idle(proxy: int, origin: int, pid: int, count: int = 1000) -> dict[str, float]:
    held = []
    try:
        held += [tunnel(proxy, origin) for _ in range(count)]
        time.sleep(0.5)
        return {"ops": float(count), "rss_with_tunnels_mib": rss_mib(pid)}
    finally:
        for sock in held:
            sock.close()


def sse(proxy: int, folder: Path, events: int = 200) -> dict[str, float]:
    """Delay from an event's write at the origin to its read at the client, one process, one clock."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "o.pem", folder / "o.key")
    delays = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def origin() -> None:
            with context.wrap_socket(listener.accept()[0], server_side=True) as sock:
                sock.recv(65536)
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
                for _ in range(events):
                    time.sleep(0.005)
                    sock.sendall(f"data: {time.perf_counter()!r}\n\n".encode())

        thread = threading.Thread(target=origin)
        thread.start()
        trust = ssl.create_default_context(cafile=folder / "ca.pem")
        with trust.wrap_socket(tunnel(proxy, port), server_hostname="127.0.0.1") as sock:
            sock.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            while len(delays) < events:
                data = sock.recv(65536)
                now = time.perf_counter()
                if not data:
                    break
                delays += [(now - float(stamp)) * 1e3 for stamp in re.findall(rb"data: ([\d.]+)\n", data)]
        thread.join()
    delays.sort()
    return {
        "ops": float(len(delays)),
        "p50_ms": delays[len(delays) // 2],
        "p99_ms": delays[int(len(delays) * 0.99)],
    }


def measure(
    mode: str, pid: int, port: int, http: int, *, folder: Path, core: str, seconds: float
) -> dict[str, float]:
    before = cpu_seconds(pid)
    match mode:
        case "plain":
            row = hey(f"http://127.0.0.1:{http}/1k", port, core, seconds)
        case "mitm" | "mitm_new":
            row = hey(f"https://{ALIAS}/1k", port, core, seconds, fresh=mode == "mitm_new")
        case "plain_bulk" | "tunnel_bulk":
            row = bulk(f"http://127.0.0.1:{http}/100m", port, core, tunnel=mode == "tunnel_bulk")
        case "mitm_bulk":
            row = bulk(f"https://{ALIAS}/100m", port, core, tunnel=False)
        case "tunnel_new":
            row = tunnels(port, http)
        case "idle":
            row = idle(port, http, pid)
        case _:
            row = sse(port, folder)
    spent = cpu_seconds(pid) - before
    if mode.endswith("_bulk"):
        row["cpu_s_per_gib"] = spent / row["ops"]
    else:
        row["cpu_us_per_op"] = spent / max(row["ops"], 1.0) * 1e6
    row["rss_mib"] = rss_mib(pid)
    return row


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(f"{statistics.median(row[key] for row in rows if key in row):.3g}") for key in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", action="append")
    parser.add_argument("--mode", action="append", choices=MODES)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--base", default="", help="another checkout, for the side km-before")
    arguments = parser.parse_args()
    sides = arguments.side or ["km", *(side for side, program in PEERS.items() if tool(program))]
    modes = [
        mode for mode in arguments.mode or MODES if mode not in OPENED or mode == "sse" or os.geteuid() == 0
    ]
    first, last = cores()
    os.sched_setaffinity(0, {int(last)})
    samples: dict[str, dict[str, list[dict[str, float]]]] = {mode: {} for mode in modes}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)  # squid gives root up
        make_pki(folder)
        http, https = free_port(), free_port()
        with server(make_origin(folder, http, https), https, last, folder / "origin.log"):
            for _ in range(arguments.runs):
                for side in sides:
                    for opened in (False, True):
                        wanted = [mode for mode in modes if (mode in OPENED) == opened]
                        port = free_port()
                        argv = (
                            command(side, folder, port, opened=opened, base=arguments.base)
                            if wanted
                            else None
                        )
                        if argv is None:
                            continue
                        with server(argv, port, first, folder / "server.log") as pid:
                            for mode in wanted:
                                try:
                                    row = measure(
                                        mode,
                                        pid,
                                        port,
                                        http,
                                        folder=folder,
                                        core=last,
                                        seconds=arguments.seconds,
                                    )
                                except (
                                    RuntimeError,
                                    OSError,
                                    IndexError,
                                    subprocess.SubprocessError,
                                ) as error:
                                    sys.stderr.write(f"{side} {mode}: {error}\n")
                                    continue
                                samples[mode].setdefault(side, []).append(row)
    result = {}
    for mode, by_side in samples.items():
        middle = {side: medians(rows) for side, rows in by_side.items()}
        base = middle.get("squid", {})
        ratios = {
            side: {
                key: round(value / base[key], 3)
                for key, value in row.items()
                if base.get(key) and key != "ops"
            }
            for side, row in middle.items()
            if side != "squid" and base
        }
        result[mode] = {"median": middle, "ratio_to_squid": ratios}
    load = [round(value, 2) for value in os.getloadavg()]
    sys.stdout.write(
        json.dumps({"bench": "http_proxy", "loadavg_after": load, "modes": result}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
