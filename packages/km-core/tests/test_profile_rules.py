"""Rules that look at several fields: spec/profile.md sections 4.16 and 6."""

from __future__ import annotations

import copy

import pytest
import yaml

from km_core.compile import load_profile
from km_core.compile.dump import dump_document
from km_core.types import Severity

BASE = yaml.safe_load("""
apiVersion: klankermaker.ai/v1alpha1
kind: SandboxProfile
metadata: {name: base}
spec:
  lifecycle: {ttl: 4h, idleTimeout: 1h, teardownPolicy: destroy}
  runtime: {substrate: ec2, instanceType: t3.medium, region: us-east-1}
  execution: {shell: /bin/bash, workingDir: /workspace}
  sourceAccess: {mode: allowlist}
  network: {egress: {allowedDNSSuffixes: [.example.org]}}
  identity: {roleSessionDuration: 1h, allowedRegions: [us-east-1], sessionPolicy: minimal}
""")
ON = {"enabled": True, "image": "x"}
OFF = {"enabled": False, "image": "x"}
REPOS = {"allowedRepos": ["o/n"]}
CLI = "spec.cli."
AI = {"ai": {"maxSpendUSD": 1}}


def load(changes, **rest):
    data = copy.deepcopy(BASE)
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = data
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = copy.deepcopy(value)
    text = dump_document(data)
    return text, load_profile(text, file="p.yaml", **rest)


