"""``km plugins claims``, and a stranger's substrate from its claims to a plan."""

from __future__ import annotations

import json
import types

import pytest
import yaml

from km_core import hookimpl
from km_core.cli.main import main
from km_core.compile.claims import claim_sources, claims_as_on, field_table, model_fields
from km_core.compile.pipeline import Overrides, check_file, plan_from_file
from km_core.config import load_config
from km_core.control.substrate import Substrate
from km_core.errors import ProfileError
from km_core.plugins import PluginInfo, PluginRegistry, new_manager
from km_core.profile.kinds import Flag, PluginSection, optional
from km_core.profile.model import SUBSTRATES
from km_core.types import Answer, Claim, Severity

PROFILE = yaml.safe_load("""
apiVersion: klankermaker.ai/v1alpha1
kind: SandboxProfile
metadata: {name: quiet}
spec:
  lifecycle: {ttl: 1h, idleTimeout: 30m, teardownPolicy: destroy}
  runtime: {substrate: quiet, instanceType: none, region: us-east-1}
  execution: {shell: /bin/sh, workingDir: /workspace}
  sourceAccess: {mode: none}
  network: {egress: {allowedDNSSuffixes: [], allowedHosts: []}}
  identity: {roleSessionDuration: 1h, allowedRegions: [us-east-1], sessionPolicy: minimal}
""")


def pretend_substrate(name):
    members = {member: lambda *_a, **_k: () for member in vars(Substrate) if not member.startswith("_")}
    return types.SimpleNamespace(**members | {"name": name, "capabilities": frozenset()})


def quiet_claims():
    """A place without any network: it keeps every promise of a profile that allows nothing."""
    own = "km-substrate-quiet"

    def says(path, answer=Answer.ENFORCED, note="", values=()):
        return Claim(path, ("quiet",), answer, own, note, values)

    nothing = ((),)
    lists = ("spec.network.egress.allowedDNSSuffixes", "spec.network.egress.allowedHosts")
    return claims_as_on(
        "local",
        "quiet",
        gate=False,
        but=[
            says("spec.network", Answer.REFUSED, "there is no network"),
            says("spec.network.enforcement", values=("proxy",)),
            says("spec.network.httpsOnly"),
            *(says(path, values=nothing) for path in lists),
            says("spec.sourceAccess", Answer.REFUSED, "there is no network"),
            says("spec.sourceAccess.mode", values=("none",)),
            says("spec.budget", Answer.REFUSED, "there is nothing to spend on"),
        ],
    )


def registry(**plugins):
    """Each plugin as a table of hook and answer; NAME belongs to the distribution km-NAME."""
    manager, infos = new_manager(), []
    for name, hooks in plugins.items():
        module = types.ModuleType(name)
        for hook, answer in hooks.items():
            setattr(module, hook, hookimpl(answering(answer)))
        manager.register(module, name=name)
        infos.append(PluginInfo(name, f"km-{name.replace('_', '-')}", "1.5", name, "ok"))
    return PluginRegistry(manager, tuple(infos))


def answering(answer):
    def hook():
        return answer

    return hook


QUIET = {"km_substrates": [pretend_substrate("quiet")], "km_field_claims": quiet_claims()}


def write(tmp_path, **changes):
    data = json.loads(json.dumps(PROFILE))
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = data["spec"]
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    file = tmp_path / "quiet.yaml"
    file.write_text(yaml.safe_dump(data))
    return file


def errors(file, plugins, tmp_path, substrate="quiet"):
    config = load_config({"KM_HOME": str(tmp_path)})
    problems, _ = check_file(file, config, plugins, substrate=substrate)
    return {problem.path: str(problem) for problem in problems if problem.severity is Severity.ERROR}


def test_a_strangers_substrate_compiles_with_nothing_else_installed(tmp_path):
    config = load_config({"KM_HOME": str(tmp_path)})
    plugins = registry(substrate_quiet=QUIET)
    plan = plan_from_file(write(tmp_path), config, plugins, Overrides()).plan

    assert ("quiet", ()) == (plan.substrate, plan.runners)
    assert "km-net-proxy" not in " ".join(plan.requirements)
    assert any(text.startswith("km-substrate-quiet==") for text in plan.requirements)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"network__egress__allowedHosts": ["a.test"]}, "spec.network.egress.allowedHosts"),
        ({"network__egress__allowedDNSSuffixes": [".a.test"]}, "spec.network.egress.allowedDNSSuffixes"),
        ({"network__enforcement": "both"}, "spec.network.enforcement"),
        ({"budget": {"ai": {"maxSpendUSD": 1}}}, "spec.budget.ai.maxSpendUSD"),
        ({"sourceAccess__mode": "allowlist"}, "spec.sourceAccess.mode"),
        ({"execution__privileged": True}, "spec.execution.privileged"),
        (
            {"sidecars": {"httpProxy": {"enabled": True, "image": "x"}}},
            "spec.sidecars.httpProxy.enabled",
        ),
    ],
)
def test_what_a_strangers_substrate_cannot_do_is_refused_by_name(tmp_path, changes, path):
    found = errors(write(tmp_path, **changes), registry(substrate_quiet=QUIET), tmp_path)

    assert [path] == list(found)
    assert "quiet" in found[path]


