"""Every field of the profile: what it takes, what it refuses, and where the finger points."""

from __future__ import annotations

import copy

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from km_core.compile import load_profile
from km_core.compile.dump import dump_document
from km_core.policy import compile_address, compile_pattern
from km_core.profile import SUBSTRATES, PluginSection, optional, required
from km_core.profile.kinds import Flag, Text, edit_distance, nearest
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

README_FRAGMENT = """
apiVersion: klankermaker.ai/v1alpha1
kind: SandboxProfile
metadata:
  name: g1
spec:
  lifecycle: {ttl: 4h, idleTimeout: 1h, teardownPolicy: stop}
  runtime: {substrate: ec2, instanceType: t3.medium, region: us-east-1}
  execution: {shell: /bin/bash, workingDir: /workspace}
  identity: {roleSessionDuration: 1h, allowedRegions: [us-east-1], sessionPolicy: minimal}
  network:
    enforcement: both          # eBPF connect4 + transparent MITM proxy
    egress:
      allowedDNSSuffixes: [.amazonaws.com, .anthropic.com, .github.com]
  budget:
    compute: { maxSpendUSD: 0.50 }
    ai:      { maxSpendUSD: 1.00 }
  sourceAccess:
    mode: allowlist
    github:
      allowedRepos: [my-org/api, my-org/infra]
      allowedRefs:  [main, "feature/*"]
  cli:
    notifySlackEnabled: true
    notifySlackPerSandbox: true
    notifySlackInboundEnabled: true       # bidirectional chat
    notifySlackTranscriptEnabled: true    # per-turn streaming + JSONL upload
"""

ABSENT = object()


def with_changes(changes):
    data = copy.deepcopy(BASE)
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = data
        for key in parents:
            node = node.setdefault(key, {})
        if value is ABSENT:
            del node[last]
        else:
            node[last] = copy.deepcopy(value)
    return data


def load(changes=(), **rest):
    text = dump_document(with_changes(dict(changes)))
    return text, load_profile(text, file="p.yaml", **rest)


def errors(loaded):
    return [p for p in loaded.problems if p.severity is Severity.ERROR]


def pointed_at(text, problem):
    return text.splitlines()[problem.line - 1][problem.column - 1 :]


def test_the_base_of_these_tests_is_valid_without_a_remark():
    _, loaded = load()

    assert loaded.ok
    assert loaded.problems == ()


def test_the_front_page_example_is_valid():
    loaded = load_profile(README_FRAGMENT, file="g1.yaml")

    assert loaded.ok
    assert [(p.severity, p.path, p.line, p.column) for p in loaded.problems] == [
        (Severity.WARNING, "spec.network.egress.allowedDNSSuffixes[0]", 14, 28)
    ]
    assert loaded.profile is not None
    assert loaded.profile.spec.cli.notify_slack_enabled is True
    assert loaded.profile.spec.cli.notify_email_enabled is None
    assert loaded.profile.spec.budget.ai.max_spend_usd == 1.0


LONG = "x" * 64

