"""Time from a profile's text to a checked profile, beside PyYAML and jsonschema; prints one JSON document.

The goal is 3 ms for 150 lines after import (anchors: a profile of that length is a long one).
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time

import jsonschema
import yaml

from km_core.compile import load_profile
from km_core.compile.claims import check_claims, core_source
from km_core.profile.schema import profile_schema

ROUNDS = 200


def long_profile(lines: int) -> str:
    head = """\
apiVersion: klankermaker.ai/v1alpha1
kind: SandboxProfile
metadata:
  name: long
  prefix: long
  labels:
    tier: development
spec:
  lifecycle:
    ttl: 4h
    idleTimeout: 1h
    teardownPolicy: stop
  runtime:
    substrate: local
    instanceType: t3.medium
    region: us-east-1
  sourceAccess:
    mode: allowlist
  identity:
    roleSessionDuration: 1h
    allowedRegions: [us-east-1]
    sessionPolicy: minimal
  budget:
    ai: { maxSpendUSD: 1.00 }
    warningThreshold: 0.80
  execution:
    shell: /bin/bash
    workingDir: /workspace
    configFiles:
      /home/sandbox/.claude/settings.json: |
        {"trustedDirectories": ["/home/sandbox", "/workspace"]}
    env:
"""
    rest = max(lines - head.count("\n") - 6, 3) // 3
    env = [f"      VARIABLE_{i}: value number {i}" for i in range(rest)]
    commands = [f"      - install --quiet tool-{i}" for i in range(rest)]
    hosts = [f"        - service-{i}.example.org" for i in range(rest)]
    tail = [
        "    initCommands:",
        *commands,
        "  network:",
        "    egress:",
        "      allowedDNSSuffixes: [.example.org]",
    ]
    return head + "\n".join([*env, *tail, "      allowedHosts:", *hosts]) + "\n"


def milliseconds(action) -> dict[str, float]:
    action()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        action()
        times.append((time.perf_counter() - start) * 1e3)
    return {
        "median_ms": round(statistics.median(times), 3),
        "p95_ms": round(sorted(times)[int(ROUNDS * 0.95)], 3),
    }


def import_ms() -> float:
    code = (
        "import time; t = time.perf_counter(); import km_core.compile; print((time.perf_counter() - t) * 1e3)"
    )
    runs = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(5)]
    return round(min(runs), 1)


def alias_bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    return "\n".join(lines)


def main() -> None:
    text = long_profile(150)
    loaded = load_profile(text, file="long.yaml")
    if not loaded.ok:
        sys.exit("\n".join(str(problem) for problem in loaded.problems))
    sources = [core_source()]
    schema = profile_schema()
    result = {
        "python": platform.python_version(),
        "libyaml": bool(yaml.__with_libyaml__),
        "lines": text.count("\n"),
        "bytes": len(text),
        "load_profile": milliseconds(lambda: load_profile(text, file="long.yaml")),
        "check_claims": milliseconds(lambda: check_claims(loaded, "local", sources)),
        "safe_load_and_jsonschema": milliseconds(lambda: jsonschema.validate(yaml.safe_load(text), schema)),
        "yaml_safe_load_alone": milliseconds(lambda: yaml.safe_load(text)),
        "alias_bomb": milliseconds(lambda: load_profile(alias_bomb(), file="bomb.yaml")),
        "import_ms": import_ms(),
    }
    ours = result["load_profile"]["median_ms"]
    result["ratio"] = {
        f"{peer}_to_load_profile": round(result[peer]["median_ms"] / ours, 2)
        for peer in ("safe_load_and_jsonschema", "yaml_safe_load_alone")
    }
    result["goals"] = {
        "load_profile <= 3 ms": ours <= 3,
        "ratio to safe_load and jsonschema >= 2.5": result["ratio"][
            "safe_load_and_jsonschema_to_load_profile"
        ]
        >= 2.5,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
