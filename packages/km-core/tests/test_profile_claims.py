"""Claims: nothing written is silently ignored (DESIGN section 4)."""

from __future__ import annotations

import copy

import pytest
import yaml

from km_core.compile import load_profile
from km_core.compile.claims import (
    ClaimSource,
    check_claims,
    claim_matrix,
    core_claims,
    core_source,
    inert_fields,
    model_fields,
    model_sections,
)
from km_core.compile.dump import dump_document
from km_core.profile.model import SUBSTRATES
from km_core.types import Answer, Claim, Severity

BASE = yaml.safe_load("""
apiVersion: klankermaker.ai/v1alpha1
kind: SandboxProfile
metadata: {name: base}
spec:
  lifecycle: {ttl: 4h, idleTimeout: 1h, teardownPolicy: destroy}
  runtime: {substrate: local, instanceType: t3.medium, region: us-east-1}
  execution: {shell: /bin/bash, workingDir: /workspace}
  sourceAccess: {mode: allowlist}
  network: {egress: {allowedDNSSuffixes: [.example.org]}}
  identity: {roleSessionDuration: 1h, allowedRegions: [us-east-1], sessionPolicy: minimal}
""")
INERT_IN_BASE = {
    "spec.runtime.instanceType",
    "spec.runtime.region",
    "spec.identity.roleSessionDuration",
    "spec.identity.allowedRegions",
    "spec.identity.sessionPolicy",
}


CORE = [core_source()]
CEILING = "spec.budget.ai.maxSpendUSD"


def load(changes=(), **rest):
    data = copy.deepcopy(BASE)
    for path, value in dict(changes).items():
        *parents, last = path.split(".")
        node = data
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = copy.deepcopy(value)
    return load_profile(dump_document(data), file="p.yaml", **rest)


def answers(changes=(), substrate="local", claims=None):
    loaded = load(changes)
    sources = CORE if claims is None else by_speaker(claims)
    return {a.path: a.answer for a in claim_matrix(loaded, substrate, sources)}


def by_speaker(claims):
    """Each distribution speaks for itself; the first offers the substrate."""
    names = list(dict.fromkeys(claim.by for claim in claims))
    return [
        ClaimSource(
            name,
            tuple(claim for claim in claims if claim.by == name),
            substrates=frozenset({"s"} if index == 0 else ()),
            core=index == 0,
        )
        for index, name in enumerate(names)
    ]


def refused(changes, substrate="local"):
    return [p for p in check_claims(load(changes), substrate, CORE) if p.severity is Severity.ERROR]


@pytest.mark.parametrize("substrate", ["local", "docker"])
def test_the_base_runs_here_and_says_what_has_no_meaning(substrate):
    loaded = load()
    problems = check_claims(loaded, substrate, CORE)

    assert {p.severity for p in problems} == {Severity.INFO}
    assert {p.path for p in problems} == INERT_IN_BASE
    assert set(inert_fields(loaded, substrate, CORE)) == INERT_IN_BASE
    assert all(p.file == "p.yaml" and p.line > 1 for p in problems)