# Each case: changes, path, what stands where the problem points, words of the message.
REFUSED = [
    # document
    ({"apiVersion": "klankermaker.ai/v1alpha2"}, "apiVersion", "klankermaker.ai/v1alpha2", "version"),
    ({"apiVersion": "v1alpha1"}, "apiVersion", "v1alpha1", "version"),
    ({"apiVersion": "example.org/v1alpha1"}, "apiVersion", "example.org", "group"),
    ({"apiVersion": 1}, "apiVersion", "1", "string"),
    ({"kind": "sandboxprofile"}, "kind", "sandboxprofile", "SandboxProfile"),
    ({"kind": None}, "kind", "null", "null"),
    ({"status": {}}, "status", "status", "known key"),
    ({"metadata": []}, "metadata", "metadata", "mapping"),
    ({"spec": "x"}, "spec", "x", "mapping"),
    # metadata
    ({"metadata.name": ""}, "metadata.name", '""', "empty"),
    ({"metadata.name": "a/b"}, "metadata.name", "a/b", "name"),
    ({"metadata.name": ".."}, "metadata.name", "..", "name"),
    ({"metadata.name": "a..b"}, "metadata.name", "a..b", "name"),
    ({"metadata.name": LONG}, "metadata.name", LONG, "name"),
    ({"metadata.name": "naïve"}, "metadata.name", '"na', "name"),
    ({"metadata.name": "a\n"}, "metadata.name", "|", "control"),
    ({"metadata.name": 5}, "metadata.name", "5", "string"),
    ({"metadata.name": ABSENT}, "metadata.name", "metadata", "required"),
    ({"metadata.alias": "x"}, "metadata.alias", "alias", "known key"),
    ({"metadata.labels": {"a": 1}}, "metadata.labels.a", "1", "string"),
    ({"metadata.labels": {"a b": "x"}}, 'metadata.labels["a b"]', "a b", "label"),
    ({"metadata.labels": {"a": "x" * 257}}, "metadata.labels.a", "xxx", "256"),
    ({"metadata.labels": None}, "metadata.labels", "null", "mapping"),
    ({"metadata.prefix": "Sb"}, "metadata.prefix", "Sb", "lower-case"),
    ({"metadata.prefix": "a" * 13}, "metadata.prefix", "aaa", "12"),
    ({"metadata.prefix": "1a"}, "metadata.prefix", "1a", "lower-case"),
    # lifecycle
    ({"spec.lifecycle.ttl": 0}, "spec.lifecycle.ttl", "0", "string"),
    ({"spec.lifecycle.ttl": "0s"}, "spec.lifecycle.ttl", "0s", "longer than 0"),
    ({"spec.lifecycle.ttl": "4h30m"}, "spec.lifecycle.ttl", "4h30m", "one number and one unit"),
    ({"spec.lifecycle.ttl": "1h\n"}, "spec.lifecycle.ttl", "|", "control"),
    ({"spec.lifecycle.ttl": "٤h"}, "spec.lifecycle.ttl", '"', "whole number"),
    ({"spec.lifecycle.ttl": "-1h"}, "spec.lifecycle.ttl", "-1h", "whole number"),
    ({"spec.lifecycle.ttl": "1.5h"}, "spec.lifecycle.ttl", "1.5h", "whole number"),
    ({"spec.lifecycle.ttl": "60"}, "spec.lifecycle.ttl", '"60"', "unit"),
    ({"spec.lifecycle.ttl": "3651d"}, "spec.lifecycle.ttl", "3651d", "3650 days"),
    ({"spec.lifecycle.ttl": "9" * 4000 + "s"}, "spec.lifecycle.ttl", "9", "3650 days"),
    ({"spec.lifecycle.ttl": "4hr"}, "spec.lifecycle.ttl", "4hr", "units"),
    ({"spec.lifecycle.ttl": ABSENT}, "spec.lifecycle.ttl", "lifecycle", "required"),
    ({"spec.lifecycle.idleTimeout": "0"}, "spec.lifecycle.idleTimeout", '"0"', "unit"),
    ({"spec.lifecycle.idleTimeout": ""}, "spec.lifecycle.idleTimeout", '""', "whole number"),
    ({"spec.lifecycle.maxLifetime": "0"}, "spec.lifecycle.maxLifetime", '"0"', "unit"),
    ({"spec.lifecycle.teardownPolicy": "Destroy"}, "spec.lifecycle.teardownPolicy", "Destroy", "one of"),
    ({"spec.lifecycle": None}, "spec.lifecycle", "null", "mapping"),
    ({"spec.lifecycle": ABSENT}, "spec.lifecycle", "spec", "required"),
    # runtime
    ({"spec.runtime.substrate": "eks"}, "spec.runtime.substrate", "eks", "one of"),
    ({"spec.runtime.spot": "yes"}, "spec.runtime.spot", "'yes'", "boolean"),
    ({"spec.runtime.spot": 1}, "spec.runtime.spot", "1", "boolean"),
    ({"spec.runtime.instanceType": ""}, "spec.runtime.instanceType", '""', "empty"),
    ({"spec.runtime.instanceType": "t3"}, "spec.runtime.instanceType", "t3", "instance type"),
    ({"spec.runtime.region": "useast1"}, "spec.runtime.region", "useast1", "region"),
    ({"spec.runtime.rootVolumeSize": -1}, "spec.runtime.rootVolumeSize", "-1", "between"),
    ({"spec.runtime.rootVolumeSize": 16385}, "spec.runtime.rootVolumeSize", "16385", "between"),
    ({"spec.runtime.rootVolumeSize": 1.5}, "spec.runtime.rootVolumeSize", "1.5", "integer"),
    ({"spec.runtime.rootVolumeSize": "15"}, "spec.runtime.rootVolumeSize", '"15"', "integer"),
    ({"spec.runtime.rootVolumeSize": True}, "spec.runtime.rootVolumeSize", "true", "boolean"),
    (
        {"spec.runtime.additionalVolume": {"size": 1}},
        "spec.runtime.additionalVolume.mountPoint",
        "addi",
        "required",
    ),
    (
        {"spec.runtime.additionalVolume": {"size": 0, "mountPoint": "/d"}},
        "spec.runtime.additionalVolume.size",
        "0",
        "between",
    ),
    ({"spec.runtime.ami": "ami-123"}, "spec.runtime.ami", "ami-123", "one of"),
    ({"spec.runtime.ami": "ami-0123456789abcdef00"}, "spec.runtime.ami", "ami-", "one of"),
    (
        {"spec.runtime.efsMountPoint": "/workspace"},
        "spec.runtime.efsMountPoint",
        "/workspace",
        "own directory",
    ),
    *(
        (
            {"spec.runtime.additionalVolume": {"size": 1, "mountPoint": point}},
            "spec.runtime.additionalVolume.mountPoint",
            "",
            "",
        )
        for point in [
            "/",
            "data",
            "/etc",
            "/etc/x",
            "/usr/local",
            "/home",
            "/home/sandbox",
            "/tmp",
            "/var",
            "/var/lib/x",
            "/opt",
            "/opt/km",
            "/mnt",
            "/a/../b",
            "/a//b",
            "/a/",
            "/a/.",
            "/run/x",
            "/proc",
            "/root/x",
            "/a:b",
            "/lib64/x",
        ]
    ),
    # execution
    ({"spec.execution.shell": "bash"}, "spec.execution.shell", "bash", "absolute"),
    ({"spec.execution.shell": "/bin/bash -l"}, "spec.execution.shell", "/bin/bash -l", "path of a program"),
    ({"spec.execution.shell": ""}, "spec.execution.shell", '""', "empty"),
    ({"spec.execution.workingDir": "work"}, "spec.execution.workingDir", "work", "absolute"),
    ({"spec.execution.workingDir": "/a/../etc"}, "spec.execution.workingDir", "/a", "normalised"),
    ({"spec.execution.env": {"KM_HOME": "x"}}, "spec.execution.env.KM_HOME", "KM_HOME", "reserved"),
    ({"spec.execution.env": {"SANDBOX_ID": "x"}}, "spec.execution.env.SANDBOX_ID", "SANDBOX_ID", "reserved"),
    ({"spec.execution.env": {"A-B": "x"}}, "spec.execution.env.A-B", "A-B", "variable"),
    ({"spec.execution.env": {"A": 5}}, "spec.execution.env.A", "5", "string"),
    ({"spec.execution.env": {"A": "x\0"}}, "spec.execution.env.A", '"x', "NUL"),
    ({"spec.execution.initCommands": [""]}, "spec.execution.initCommands[0]", '""', "empty"),
    ({"spec.execution.initCommands": "ls"}, "spec.execution.initCommands", "ls", "list"),
    ({"spec.execution.initCommands": ["a\0"]}, "spec.execution.initCommands[0]", '"a', "NUL"),
    ({"spec.execution.initScripts": ["/x.sh"]}, "spec.execution.initScripts[0]", "/x.sh", "relative"),
    ({"spec.execution.initScripts": ["../x.sh"]}, "spec.execution.initScripts[0]", "../x.sh", ".."),
    ({"spec.execution.rsync": "a/b"}, "spec.execution.rsync", "a/b", "snapshot"),
    ({"spec.execution.rsyncPaths": ["/x"]}, "spec.execution.rsyncPaths[0]", "/x", "relative"),
    ({"spec.execution.rsyncPaths": ["a/../../b"]}, "spec.execution.rsyncPaths[0]", "a/", ".."),
    ({"spec.execution.privileged": "true"}, "spec.execution.privileged", '"true"', "boolean"),
    *(
        ({"spec.execution.configFiles": {target: "x"}}, f'spec.execution.configFiles["{target}"]', target, "")
        for target in [
            "etc/x",
            "/etc/../x",
            "/etc//x",
            "/etc/km/a",
            "/etc/passwd",
            "/etc/sudoers.d/x",
            "/etc/cron.daily/x",
            "/etc/cron.d",
            "/etc/profile.d/km-x.sh",
            "/usr/bin/x",
            "/root/.bashrc",
            "/run/x",
            "/opt/km/x",
            "/lib/x",
            "/etc/resolv.conf",
            "/a'b",
            "/",
            "/a/",
        ]
    ),
    ({"spec.execution.configFiles": {"/a": {}}}, 'spec.execution.configFiles["/a"]', "/a", "string"),
    (
        {"spec.execution.configFiles": {"/home/sandbox/.claude/settings.json": "{"}},
        'spec.execution.configFiles["/home/sandbox/.claude/settings.json"]',
        "'{'",
        "JSON",
    ),
    (
        {"spec.execution.configFiles": {"/home/sandbox/.claude/settings.json": "[]"}},
        'spec.execution.configFiles["/home/sandbox/.claude/settings.json"]',
        "'[]'",
        "not an object",
    ),
    # sourceAccess
    ({"spec.sourceAccess": {}}, "spec.sourceAccess.mode", "sourceAccess", "required"),
    ({"spec.sourceAccess.mode": "all"}, "spec.sourceAccess.mode", "all", "one of"),
    ({"spec.sourceAccess.github": {}}, "spec.sourceAccess.github.allowedRepos", "github", "required"),
    *(
        (
            {"spec.sourceAccess.github": {"allowedRepos": [entry]}},
            "spec.sourceAccess.github.allowedRepos[0]",
            "",
            "",
        )
        for entry in [
            "repo",
            "a/b/c",
            "https://github.com/a/b",
            "git@github.com:a/b",
            "a/b,c/d",
            "a /b",
            "o*/x",
            "a/..",
            "a/.",
            "",
            "gitlab.com/a/b",
            "*/*",
        ]
    ),
    *(
        (
            {"spec.sourceAccess.github": {"allowedRepos": ["*"], "allowedRefs": [entry]}},
            "spec.sourceAccess.github.allowedRefs[0]",
            "",
            "",
        )
        for entry in [
            "",
            "a:b",
            "a b",
            "a..b",
            "-x",
            "/a",
            "a/",
            "a//b",
            ".a",
            "a.lock",
            "a~1",
            "a^",
            "a?",
            "a[b]",
            "a\\b",
            "@{u}",
            "a.",
        ]
    ),
    # network
    ({"spec.network": {}}, "spec.network.egress", "network", "required"),
    ({"spec.network.egress": {}}, "spec.network.egress.allowedDNSSuffixes", "egress", "required"),
    ({"spec.network.enforcement": "none"}, "spec.network.enforcement", "none", "one of"),
    ({"spec.network.httpsOnly": "true"}, "spec.network.httpsOnly", '"true"', "boolean"),
    *(
        ({f"spec.network.egress.{field}": [entry]}, f"spec.network.egress.{field}[0]", "", message)
        for field in ("allowedHosts", "allowedDNSSuffixes")
        for entry, message in {
            "api.*.com": "*",
            "*foo.com": "*",
            "fo*.com": "*",
            "**": "*",
            "*.": "host name",
            ".": "host name",
            "": "empty",
            "http://api.example.org": "URL",
            "api.example.org/path": "path",
            "a.example.org,b.example.org": "comma",
            "a b": "comma or blank",
            "exämple.org": "ASCII",
            "a..b": "host name",
            "..a": "host name",
            "*..a": "host name",
            "-a.org": "host name",
            "a" * 64 + ".org": "host name",
            ("a" * 60 + ".") * 5 + "org": "host name",
            "a.org..": "host name",
            "2130706433": "disguise",
            "0x7f.1": "disguise",
            "0177.0.0.1": "disguise",
            "::1": "IPv6",
            "1.2.3.4.5": "host name",
            "user@a.org": "host name",
            "a%2e.org": "host name",
        }.items()
    ),
    *(
        (
            {f"spec.network.egress.{field}": [entry]},
            f"spec.network.egress.{field}[0]",
            "",
            message,
        )
        for field, entry, message in (
            ("allowedDNSSuffixes", "api.example.org:443", "port"),
            ("allowedDNSSuffixes", "[::1]:443", "port"),
            ("allowedDNSSuffixes", "*:443", "port"),
            ("allowedHosts", "[::1]:443", "loopback"),
            ("allowedHosts", "127.0.0.1:443", "loopback"),
            ("allowedHosts", "0x7f.1:443", "disguise"),
            ("allowedHosts", "443:80", "disguise"),
            ("allowedHosts", "[a.example.org]:443", "brackets"),
            ("allowedHosts", "a.example.org:0", "port"),
            ("allowedHosts", "a.example.org:65536", "port"),
            ("allowedHosts", "a.example.org:0443", "port"),
            ("allowedHosts", "a.example.org:https", "port"),
            ("allowedHosts", "a.example.org:", "port"),
            ("allowedHosts", "a.example.org:443:443", "port"),
            ("allowedHosts", "2001:db8::1", "IPv6"),
        )
    ),
    (
        {"spec.network.egress.allowedHosts": ["127.0.0.1"]},
        "spec.network.egress.allowedHosts[0]",
        "127",
        "loopback",
    ),
    (
        {"spec.network.egress.allowedHosts": ["169.254.169.254"]},
        "spec.network.egress.allowedHosts[0]",
        "169",
        "metadata",
    ),
    (
        {"spec.network.egress.allowedHosts": ["10.0.0.1/8"]},
        "spec.network.egress.allowedHosts[0]",
        "10",
        "host bits",
    ),
    (
        {"spec.network.egress.allowedHosts": ["10.0.0.0/33"]},
        "spec.network.egress.allowedHosts[0]",
        "10",
        "range",
    ),
    (
        {"spec.network.egress.allowedHosts": ["@Packages"]},
        "spec.network.egress.allowedHosts[0]",
        "'@P",
        "group",
    ),
    ({"spec.network.egress.allowedHosts": ["@"]}, "spec.network.egress.allowedHosts[0]", "'@", "group"),
    (
        {"spec.network.egress.allowedDNSSuffixes": ["@X"]},
        "spec.network.egress.allowedDNSSuffixes[0]",
        "'@X",
        "group",
    ),
    (
        {"spec.network.egress.allowedDNSSuffixes": ["192.0.2.1"]},
        "spec.network.egress.allowedDNSSuffixes[0]",
        "192",
        "address",
    ),
    # identity
    ({"spec.identity.roleSessionDuration": "1d"}, "spec.identity.roleSessionDuration", "1d", "h, m or s"),
    ({"spec.identity.roleSessionDuration": "14m"}, "spec.identity.roleSessionDuration", "14m", "15m and 12h"),
    ({"spec.identity.roleSessionDuration": "13h"}, "spec.identity.roleSessionDuration", "13h", "15m and 12h"),
    ({"spec.identity.allowedRegions": []}, "spec.identity.allowedRegions", "allowedRegions", "at least 1"),
    (
        {"spec.identity.allowedRegions": ["us-east-1", "us-east-1"]},
        "spec.identity.allowedRegions[1]",
        "us-east-1",
        "repeats",
    ),
    ({"spec.identity.allowedRegions": ["*"]}, "spec.identity.allowedRegions[0]", "'*'", "region"),
    ({"spec.identity.sessionPolicy": "admin"}, "spec.identity.sessionPolicy", "admin", "one of"),
    *(
        ({"spec.identity.allowedSecretPaths": [entry]}, "spec.identity.allowedSecretPaths[0]", "", "")
        for entry in [
            "a/b",
            "/a/*",
            "/a//b",
            "/a/",
            "/km/config/x",
            "/km/slack/bot-token",
            "/km/sandbox/sb-1/x",
            "/sandbox/x",
            "/a/1x",
            "/a/x.y",
            "/a/km-home",
            "/a/sandbox-id",
            "/x" * 16,
            "/" + "a" * 1011,
        ]
    ),
    # sidecars, observability, agent
    (
        {"spec.sidecars": {"dnsProxy": {"enabled": True}}},
        "spec.sidecars.dnsProxy.image",
        "dnsProxy",
        "required",
    ),
    ({"spec.sidecars": {"dnsproxy": {}}}, "spec.sidecars.dnsproxy", "dnsproxy", "known key"),
    (
        {"spec.sidecars": {"tracing": {"enabled": True, "image": ""}}},
        "spec.sidecars.tracing.image",
        '""',
        "empty",
    ),
    (
        {"spec.observability": {"commandLog": {}}},
        "spec.observability.commandLog.destination",
        "commandLog",
        "required",
    ),
    (
        {"spec.observability": {"networkLog": {"destination": "file"}}},
        "spec.observability.networkLog.destination",
        "file",
        "one of",
    ),
    (
        {"spec.observability": {"tlsCapture": {}}},
        "spec.observability.tlsCapture.enabled",
        "tlsCapture",
        "required",
    ),
    (
        {"spec.observability": {"tlsCapture": {"enabled": False, "libraries": ["ssl"]}}},
        "spec.observability.tlsCapture.libraries[0]",
        "ssl",
        "one of",
    ),
    (
        {"spec.agent": {"maxConcurrentTasks": True, "taskTimeout": "1m"}},
        "spec.agent.maxConcurrentTasks",
        "true",
        "integer",
    ),
    (
        {"spec.agent": {"maxConcurrentTasks": 0, "taskTimeout": "1m"}},
        "spec.agent.maxConcurrentTasks",
        "0",
        "between",
    ),
    (
        {"spec.agent": {"maxConcurrentTasks": 1, "taskTimeout": "1d"}},
        "spec.agent.taskTimeout",
        "1d",
        "h, m or s",
    ),
    ({"spec.agent": {"maxConcurrentTasks": 1}}, "spec.agent.taskTimeout", "agent", "required"),
    # artifacts, budget, email, otp, cli
    ({"spec.artifacts": {"paths": ["work"]}}, "spec.artifacts.paths[0]", "work", "absolute"),
    ({"spec.artifacts": {"paths": ["/a/../b"]}}, "spec.artifacts.paths[0]", "/a", ".."),
    ({"spec.artifacts": {"maxSizeMB": -1}}, "spec.artifacts.maxSizeMB", "-1", "between"),
    ({"spec.artifacts": {"replicationRegion": "x"}}, "spec.artifacts.replicationRegion", "x", "region"),
    ({"spec.budget": {"ai": {}}}, "spec.budget.ai.maxSpendUSD", "ai", "required"),
    ({"spec.budget": {"ai": {"maxSpendUSD": -0.01}}}, "spec.budget.ai.maxSpendUSD", "-0.01", "between"),
    ({"spec.budget": {"ai": {"maxSpendUSD": 1_000_001}}}, "spec.budget.ai.maxSpendUSD", "1000001", "between"),
    ({"spec.budget": {"ai": {"maxSpendUSD": "5"}}}, "spec.budget.ai.maxSpendUSD", '"5"', "number"),
    ({"spec.budget": {"ai": {"maxSpendUSD": True}}}, "spec.budget.ai.maxSpendUSD", "true", "number"),
    (
        {"spec.budget": {"ai": {"maxSpendUSD": 1}, "warningThreshold": 1.1}},
        "spec.budget.warningThreshold",
        "1.1",
        "between",
    ),
    ({"spec.budget": None}, "spec.budget", "null", "mapping"),
    ({"spec.email": {"signing": False}}, "spec.email.signing", "false", "string"),
    ({"spec.email": {"alias": "build"}}, "spec.email.alias", "build", "one dot"),
    ({"spec.email": {"alias": "a.b.c"}}, "spec.email.alias", "a.b.c", "one dot"),
    ({"spec.email": {"allowedSenders": ["a:b"]}}, "spec.email.allowedSenders[0]", "a:b", "sender"),
    ({"spec.email": {"allowedSenders": ["a b"]}}, "spec.email.allowedSenders[0]", "a b", "sender"),
    ({"spec.email": {"allowedSenders": [""]}}, "spec.email.allowedSenders[0]", '""', "empty"),
    ({"spec.otp": {"secrets": ["x"]}}, "spec.otp.secrets[0]", "x", "secret path"),
    ({"spec.cli": {"notifyCooldownSeconds": -1}}, "spec.cli.notifyCooldownSeconds", "-1", "between"),
    (
        {"spec.cli": {"notificationEmailAddress": "ops"}},
        "spec.cli.notificationEmailAddress",
        "ops",
        "mail address",
    ),
    (
        {"spec.cli": {"notifySlackChannelOverride": "#general"}},
        "spec.cli.notifySlackChannelOverride",
        "'#general'",
        "channel",
    ),
    ({"spec.cli": {"notifySlackEnabled": "on"}}, "spec.cli.notifySlackEnabled", "'on'", "boolean"),
    ({"spec.cli": {"claudeArgs": [1]}}, "spec.cli.claudeArgs[0]", "1", "string"),
]


