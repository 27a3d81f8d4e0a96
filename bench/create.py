"""
How long a sandbox takes to come and go, and a command to start, beside their bare peers.

Sides run interleaved; the medians and each side's ratio to its peer are printed as one JSON document.
``python bench/create.py [--runs 5] [--docker]`` (the Docker side needs an engine and km's base image).
Peers: ``bwrap --unshare-all``, ``docker run --network none``, ``python -c 'import click'``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KM = str(Path(sys.executable).with_name("km"))
PROFILE = """\
apiVersion: klankermaker.ai/v1alpha1
kind: SandboxProfile
metadata: {name: bench}
spec:
  lifecycle: {ttl: 1h, idleTimeout: 1h, teardownPolicy: destroy}
  runtime: {substrate: local, instanceType: t3.medium, region: us-east-1}
  execution: {shell: /bin/sh, workingDir: /workspace}
  sourceAccess: {mode: none}
  network: {egress: {allowedDNSSuffixes: [], allowedHosts: [www.example.com]}}
  identity: {roleSessionDuration: 1h, allowedRegions: [us-east-1], sessionPolicy: minimal}
"""


def timed(argv: list[str], env: dict[str, str]) -> float:
    started = time.perf_counter()
    run = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    elapsed = time.perf_counter() - started
    if run.returncode != 0:
        raise SystemExit(f"{argv[:3]} ended with {run.returncode}: {run.stderr[-500:]}")
    return elapsed * 1e3


def sandbox(profile: Path, substrate: str, env: dict[str, str]) -> dict[str, float]:
    """One life: create to the first command's end, a later command, destroy."""
    name = f"b{os.getpid()}"
    create = timed([KM, "create", str(profile), "--substrate", substrate, "--alias", name], env)
    first = timed([KM, "exec", name, "--", "true"], env)
    later = timed([KM, "exec", name, "--", "true"], env)
    destroy = timed([KM, "destroy", name, "--yes", "--purge-audit"], env)
    return {"create": create, "create_to_first_command": create + first, "exec": later, "destroy": destroy}


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.median(row[key] for row in rows), 1) for key in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--docker", action="store_true")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="kmb"))
    env = {**os.environ, "KM_HOME": str(home / "h"), "KM_RUNTIME_DIR": str(home / "r")}
    profile = home / "profile.yaml"
    profile.write_text(PROFILE, encoding="utf-8")
    peers = {
        "bwrap": ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--", "/bin/true"],
        "python_click": [sys.executable, "-c", "import click"],
        "km_help": [KM, "--help"],
        "km_version": [KM, "--version"],
        "km_validate": [KM, "validate", str(profile)],
        "km_list": [KM, "list"],
    }
    substrates = ["local", "docker"] if options.docker else ["local"]
    if options.docker:
        image = subprocess.run(
            ["docker", "images", "-q", "km-base"], capture_output=True, text=True, check=True
        ).stdout.split()[0]
        peers["docker_run"] = [
            "docker",
            "run",
            "--rm",
            "--network",
            "none",
            "--entrypoint",
            "",
            image,
            "true",
        ]
    plain: dict[str, list[float]] = {name: [] for name in peers}
    lives: dict[str, list[dict[str, float]]] = {name: [] for name in substrates}
    try:
        timed([KM, "daemon", "start"], env)
        for _ in range(options.runs):
            for name, argv in peers.items():
                plain[name].append(timed(argv, env))
            for name in substrates:
                lives[name].append(sandbox(profile, name, env))
        idle = os.getloadavg()[0]
    finally:
        subprocess.run([KM, "daemon", "stop"], env=env, capture_output=True, check=False)
        shutil.rmtree(home, ignore_errors=True)
    peer = {name: round(statistics.median(values), 1) for name, values in plain.items()}
    ours = {name: medians(rows) for name, rows in lives.items()}
    ratios = {
        "km_help_to_import_click": round(peer["km_help"] / peer["python_click"], 2),
        "local_create_minus_bwrap_ms": round(ours["local"]["create"] - peer["bwrap"], 1),
    }
    if options.docker:
        ratios["docker_create_to_docker_run"] = round(ours["docker"]["create"] / peer["docker_run"], 2)
    document = {
        "unit": "ms",
        "runs": options.runs,
        "load_average": idle,
        "peers": peer,
        "km": ours,
        "ratios": ratios,
    }
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