ENFORCED = {
    "metadata.labels": {"a": "b"},
    "metadata.prefix": "ab",
    "spec.lifecycle.maxLifetime": "9h",
    "spec.execution.env": {"A": "b"},
    "spec.execution.initCommands": ["ls"],
    "spec.execution.configFiles": {"/a": "b"},
    "spec.execution.privileged": False,
    "spec.network.egress.allowedHosts": ["a.example.org"],
    "spec.network.httpsOnly": True,
    "spec.network.enforcement": "proxy",
    "spec.budget": {"ai": {"maxSpendUSD": 1}, "warningThreshold": 0.5},
    "spec.sourceAccess.mode": "allowlist",
    "spec.sourceAccess.github": {"allowedRepos": ["o/n"], "allowedRefs": ["main"]},
    "spec.observability": {"networkLog": {"destination": "stdout"}},
}
INERT = {
    "spec.runtime.spot": True,
    "spec.runtime.ami": "ubuntu-24.04",
    "spec.runtime.rootVolumeSize": 15,
    "spec.runtime.hibernation": False,
    "spec.runtime.mountEFS": False,
    "spec.runtime.efsMountPoint": "/shared",
    "spec.identity.allowedSecretPaths": [],
    "spec.budget": {"compute": {"maxSpendUSD": 1}},
    "spec.execution.useBedrock": False,
    "spec.execution.initScripts": [],
    "spec.execution.rsyncPaths": [],
    "spec.observability": {
        "learnMode": False,
        "claudeTelemetry": {"enabled": False},
        "tlsCapture": {"enabled": False},
    },
    "spec.otp": {"secrets": []},
    "spec.cli": {
        "noBedrock": True,
        "claudeArgs": [],
        "notifyOnIdle": False,
        "notifyCooldownSeconds": 0,
        "notifyEmailEnabled": False,
        "notifySlackEnabled": False,
        "vscodeEnabled": True,
    },
}
REFUSED = [
    ({"spec.runtime.mountEFS": True}, "spec.runtime.mountEFS", "km-substrate-ec2"),
    ({"spec.identity.allowedSecretPaths": ["/a/key"]}, "spec.identity.allowedSecretPaths", "parameter store"),
    ({"spec.execution.privileged": True}, "spec.execution.privileged", "refused"),
    ({"spec.execution.useBedrock": True}, "spec.execution.useBedrock", "km-aws"),
    ({"spec.execution.initScripts": ["a.sh"]}, "spec.execution.initScripts", "no distribution"),
    ({"spec.execution.rsync": "base"}, "spec.execution.rsync", "no distribution"),
    ({"spec.execution.rsyncPaths": [".x"]}, "spec.execution.rsyncPaths", "no distribution"),
    ({"spec.execution.rsyncFileList": "f.yaml"}, "spec.execution.rsyncFileList", "no distribution"),
    ({"spec.network.enforcement": "ebpf"}, "spec.network.enforcement", "km-net-ebpf"),
    ({"spec.network.enforcement": "both"}, "spec.network.enforcement", "km-net-ebpf"),
    (
        {"spec.sidecars": {"auditLog": {"enabled": False, "image": "x"}}},
        "spec.sidecars.auditLog.enabled",
        "evidence",
    ),
    (
        {"spec.sidecars": {"tracing": {"enabled": True, "image": "x"}}},
        "spec.sidecars.tracing.enabled",
        "collector",
    ),
    (
        {"spec.observability": {"commandLog": {"destination": "stdout"}}},
        "spec.observability.commandLog.destination",
        "not recorded",
    ),
    (
        {"spec.observability": {"networkLog": {"destination": "s3"}}},
        "spec.observability.networkLog.destination",
        "km-aws",
    ),
    (
        {"spec.observability": {"claudeTelemetry": {"enabled": True}}},
        "spec.observability.claudeTelemetry.enabled",
        "collector",
    ),
    (
        {"spec.observability": {"claudeTelemetry": {"logPrompts": True}}},
        "spec.observability.claudeTelemetry.logPrompts",
        "",
    ),
    ({"spec.observability": {"claudeTelemetry": {}}}, "spec.observability.claudeTelemetry", "collector"),
    (
        {"spec.observability": {"tlsCapture": {"enabled": True}}},
        "spec.observability.tlsCapture.enabled",
        "km-net-ebpf",
    ),
    ({"spec.observability": {"learnMode": True}}, "spec.observability.learnMode", "km-net-ebpf"),
    ({"spec.artifacts": {"paths": ["/a"]}}, "spec.artifacts.paths", "keeps files"),
    ({"spec.email": {"signing": "off"}}, "spec.email.signing", "km-mail"),
    ({"spec.email": {}}, "spec.email", "km-mail"),
    ({"spec.otp": {"secrets": ["/a/key"]}}, "spec.otp.secrets", "parameter store"),
    ({"spec.cli": {"claudeArgs": ["--x"]}}, "spec.cli.claudeArgs", "km agent run"),
    ({"spec.cli": {"notifyOnIdle": True}}, "spec.cli.notifyOnIdle", "notifier"),
    ({"spec.cli": {"notifyCooldownSeconds": 5}}, "spec.cli.notifyCooldownSeconds", "notifier"),
    (
        {"spec.cli": {"notificationEmailAddress": "a@example.org"}},
        "spec.cli.notificationEmailAddress",
        "km-mail",
    ),
    ({"spec.cli": {"notifyEmailEnabled": True}}, "spec.cli.notifyEmailEnabled", "km-mail"),
    ({"spec.cli": {"notifySlackEnabled": True}}, "spec.cli.notifySlackEnabled", "km-slack"),
    ({"spec.cli": {"notifySlackChannelOverride": "C1"}}, "spec.cli.notifySlackChannelOverride", "km-slack"),
    ({"spec.cli": {"slackArchiveOnDestroy": True}}, "spec.cli.slackArchiveOnDestroy", "km-slack"),
]