# Each case: its name, the changes to the base, and the severity, path and words of every remark.
CASES = [
    ("x1-ttl-below-idle", {"spec.lifecycle.ttl": "30m"}, [("error", "spec.lifecycle.ttl", "shorter")]),
    ("x1-equal", {"spec.lifecycle.ttl": "60m"}, []),
    (
        "x1-days",
        {"spec.lifecycle.ttl": "1d", "spec.lifecycle.idleTimeout": "25h"},
        [("error", "spec.lifecycle.ttl", "25h")],
    ),
    ("x1-never", {"spec.lifecycle.ttl": "0", "spec.lifecycle.idleTimeout": "9d"}, []),
    (
        "x2-below-ttl",
        {"spec.lifecycle.maxLifetime": "3h"},
        [("error", "spec.lifecycle.maxLifetime", "shorter")],
    ),
    ("x2-never", {"spec.lifecycle.ttl": "0", "spec.lifecycle.maxLifetime": "1h"}, []),
    (
        "x3-ecs-ebpf",
        {"spec.runtime.substrate": "ecs", "spec.network.enforcement": "ebpf"},
        [("error", "spec.network.enforcement", "ecs")],
    ),
    (
        "x3-ecs-both",
        {"spec.runtime.substrate": "ecs", "spec.network.enforcement": "both"},
        [("error", "spec.network.enforcement", "ecs")],
    ),
    ("x3-docker", {"spec.runtime.substrate": "docker", "spec.network.enforcement": "both"}, []),
    (
        "x4",
        {"spec.runtime.hibernation": True, "spec.runtime.spot": True},
        [("error", "spec.runtime.hibernation", "spot")],
    ),
    ("x4-fine", {"spec.runtime.hibernation": True, "spec.runtime.spot": False}, []),
    *(
        (
            f"x5-hibernation-{name}",
            {"spec.runtime.substrate": name, "spec.runtime.hibernation": True},
            [("error", "spec.runtime.hibernation", name)],
        )
        for name in ("ecs", "docker", "local")
    ),
    ("x5-hibernation-off", {"spec.runtime.substrate": "docker", "spec.runtime.hibernation": False}, []),
    (
        "x5-volume",
        {
            "spec.runtime.substrate": "ecs",
            "spec.runtime.additionalVolume": {"size": 1, "mountPoint": "/data"},
        },
        [("error", "spec.runtime.additionalVolume", "ecs")],
    ),
    (
        "x5-efs-ecs",
        {"spec.runtime.substrate": "ecs", "spec.runtime.mountEFS": True},
        [("error", "spec.runtime.mountEFS", "ecs")],
    ),
    ("x5-efs-docker", {"spec.runtime.substrate": "docker", "spec.runtime.mountEFS": True}, []),
    (
        "x5-harmless",
        {
            "spec.runtime.substrate": "docker",
            "spec.runtime.ami": "ubuntu-24.04",
            "spec.runtime.rootVolumeSize": 9,
            "spec.cli.vscodeEnabled": True,
        },
        [
            ("warning", "spec.runtime.rootVolumeSize", "no effect"),
            ("warning", "spec.runtime.ami", "no effect"),
            ("warning", "spec.cli.vscodeEnabled", "no effect"),
        ],
    ),
    (
        "x5-kernel-docker",
        {
            "spec.runtime.substrate": "docker",
            "spec.observability": {"learnMode": True, "tlsCapture": {"enabled": True}},
        },
        [
            ("warning", "spec.observability.learnMode", "docker"),
            ("warning", "spec.observability.tlsCapture", "docker"),
        ],
    ),
    (
        "x5-kernel-proxy",
        {"spec.observability": {"learnMode": True, "tlsCapture": {"enabled": True}}},
        [
            ("warning", "spec.observability.learnMode", "proxy"),
            ("warning", "spec.observability.tlsCapture", "proxy"),
        ],
    ),
    ("x5-kernel-both", {"spec.network.enforcement": "both", "spec.observability": {"learnMode": True}}, []),
    (
        "x6",
        {
            CLI + "notifySlackEnabled": True,
            CLI + "notifySlackPerSandbox": True,
            CLI + "notifySlackChannelOverride": "C1",
        },
        [("error", "spec.cli", "both")],
    ),
    (
        "x7-inbound",
        {CLI + "notifySlackInboundEnabled": True, CLI + "notifySlackChannelOverride": "C1"},
        [
            ("error", CLI + "notifySlackInboundEnabled", words)
            for words in ("ChannelOverride", "PerSandbox", "SlackEnabled")
        ],
    ),
    (
        "x7b-transcript",
        {CLI + "notifySlackTranscriptEnabled": True},
        [("error", CLI + "notifySlackTranscriptEnabled", words) for words in ("SlackEnabled", "PerSandbox")],
    ),
    (
        "x7-fine",
        {
            CLI + name: True
            for name in (
                "notifySlackEnabled",
                "notifySlackPerSandbox",
                "notifySlackInboundEnabled",
                "notifySlackTranscriptEnabled",
            )
        },
        [],
    ),
    (
        "x7c-false",
        {CLI + "notifySlackEnabled": False, CLI + "notifySlackPerSandbox": True},
        [("warning", CLI + "notifySlackPerSandbox", "false")],
    ),
    (
        "x7c-unset",
        {CLI + "notifySlackPerSandbox": True},
        [("warning", CLI + "notifySlackPerSandbox", "not set")],
    ),
    (
        "x7d",
        {CLI + "slackArchiveOnDestroy": False},
        [("warning", CLI + "slackArchiveOnDestroy", "PerSandbox")],
    ),
    ("x7e", {CLI + "notifyEmailEnabled": False}, [("warning", "spec.cli", "no channel")]),
    ("x7e-slack", {CLI + "notifyEmailEnabled": False, CLI + "notifySlackEnabled": True}, []),
    ("x8-http", {"spec.sidecars.httpProxy": OFF}, [("error", "spec.sidecars.httpProxy.enabled", "proxy")]),
    ("x8-dns", {"spec.sidecars.dnsProxy": OFF}, [("error", "spec.sidecars.dnsProxy.enabled", "proxy")]),
    ("x8-dns-both", {"spec.sidecars.dnsProxy": OFF, "spec.network.enforcement": "both"}, []),
    (
        "x8-ebpf",
        {"spec.sidecars.httpProxy": OFF, "spec.sidecars.dnsProxy": OFF, "spec.network.enforcement": "ebpf"},
        [],
    ),
    (
        "x8-ebpf-repos",
        {
            "spec.sidecars.httpProxy": OFF,
            "spec.network.enforcement": "ebpf",
            "spec.sourceAccess.github": {"allowedRepos": ["*"]},
        },
        [("error", "spec.sidecars.httpProxy.enabled", "allowedRepos")],
    ),
    ("x8-audit", {"spec.sidecars.auditLog": OFF, "spec.sidecars.tracing": OFF}, []),
    (
        "x9",
        {"spec.sourceAccess": {"mode": "none", "github": REPOS}},
        [("error", "spec.sourceAccess.github", "none")],
    ),
    ("x9-empty", {"spec.sourceAccess": {"mode": "none", "github": {"allowedRepos": []}}}, []),
    (
        "x10",
        {"spec.runtime.hibernation": True, "spec.runtime.rootVolumeSize": 4},
        [("error", "spec.runtime.rootVolumeSize", "4 GiB")],
    ),
    ("x10-fits", {"spec.runtime.hibernation": True, "spec.runtime.rootVolumeSize": 15}, []),
    ("x10-zero", {"spec.runtime.hibernation": True, "spec.runtime.rootVolumeSize": 0}, []),
    (
        "x10-big",
        {
            "spec.runtime.hibernation": True,
            "spec.runtime.rootVolumeSize": 256,
            "spec.runtime.instanceType": "r6i.8xlarge",
        },
        [("error", "spec.runtime.rootVolumeSize", "256 GiB of memory")],
    ),
    (
        "x10-unknown",
        {
            "spec.runtime.hibernation": True,
            "spec.runtime.rootVolumeSize": 1,
            "spec.runtime.instanceType": "u-6tb1.metal",
        },
        [],
    ),
    (
        "x11-equal",
        {
            "spec.runtime.mountEFS": True,
            "spec.runtime.additionalVolume": {"size": 1, "mountPoint": "/shared"},
        },
        [("error", "spec.runtime.efsMountPoint", "overlap")],
    ),
    (
        "x11-nested",
        {
            "spec.runtime.efsMountPoint": "/data/efs",
            "spec.runtime.additionalVolume": {"size": 1, "mountPoint": "/data"},
        },
        [("error", "spec.runtime.efsMountPoint", "overlap")],
    ),
    (
        "x11-apart",
        {
            "spec.runtime.mountEFS": True,
            "spec.runtime.additionalVolume": {"size": 1, "mountPoint": "/sharedx"},
        },
        [],
    ),
    (
        "x12",
        {"spec.runtime.hibernation": True, "spec.runtime.ami": "ami-01234567"},
        [("warning", "spec.runtime.hibernation", "encrypted")],
    ),
    (
        "x13",
        {"spec.identity.allowedRegions": ["eu-west-1"]},
        [("warning", "spec.identity.allowedRegions", "us-east-1")],
    ),
    (
        "x14-ai",
        {"spec.network.enforcement": "ebpf", "spec.budget": AI},
        [("error", "spec.network.enforcement", "budget.ai")],
    ),
    (
        "x14-https",
        {"spec.network.enforcement": "ebpf", "spec.network.httpsOnly": True},
        [("error", "spec.network.enforcement", "httpsOnly")],
    ),
    (
        "x14-repos",
        {"spec.network.enforcement": "ebpf", "spec.sourceAccess.github": REPOS},
        [("error", "spec.network.enforcement", "allowedRepos")],
    ),
    (
        "x14-any-repo",
        {"spec.network.enforcement": "ebpf", "spec.sourceAccess.github": {"allowedRepos": ["*"]}},
        [],
    ),
    ("x14-both", {"spec.network.enforcement": "both", "spec.budget": AI, "spec.network.httpsOnly": True}, []),
    (
        "wide-star",
        {"spec.network.egress.allowedHosts": ["*"], "spec.sourceAccess.github": REPOS},
        [("warning", "spec.network.egress.allowedHosts[0]", "every name")],
    ),
    (
        "wide-tld",
        {"spec.network.egress.allowedDNSSuffixes": [".com"]},
        [("warning", "spec.network.egress.allowedDNSSuffixes[0]", "top-level")],
    ),
    (
        "wide-shared",
        {"spec.network.egress.allowedHosts": [".github.io"]},
        [("warning", "spec.network.egress.allowedHosts[0]", "anybody")],
    ),
    ("wide-exact", {"spec.network.egress.allowedHosts": ["github.io"]}, []),
    (
        "wide-learning",
        {
            "spec.network.egress.allowedDNSSuffixes": [".com", ".github.io"],
            "spec.network.enforcement": "both",
            "spec.observability": {"learnMode": True},
        },
        [],
    ),
    (
        "wide-superfluous",
        {"spec.network.egress.allowedHosts": ["*", "a.org"], "spec.sourceAccess.github": REPOS},
        [
            ("warning", "spec.network.egress.allowedHosts[0]", "every name"),
            ("warning", "spec.network.egress.allowedHosts[0]", "superfluous"),
        ],
    ),
    (
        "bare-suffix",
        {"spec.network.egress.allowedDNSSuffixes": ["example.org"]},
        [("warning", "spec.network.egress.allowedDNSSuffixes[0]", "below it")],
    ),
    (
        "repos-as-hosts",
        {"spec.network.egress.allowedDNSSuffixes": [".github.com"], "spec.sourceAccess": {"mode": "none"}},
        [("warning", "spec.network.egress.allowedDNSSuffixes[0]", "plain host")],
    ),
    (
        "repos-listed",
        {"spec.network.egress.allowedDNSSuffixes": [".github.com"], "spec.sourceAccess.github": REPOS},
        [],
    ),
    (
        "budget-empty",
        {"spec.budget": {"warningThreshold": 0.5}},
        [("warning", "spec.budget", "limits nothing")],
    ),
    (
        "policy-elevated",
        {"spec.identity.sessionPolicy": "elevated"},
        [("warning", "spec.identity.sessionPolicy", "no effect")],
    ),
    (
        "tls-libraries",
        {
            "spec.network.enforcement": "both",
            "spec.observability": {"tlsCapture": {"enabled": True, "libraries": ["openssl", "go"]}},
        },
        [("warning", "spec.observability.tlsCapture.libraries[1]", "openssl")],
    ),
    (
        "secrets",
        {"spec.identity.allowedSecretPaths": ["/a/key"]},
        [("warning", "spec.identity.allowedSecretPaths", "inside")],
    ),
    (
        "secrets-collide",
        {"spec.identity.allowedSecretPaths": ["/a/api-key", "/b/API_KEY"]},
        [
            ("warning", "spec.identity.allowedSecretPaths", "inside"),
            ("error", "spec.identity.allowedSecretPaths[1]", "API_KEY"),
        ],
    ),
    ("otp", {"spec.otp": {"secrets": ["/a/key"]}}, [("warning", "spec.otp.secrets", "inside")]),
]