@pytest.mark.parametrize(
    ("changes", "path", "at", "message"),
    REFUSED,
    ids=[f"{i}-{path}" for i, (_, path, _, _) in enumerate(REFUSED)],
)
def test_a_wrong_value_is_one_error_at_its_path_and_place(changes, path, at, message):
    text, loaded = load(changes)
    found = errors(loaded)

    assert [path] == [p.path for p in found], found
    assert message in found[0].message
    assert pointed_at(text, found[0]).startswith(at), pointed_at(text, found[0])
    assert not loaded.ok
    assert loaded.profile is None


ACCEPTED = [
    {"spec.lifecycle.ttl": "0"},
    {
        "spec.lifecycle": {
            "ttl": "3650d",
            "idleTimeout": "1s",
            "teardownPolicy": "retain",
            "maxLifetime": "3650d",
        }
    },
    {"spec.runtime.substrate": "local"},
    {"spec.runtime.substrate": "docker"},
    {"spec.runtime.rootVolumeSize": 15.0},
    {"spec.runtime.ami": ""},
    {"spec.runtime.ami": "ubuntu-24.04"},
    {"spec.runtime.ami": "ami-0123456789abcdef0"},
    {"spec.runtime.region": "us-gov-west-1", "spec.identity.allowedRegions": ["us-gov-west-1"]},
    {"spec.runtime.additionalVolume": {"size": 20, "mountPoint": "/workspace", "encrypted": True}},
    {"spec.runtime.additionalVolume": {"size": 1, "mountPoint": "/home/sandbox/data"}},
    {"spec.execution.env": {"A": "", "_b": "line\nline", "OPENAI_API_KEY": ""}},
    {
        "spec.execution.configFiles": {
            "/home/sandbox/.claude/settings.json": "{}",
            "/etc/gitconfig": "x",
            "/a b": "",
        }
    },
    {"spec.execution.initCommands": ["set -e\nls"], "spec.execution.initScripts": ["a/b.sh"]},
    {"spec.execution.rsyncPaths": [".config/*", ".claude.json"], "spec.execution.rsync": "base-1"},
    {"spec.sourceAccess.github": {"allowedRepos": []}},
    {
        "spec.sourceAccess.github": {
            "allowedRepos": ["*", "o/*", "o_co/api-*", "github.com/o/n.git"],
            "allowedRefs": [],
        }
    },
    {
        "spec.sourceAccess.github": {
            "allowedRepos": ["*"],
            "allowedRefs": ["*", "main", "feature/*", "refs/tags/v*", "a_b#1"],
        }
    },
    {"spec.network.egress.allowedDNSSuffixes": []},
    {"spec.network.egress.allowedDNSSuffixes": ["@python-packages", ".example.org"]},
    {
        "spec.network.egress.allowedDNSSuffixes": [
            ".Example.ORG",
            "*.example.org",
            ".example.org.",
            "._tcp.example.org",
        ]
    },
    {
        "spec.network.egress.allowedHosts": [
            "api.example.org",
            "192.0.2.7",
            "10.0.0.0/8",
            "2001:db8::/32",
            "@python-packages",
        ]
    },
    {"spec.identity.allowedSecretPaths": []},
    {"spec.observability": {}},
    {"spec.sidecars": {}},
    {"spec.budget": {"ai": {"maxSpendUSD": 0}, "compute": {"maxSpendUSD": 1_000_000}}},
    {
        "spec.email": {
            "signing": "off",
            "allowedSenders": ["self", "*", "sb-1a2b3c4d", "build.*", "a.b@example.org", "*@example.org"],
        }
    },
    {"spec.cli": {"notificationEmailAddress": "ops@example.org", "claudeArgs": ["--x", ""]}},
    {"spec.agent": {"maxConcurrentTasks": 4.0, "taskTimeout": "120m", "allowedTools": []}},
    {"spec.artifacts": {"paths": ["/workspace", "/var/log/*.log"], "maxSizeMB": 0}},
]