@pytest.mark.parametrize("path", ENFORCED)
def test_it_is_enforced_here(path):
    found = answers({path: ENFORCED[path]})

    assert {answer for name, answer in found.items() if name.startswith(path)} == {Answer.ENFORCED}
    assert refused({path: ENFORCED[path]}) == []


@pytest.mark.parametrize("path", INERT)
def test_it_has_no_meaning_here_and_is_listed(path):
    found = answers({path: INERT[path]})

    assert {answer for name, answer in found.items() if name.startswith(path)} == {Answer.INERT}
    assert refused({path: INERT[path]}) == []


@pytest.mark.parametrize("substrate", ["local", "docker"])
@pytest.mark.parametrize(
    ("changes", "path", "words"), REFUSED, ids=[r[1] + str(i) for i, r in enumerate(REFUSED)]
)
def test_what_nobody_does_here_is_an_error_that_says_who_would(changes, path, words, substrate):
    found = refused(changes, substrate)

    assert [path] == [p.path for p in found]
    assert words in str(found[0])
    assert substrate in found[0].message
    assert found[0].line > 1


def test_agent_settings_are_refused_whatever_their_value():
    found = refused({"spec.agent": {"maxConcurrentTasks": 1, "taskTimeout": "30m", "allowedTools": []}})

    assert {p.path for p in found} == {
        "spec.agent.maxConcurrentTasks",
        "spec.agent.taskTimeout",
        "spec.agent.allowedTools",
    }


@pytest.mark.parametrize("section", ["budget", "cli", "observability", "sidecars"])
def test_an_empty_section_asks_for_nothing(section):
    assert answers({f"spec.{section}": {}})[f"spec.{section}"] == Answer.INERT


def test_filled_defaults_are_never_refused():
    loaded = load()

    assert loaded.data["spec"]["observability"]["claudeTelemetry"]["enabled"] is True
    assert loaded.data["spec"]["agent"]["maxConcurrentTasks"] == 1
    assert not any(
        a.path.startswith(("spec.agent", "spec.observability", "spec.sidecars"))
        for a in claim_matrix(loaded, "local", CORE)
    )


@pytest.mark.parametrize("substrate", SUBSTRATES)
def test_core_has_an_answer_for_every_field_of_the_model(substrate):
    silent = [
        path
        for path in [*model_fields(), *model_sections()]
        if not any(
            (path == c.path or path.startswith(f"{c.path}."))
            and (substrate in c.substrates or "*" in c.substrates)
            for c in core_claims()
        )
    ]

    assert silent == []


def test_every_core_claim_speaks_of_a_path_of_the_model():
    for claim in core_claims():
        assert any(path == claim.path or path.startswith(f"{claim.path}.") for path in model_fields()), claim


def test_a_field_that_nobody_claims_is_an_error():
    claims = [c for c in core_claims() if not c.path.startswith("spec.network.httpsOnly")]
    found = check_claims(
        load({"spec.network.httpsOnly": True}), "local", [ClaimSource("km-core", tuple(claims), core=True)]
    )

    assert [p.path for p in found if p.severity is Severity.ERROR] == ["spec.network.httpsOnly"]
    assert "no installed plugin enforces this" in str(found)


