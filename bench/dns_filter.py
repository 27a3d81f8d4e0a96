"""
The DNS filter beside dnsmasq and unbound: queries per second, CPU per query, latency; JSON on stdout.

    python bench/dns_filter.py [--runs 3] [--seconds 2] [--workload deny|hot|miss] [--audit]

The server under test is pinned to one core, dnsperf and the upstream (unbound) to the other; sides are
interleaved and medians compared.  Workloads: ``deny`` (names outside the allowlist), ``hot`` (200 allowed
names again and again), ``miss`` (unique allowed names; answered with real addresses).  Peers that are not
on the PATH are left out.
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
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SUFFIX = "allowed.test"
TICKS = os.sysconf("SC_CLK_TCK")
SERVER_CPU, LOAD_CPU = "0", "1"


def tool(name: str) -> str | None:
    """Find a program, in the administrators' directories too."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def query(name: str) -> bytes:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", 1, 1)


def answers(port: int, name: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.3)
        sock.connect(("127.0.0.1", port))
        try:
            sock.send(query(name))
            return bool(sock.recv(4096))
        except OSError:
            return False


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, in nanosecond steps where the kernel counts them."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    coarse = (int(fields[11]) + int(fields[12])) / TICKS
    fine = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            fine += int((task / "schedstat").read_text().split()[0]) / 1e9
    return max(coarse, fine)


def rss_mib(pid: int) -> float:
    match = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return round(int(match[1]) / 1024, 1) if match else 0.0


@contextlib.contextmanager
def running(argv: list[str], ready: Callable[[], bool], cpu: str) -> Iterator[int]:
    process = subprocess.Popen(
        ["taskset", "-c", cpu, *argv],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 15
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise RuntimeError(f"{argv[0]} did not start: {(process.stderr.read() or b'')[-600:]!r}")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(3)
        process.stderr.close()


def unbound_conf(directory: Path, port: int, zones: str) -> Path:
    path = directory / f"unbound-{port}.conf"
    path.write_text(
        f'server:\n interface: 127.0.0.1\n port: {port}\n num-threads: 1\n do-daemonize: no\n username: ""\n chroot: ""\n'
        f' directory: "{directory}"\n pidfile: ""\n use-syslog: no\n logfile: ""\n do-not-query-localhost: no\n'
        f" so-reuseport: no\n outgoing-range: 4000\n num-queries-per-thread: 2000\n"
        f' access-control: 127.0.0.0/8 allow\n module-config: "iterator"\n{zones}'
    )
    return path


def sides(directory: Path, port: int, upstream: int, workload: str, audit: bool) -> dict[str, list[str]]:
    km = [sys.executable, "-m", "km_net_proxy.dns.bench_server", "--listen", f"127.0.0.1:{port}"]
    km += ["--upstream", f"127.0.0.1:{upstream}", "--allow", SUFFIX]
    km += ["--passthrough"] if workload == "miss" else []
    km += ["--audit"] if audit else []
    found = {"km": km}
    if tool("dnsmasq"):
        path = directory / f"dnsmasq-{port}.conf"
        path.write_text(
            f"port={port}\nlisten-address=127.0.0.1\nbind-interfaces\nno-resolv\nno-hosts\nuser=root\ncache-size=10000\n"
            f"dns-forward-max=2000\nserver=/{SUFFIX}/127.0.0.1#{upstream}\naddress=/#/\n"
        )
        found["dnsmasq"] = [tool("dnsmasq") or "", "-k", "-C", str(path)]
    if tool("unbound"):
        zones = (
            f' local-zone: "." always_nxdomain\n local-zone: "{SUFFIX}." transparent\n'
            f'forward-zone:\n name: "{SUFFIX}."\n forward-addr: 127.0.0.1@{upstream}\n'
        )
        found["unbound"] = [tool("unbound") or "", "-d", "-c", str(unbound_conf(directory, port, zones))]
    return found


def dnsperf(port: int, data: Path, seconds: float) -> dict[str, float]:
    argv = ["taskset", "-c", LOAD_CPU, tool("dnsperf") or "dnsperf", "-s", "127.0.0.1", "-p", str(port)]
    argv += ["-d", str(data), "-l", f"{seconds:g}", "-c", "20", "-q", "100", "-t", "1"]
    out = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 30, check=True).stdout

    def number(label: str) -> float:
        match = re.search(label + r":\s+([\d.]+)", out)
        return float(match[1]) if match else float("nan")

    codes = re.search(r"Response codes:\s+(.*)", out)
    return {
        "qps": number("Queries per second"),
        "sent": number("Queries sent"),
        "lost": number("Queries lost"),
        "servfail": float(match[1]) if codes and (match := re.search(r"SERVFAIL (\d+)", codes[1])) else 0.0,
    }