@pytest.mark.parametrize("changes", ACCEPTED, ids=[str(i) for i in range(len(ACCEPTED))])
def test_a_right_value_is_accepted_without_a_remark(changes):
    _, loaded = load(changes)

    assert [str(p) for p in loaded.problems] == []
    assert loaded.ok


def test_several_defects_are_several_problems_in_the_order_of_the_file():
    text = dump_document(
        with_changes({"metadata.name": "", "spec.lifecycle.ttl": 5, "spec.runtime.spot": 3, "spec.typo": 1})
    )
    loaded = load_profile(text, file="p.yaml")

    assert [p.path for p in loaded.problems] == [
        "metadata.name",
        "spec.lifecycle.ttl",
        "spec.runtime.spot",
        "spec.typo",
    ]


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"spec.lifecycle.idletimeout": "1h"}, "did you mean idleTimeout?"),
        ({"spec.lifecycle.tll": "1h"}, "did you mean ttl?"),
        ({"spec.network.egres": {}}, "did you mean egress?"),
        ({"spec.network.allowedHosts": []}, "it belongs to spec.network.egress.allowedHosts"),
        ({"spec.ttl": "1h"}, "it belongs to spec.lifecycle.ttl"),
        ({"spec.lifecycle.zzzzzz": 1}, "known keys: idleTimeout, maxLifetime, teardownPolicy, ttl"),
    ],
)
def test_an_unknown_key_comes_with_what_was_probably_meant(changes, hint):
    _, loaded = load(changes)

    assert [hint] == [p.hint for p in errors(loaded)]


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"spec.lifecycle.ttl": 0}, 'quote it: "0"'),
        ({"spec.runtime.spot": "yes"}, "write true, without quotes"),
        ({"spec.runtime.rootVolumeSize": "15"}, "remove the quotes"),
        ({"spec.network.egress.allowedHosts": ["https://a.example.org/x"]}, "write a.example.org"),
        ({"spec.network.egress.allowedDNSSuffixes": ["a.example.org:8443"]}, "write a.example.org"),
        (
            {"spec.network.egress.allowedHosts": ["a.example.org:0"]},
            "write a.example.org:PORT, a number from 1 to 65535",
        ),
        ({"spec.network.egress.allowedHosts": ["bücher.example"]}, "write xn--bcher-kva.example"),
        ({"spec.network.egress.allowedHosts": ["0x7f.1"]}, "write 127.0.0.1"),
        ({"spec.sourceAccess.github": {"allowedRepos": ["https://github.com/o/n.git"]}}, "write o/n"),
        ({"spec.identity.roleSessionDuration": "1d"}, "write 24h"),
    ],
)
def test_the_hint_says_what_to_write(changes, hint):
    _, loaded = load(changes)

    assert [hint] == [p.hint for p in errors(loaded)]