def test_a_second_plugin_cannot_open_what_the_substrate_refuses(tmp_path):
    loud = {
        "km_field_claims": [Claim("spec", ("*",), Answer.ENFORCED, "km-substrate-quiet")],
        "km_enforcers": ["both"],
    }
    plugins = registry(substrate_quiet=QUIET, loud=loud)
    file = write(tmp_path, network__egress__allowedHosts=["a.test"], budget={"ai": {"maxSpendUSD": 1}})

    assert {"spec.network.egress.allowedHosts", "spec.budget.ai.maxSpendUSD"} == set(
        errors(file, plugins, tmp_path)
    )
    with pytest.raises(ProfileError):
        plan_from_file(file, load_config({"KM_HOME": str(tmp_path)}), plugins, Overrides())


def test_a_field_that_nobody_claims_there_names_who_is_not_heard(tmp_path):
    bare = {"km_substrates": [pretend_substrate("quiet")], "km_field_claims": quiet_claims()[:0]}
    loud = {"km_field_claims": [Claim("spec", ("*",), Answer.ENFORCED, "km-loud")]}
    found = errors(write(tmp_path), registry(substrate_quiet=bare, loud=loud), tmp_path)

    assert "spec.network.egress.allowedHosts" in found
    assert "the claim of km-loud does not count" in found["spec.network.egress.allowedHosts"]


def test_a_claim_counts_by_the_plugin_that_makes_it_not_by_the_name_it_gives(tmp_path):
    impostor = {"km_field_claims": [Claim("spec.email", ("*",), Answer.ENFORCED, "km-mail")]}
    provider = {"km_field_claims": [Claim("spec.email", ("*",), Answer.ENFORCED, "km-mail")]}
    file = write(tmp_path, email={"signing": "off"})

    assert "spec.email.signing" in errors(file, registry(substrate_quiet=QUIET, other=impostor), tmp_path)
    assert not errors(file, registry(substrate_quiet=QUIET, mail=provider), tmp_path)


def test_the_matrix_has_a_plugins_sections_and_substrates():
    from attrs import frozen

    @frozen(kw_only=True)
    class Badge:
        """A section."""

        loud: bool = optional("loud", Flag(), "Whether it is loud.", default=False)

    claims = [Claim("spec.badge", ("*",), Answer.ENFORCED, "km-badge")]
    badge = {"km_profile_sections": [PluginSection("badge", Badge, "km-badge")], "km_field_claims": claims}
    plugins = registry(substrate_quiet=QUIET, badge=badge)
    rows = field_table(claim_sources(plugins), ["quiet"], sections=plugins.profile_sections())

    assert {"km-badge"} == {row.by for row in rows if row.path == "spec.badge.loud"}
    assert {*model_fields(), "spec.badge.loud"} == {row.path for row in rows}


def test_the_command_prints_every_field_on_every_substrate(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KM_HOME", str(tmp_path))

    assert 0 == main(["plugins", "claims", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert set(model_fields()) <= {row["field"] for row in rows}
    assert set(SUBSTRATES) <= {row["substrate"] for row in rows}
    assert {"field", "substrate", "values", "answer", "by", "note", "unheard"} == set(rows[0])

    assert 0 == main(["plugins", "claims", "--substrate", "local", "--field", "spec.network.enforcement"])
    text = capsys.readouterr().out
    assert "\x1b" not in text
    first, second = text.splitlines()[1:]
    assert ["spec.network.enforcement", "local", "proxy", "enforced"] == first.split()[:4]
    assert ["spec.network.enforcement", "local", "ebpf,", "both", "missing"] == second.split()[:5]


def test_an_unknown_field_or_substrate_is_not_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KM_HOME", str(tmp_path))

    assert 5 == main(["plugins", "claims", "--field", "spec.network.enforcment", "--json"])
    assert "spec.network.enforcement" in json.loads(capsys.readouterr().out)["error"]["hint"]
    assert 5 == main(["plugins", "claims", "--substrate", "moon", "--json"])
    assert "local" in json.loads(capsys.readouterr().out)["error"]["hint"]