def idle_us(port: int, names: list[str]) -> list[float]:
    """Latency of one query at a time, in microseconds."""
    out = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        sock.connect(("127.0.0.1", port))
        for name in names:
            packet = query(name)
            start = time.perf_counter()
            sock.send(packet)
            with contextlib.suppress(TimeoutError):
                sock.recv(4096)
                out.append((time.perf_counter() - start) * 1e6)
    return sorted(out)


def measure(port: int, pid: int, data: Path, probe: list[str], seconds: float) -> dict[str, float]:
    before = cpu_seconds(pid)
    row = dnsperf(port, data, seconds)
    row["cpu_us_per_query"] = (cpu_seconds(pid) - before) / max(row["sent"], 1) * 1e6
    latency = idle_us(port, probe)
    row["p50_us_idle"] = latency[len(latency) // 2]
    row["p99_us_idle"] = latency[int(len(latency) * 0.99)]
    row["rss_mib"] = rss_mib(pid)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", action="append", choices=["deny", "hot", "miss"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--audit", action="store_true", help="km records every decision in its hash chain")
    arguments = parser.parse_args()
    if tool("dnsperf") is None or tool("unbound") is None:
        sys.exit("dnsperf and unbound (the upstream) are needed")
    os.sched_setaffinity(0, {int(LOAD_CPU)})
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        upstream = free_port()
        zone = f' local-zone: "{SUFFIX}." redirect\n local-data: "{SUFFIX}. 300 IN A 192.0.2.1"\n'
        argv = [tool("unbound") or "", "-d", "-c", str(unbound_conf(directory, upstream, zone))]
        with running(argv, lambda: answers(upstream, f"x.{SUFFIX}"), LOAD_CPU):
            for workload in arguments.workload or ["deny", "hot", "miss"]:
                rows: dict[str, list[dict[str, float]]] = {}
                for run in range(arguments.runs):
                    names = {
                        "deny": [f"h{i}.blocked{i % 50}.example" for i in range(20000)],
                        "hot": [f"h{i}.{SUFFIX}" for i in range(200)],
                        "miss": [f"r{run}x{i}.u.{SUFFIX}" for i in range(400000)],
                    }[workload]
                    probe = (
                        [f"p{run}x{i}.v.{SUFFIX}" for i in range(1000)]
                        if workload == "miss"
                        else names[:200] * 5
                    )
                    data = directory / "queries"
                    data.write_text("".join(f"{entry} A\n" for entry in names))
                    for side in sides(directory, 0, 0, workload, arguments.audit):
                        port = free_port()
                        command = sides(directory, port, upstream, workload, arguments.audit)[side]
                        with running(
                            command, lambda port=port: answers(port, f"x.{SUFFIX}"), SERVER_CPU
                        ) as pid:
                            rows.setdefault(side, []).append(
                                measure(port, pid, data, probe, arguments.seconds)
                            )
                medians = {
                    side: {
                        key: float(f"{statistics.median(row[key] for row in found):.4g}") for key in found[0]
                    }
                    for side, found in rows.items()
                }
                ratios = {
                    f"km_to_{side}": {
                        key: float(f"{medians['km'][key] / values[key]:.3g}")
                        for key in ("qps", "cpu_us_per_query", "p50_us_idle")
                        if values[key]
                    }
                    for side, values in medians.items()
                    if side != "km"
                }
                result[workload] = {"median": medians, "ratio": ratios}
    print(
        json.dumps(
            {"bench": "dns_filter", "cpus": os.cpu_count(), "load": os.getloadavg()[0], "runs": arguments.runs,
             "audit": arguments.audit, "workloads": result},
            indent=1,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