def test_defaults_are_filled_and_told_apart_from_what_is_written():
    _, loaded = load({"spec.runtime.rootVolumeSize": 15.0})
    spec = loaded.profile.spec

    assert spec.sidecars.http_proxy.enabled is True
    assert spec.sidecars.tracing.image == "km-tracing:latest"
    assert (spec.agent.max_concurrent_tasks, spec.agent.task_timeout) == (1, "30m")
    assert spec.network.egress.allowed_hosts == ()
    assert spec.network.enforcement == "proxy"
    assert spec.observability.command_log.destination == "cloudwatch"
    assert spec.observability.network_log.log_group == "/klanker-maker/network"
    assert spec.observability.claude_telemetry.enabled is True
    assert spec.runtime.efs_mount_point == "/shared"
    assert spec.runtime.root_volume_size == 15
    assert type(loaded.data["spec"]["runtime"]["rootVolumeSize"]) is int
    assert loaded.profile.metadata.prefix == "sb"
    assert (spec.budget, spec.email, spec.cli, spec.otp, spec.artifacts) == (None,) * 5
    assert spec.source_access.github is None
    assert not loaded.wrote("spec.sidecars")
    assert loaded.wrote("spec.network.egress")
    assert "spec.network.egress.allowedDNSSuffixes" in loaded.written