def test_a_substrate_without_any_claim_is_one_error_that_names_its_distribution():
    (problem,) = check_claims(load(), "ec2", CORE)
    (other,) = check_claims(load(), "firecracker", CORE)

    assert (problem.path, problem.hint) == ("spec.runtime.substrate", "install km-substrate-ec2")
    assert other.path == "spec.runtime.substrate"


def claim(path, answer, by="x", *, values=(), substrates=("s",)):
    return Claim(path, substrates, answer, by, "", values)


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ([claim("spec.budget", Answer.REFUSED), claim("spec.budget.ai", Answer.ENFORCED)], Answer.ENFORCED),
        (
            [claim("spec", Answer.ENFORCED), claim("spec.budget.ai.maxSpendUSD", Answer.MISSING)],
            Answer.MISSING,
        ),
        (
            [claim("spec.budget.ai", Answer.ENFORCED), claim("spec.budget.ai", Answer.REFUSED, "y")],
            Answer.REFUSED,
        ),
        (
            [claim("spec.budget.ai", Answer.ENFORCED), claim("spec.budget.ai", Answer.MISSING, "y")],
            Answer.MISSING,
        ),
        ([claim("spec.budget.ai", Answer.INERT), claim("spec.budget.ai", Answer.ENFORCED)], Answer.ENFORCED),
        (
            [claim(CEILING, Answer.ENFORCED, values=(1,)), claim(CEILING, Answer.REFUSED)],
            Answer.ENFORCED,
        ),
        (
            [claim(CEILING, Answer.ENFORCED, values=(2,)), claim(CEILING, Answer.REFUSED)],
            Answer.REFUSED,
        ),
        ([claim(CEILING, Answer.ENFORCED, values=(True,))], None),
        ([claim("spec.budget.ai", Answer.ENFORCED, values=(1,))], None),
        ([claim("spec.budget.ai", Answer.ENFORCED, substrates=("*",))], Answer.ENFORCED),
        ([claim("spec.budget.ai", Answer.ENFORCED, substrates=("t",))], None),
        ([claim("spec.budg", Answer.ENFORCED)], None),
        ([], None),
    ],
)
def test_the_most_specific_claim_counts_and_among_equals_deny_wins(claims, expected):
    changes = {"spec.budget": {"ai": {"maxSpendUSD": 1}}}

    assert answers(changes, "s", claims)["spec.budget.ai.maxSpendUSD"] == expected


def errors(loaded, substrate, *sources):
    found = check_claims(loaded, substrate, [*CORE, *sources])
    return [problem for problem in found if problem.severity is Severity.ERROR]


def test_an_installed_provider_turns_its_own_missing_into_enforced():
    loaded = load({"spec.network.enforcement": "both"})
    provided = ClaimSource(
        "km-net-ebpf",
        (Claim("spec.network.enforcement", ("docker",), Answer.ENFORCED, "km-net-ebpf", "", ("both",)),),
        modes=frozenset({"ebpf", "both"}),
    )

    assert errors(loaded, "docker")
    assert not errors(loaded, "docker", provided)
    assert errors(loaded, "local", provided)


def test_a_field_with_an_error_of_its_own_gets_no_second_one():
    loaded = load({"spec.runtime.hibernation": True}, substrate="docker")
    found = check_claims(loaded, "docker", CORE)

    assert [p.path for p in loaded.problems] == ["spec.runtime.hibernation"]
    assert "spec.runtime.hibernation" not in {p.path for p in found}


def test_a_field_of_a_parent_is_shown_in_the_parents_file(tmp_path):
    (tmp_path / "base.yaml").write_text(
        dump_document(BASE | {"spec": BASE["spec"] | {"email": {"signing": "off"}}})
    )
    child = "apiVersion: klankermaker.ai/v1alpha1\nkind: SandboxProfile\nmetadata: {name: c}\nextends: base\n"
    (tmp_path / "c.yaml").write_text(child)
    loaded = load_profile(tmp_path / "c.yaml")
    (problem,) = [p for p in check_claims(loaded, "local", CORE) if p.severity is Severity.ERROR]

    assert problem.path == "spec.email.signing"
    assert problem.file.endswith("base.yaml")