@pytest.mark.parametrize(("changes", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_rule(changes, expected):
    text, loaded = load(changes)
    found = list(loaded.problems)

    assert sorted((s, p) for s, p, _ in expected) == sorted((str(p.severity), p.path) for p in found), found
    for severity, path, words in expected:
        assert any(str(p.severity) == severity and p.path == path and words in p.message for p in found), (
            found
        )
    for problem in found:
        at = text.splitlines()[problem.line - 1]
        leaf = problem.path.rpartition(".")[2]
        # A rule may speak of a field that is a default: then it points at what is written around it.
        assert leaf.partition("[")[0] in at or "[" in leaf or problem.path not in loaded.written, (
            problem,
            at,
        )
    assert loaded.ok == all(severity != "error" for severity, _, _ in expected)


def test_rules_look_at_the_substrate_the_profile_is_meant_for():
    _, own = load({"spec.runtime.hibernation": True})
    _, other = load({"spec.runtime.hibernation": True}, substrate="local")

    assert own.ok
    assert [p.path for p in other.problems] == ["spec.runtime.hibernation"]
    assert other.substrate == "local"


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"spec.lifecycle.idleTimeout": "1x", "spec.lifecycle.ttl": "1m"}, "spec.lifecycle.idleTimeout"),
        (
            {
                CLI + "notifySlackEnabled": 1,
                CLI + "notifySlackInboundEnabled": True,
                CLI + "notifySlackPerSandbox": True,
            },
            CLI + "notifySlackEnabled",
        ),
        ({"spec.runtime.region": 5}, "spec.runtime.region"),
        ({"spec.runtime.substrate": 5, "spec.runtime.hibernation": True}, "spec.runtime.substrate"),
        ({"spec.network.enforcement": "epbf", "spec.budget": AI}, "spec.network.enforcement"),
        (
            {"spec.sidecars": {"httpProxy": {"enabled": "no", "image": "x"}}},
            "spec.sidecars.httpProxy.enabled",
        ),
    ],
)
def test_a_value_that_cannot_be_read_is_not_judged_again_by_the_rules(changes, path):
    _, loaded = load(changes)

    assert [path] == [p.path for p in loaded.problems]


def test_rules_run_although_other_fields_are_wrong():
    _, loaded = load({"spec.lifecycle.ttl": "30m", "spec.execution.shell": 5, "spec.zzz": 1})

    assert {p.path for p in loaded.problems} == {"spec.lifecycle.ttl", "spec.execution.shell", "spec.zzz"}


def test_a_warning_does_not_make_a_profile_invalid():
    _, loaded = load({"spec.network.egress.allowedDNSSuffixes": [".com"]})

    assert loaded.ok
    assert [p.severity for p in loaded.problems] == [Severity.WARNING]