@pytest.mark.parametrize("substrate", ["docker", "local"])
def test_the_default_log_destination_without_a_cloud_is_standard_output(substrate):
    _, loaded = load({"spec.runtime.substrate": substrate})

    assert loaded.data["spec"]["observability"]["commandLog"] == {"destination": "stdout", "logGroup": ""}


def test_a_warning_threshold_of_0_is_read_as_unset():
    _, loaded = load({"spec.budget": {"ai": {"maxSpendUSD": 1}, "warningThreshold": 0}})

    assert loaded.profile.spec.budget.warning_threshold == 0.8


def test_data_holds_what_the_model_holds_and_loads_as_the_same_profile():
    loaded = load_profile(README_FRAGMENT, file="g1.yaml")
    again = load_profile(dump_document(loaded.data), file="g1.yaml")

    assert again.profile == loaded.profile
    assert again.digest == loaded.digest


def test_the_digest_follows_the_content_and_not_its_spelling():
    text = dump_document(BASE)

    assert load_profile(text, file="a").digest == load_profile("# remark\n" + text, file="b").digest
    assert load_profile(text, file="a").digest != load_profile(text.replace("4h", "5h"), file="a").digest


def test_the_configured_domain_may_be_the_group():
    _, loaded = load({"apiVersion": "example.org/v1alpha1"}, domain="example.org")

    assert loaded.ok


