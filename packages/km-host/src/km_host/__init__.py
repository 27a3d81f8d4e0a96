"""Linux host library of km: namespaces, listeners, seccomp, cgroups, the pod supervisor."""

from __future__ import annotations
