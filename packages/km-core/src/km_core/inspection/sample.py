"""A small profile and its plan, for hooks that are asked about one."""

from __future__ import annotations

import hashlib
from typing import Any

_PROFILE = """\
apiVersion: klankermaker.ai/v1alpha1
kind: SandboxProfile
metadata:
  name: sample
spec:
  lifecycle: {ttl: 1h, idleTimeout: 30m, teardownPolicy: destroy}
  runtime: {substrate: local, instanceType: t3.medium, region: us-east-1}
  execution: {shell: /bin/sh, workingDir: /workspace}
  sourceAccess: {mode: none}
  network:
    enforcement: proxy
    egress: {allowedDNSSuffixes: [], allowedHosts: [example.org]}
  identity: {roleSessionDuration: 1h, allowedRegions: [us-east-1], sessionPolicy: minimal}
"""


def sample() -> dict[str, Any]:
    """Return a value for every argument that a hook of km-core has."""
    from km_core.compile.draft import draft_plan
    from km_core.compile.profile import load_profile
    from km_core.errors import ProfileError
    from km_core.plan import LimitsPlan
    from km_core.types import Event

    loaded = load_profile(_PROFILE, file="sample.yaml", substrate="local")
    if not loaded.ok:
        raise ProfileError("the sample profile is invalid", problems=loaded.problems)
    plan = draft_plan(
        loaded.data,
        digest=hashlib.sha256(_PROFILE.encode()).hexdigest(),
        substrate="local",
        groups=(),
        meters=(),
        limits=LimitsPlan(),
    )
    return {
        "profile": loaded.data,
        "substrate": "local",
        "draft": plan,
        "plan": plan,
        "event": Event("created", "sb-00000000", "2026-01-01T00:00:00Z"),
    }