def test_a_file_of_the_next_version_is_one_error_and_not_hundred():
    _, loaded = load({"apiVersion": "klankermaker.ai/v1alpha2", "spec.iam": {}, "spec.identity": ABSENT})

    assert [p.path for p in loaded.problems] == ["apiVersion"]


def test_an_installed_substrate_is_known_by_its_name():
    _, loaded = load({"spec.runtime.substrate": "firecracker"}, substrates=["firecracker"])

    assert loaded.ok
    assert (
        load({"spec.runtime.substrate": "firecracker"})[1].problems[0].message.endswith('not "firecracker"')
    )


def test_a_plugin_section_is_checked_as_strictly_and_built_as_its_own_model():
    from attrs import frozen

    @frozen(kw_only=True)
    class Gpu:
        model: str = required("model", Text(min_length=1), "Model.")
        shared: bool = optional("shared", Flag(), "Shared.", default=False)

    section = PluginSection("gpu", Gpu, "km-gpu")
    _, good = load({"spec.gpu": {"model": "l4"}}, plugin_sections=[section])
    _, bad = load({"spec.gpu": {"modle": "l4", "shared": 1}}, plugin_sections=[section])
    _, unknown = load({"spec.gpu": {"model": "l4"}})

    assert good.profile.spec.plugins["gpu"] == Gpu(model="l4", shared=False)
    assert "spec.gpu.model" in good.written
    assert {p.path for p in bad.problems} == {"spec.gpu.modle", "spec.gpu.shared"}
    assert [p.path for p in unknown.problems] == ["spec.gpu"]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="aA0.*-_:/@,[]x%1é ", max_size=12))
def test_an_accepted_host_entry_is_one_the_policy_compiles(entry):
    for key, dns_list in (("allowedHosts", False), ("allowedDNSSuffixes", True)):
        changes = {"spec.network.egress.allowedDNSSuffixes": [], f"spec.network.egress.{key}": [entry]}
        _, loaded = load(changes)
        if loaded.ok and not entry.startswith("@") and (dns_list or compile_address(entry) is None):
            compile_pattern(entry, dns_list=dns_list)


def test_edit_distance_counts_slips_of_the_finger():
    assert edit_distance("ttl", "tll", 2) == 1
    assert edit_distance("idle", "idel", 2) == 1
    assert edit_distance("network", "netwrok", 2) == 1
    assert edit_distance("abc", "xyz", 2) == 3
    assert edit_distance("", "ab", 2) == 2
    assert nearest("ec3", list(SUBSTRATES)) in {"ec2", "ecs"}
    assert nearest("kubernetes", list(SUBSTRATES)) == ""


@pytest.mark.parametrize(
    ("wrong", "paths"),
    [
        ("netwrok", {"spec.netwrok"}),
        ("somethingElse", {"spec.somethingElse", "spec.network"}),
        ("allowedHosts", {"spec.allowedHosts", "spec.network"}),
    ],
)
def test_a_required_key_that_is_misspelt_is_one_defect(wrong, paths):
    network = BASE["spec"]["network"]
    _, found = load({"spec.network": ABSENT, f"spec.{wrong}": network})

    assert {problem.path for problem in errors(found)} == paths
