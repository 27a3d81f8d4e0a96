from __future__ import annotations

import types

import pytest
from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st

from km_core import __version__, hookimpl
from km_core.compile.claims import FieldAnswer
from km_core.compile.requirements import added_requirement, plan_requirements, split_requirement
from km_core.control.protocols import ControlPlaneOffer
from km_core.control.substrate import Substrate
from km_core.errors import PlanError, PluginError
from km_core.plan import BudgetPlan, HostRule, NetworkPlan, SandboxPlan
from km_core.plugins import PluginInfo, PluginRegistry, new_manager
from km_core.profile.kinds import PluginSection
from km_core.types import Answer, Claim, Meter, Sidecar

CORE = f"km-core=={__version__}"


def pretend(protocol, **values):
    """An object with every public member of a protocol."""
    members = {name: lambda *_a, **_k: () for name in vars(protocol) if not name.startswith("_")}
    return types.SimpleNamespace(**(members | values))


def substrate(name):
    return pretend(Substrate, name=name, capabilities=frozenset())


def meter(name, host):
    return pretend(Meter, name=name, hosts=(host,), injection=None)


@frozen
class Badge:
    """A plugin's section."""


def registry(**plugins):
    """A registry of plugins given as tables of hook and answer; NAME belongs to the distribution km-NAME."""
    manager = new_manager()
    infos = []
    for name, hooks in plugins.items():
        module = types.ModuleType(name)
        for hook, answer in hooks.items():
            setattr(module, hook, hookimpl(answering(answer)))
        manager.register(module, name=name)
        infos.append(PluginInfo(name, f"km_{name}", "1.5", name, "ok"))
    return PluginRegistry(manager, tuple(infos))


def answering(answer):
    def hook():
        return answer

    return hook


EVERYTHING = {
    "host": {"km_sidecars": [Sidecar("pod", "host:main")]},
    "proxy": {"km_sidecars": [Sidecar("gate", "proxy:main")], "km_enforcers": ["proxy"]},
    "ebpf": {"km_enforcers": ["ebpf"], "km_sidecars": [Sidecar("bpf", "ebpf:main")]},
    "here": {"km_substrates": [substrate("local")]},
    "there": {"km_substrates": [substrate("docker")]},
    "vendor": {"km_meters": [meter("vendor", "api.vendor.example")]},
    "rival": {"km_meters": [meter("rival", "api.rival.example")]},
    "badge": {"km_profile_sections": [PluginSection("badge", Badge, "km-badge")]},
    "chat": {"km_field_claims": [Claim("spec.cli.notifyOnIdle", ("*",), Answer.ENFORCED, "km_chat")]},
    "control": {
        "km_control_planes": [ControlPlaneOffer("embedded", "", print)],
        "km_field_claims": [Claim("spec.lifecycle", ("*",), Answer.ENFORCED, "km_control")],
    },
}
PLAN = SandboxPlan("p", "", "sb", "local")


def allowing(plan, *hosts, kind="exact", ports=()):
    rules = tuple(HostRule(host, kind, ports) for host in hosts)
    return evolve(plan, network=NetworkPlan(hosts=rules))


def required(plan, *answers, plugins=None, **rest):
    return set(plan_requirements(plan, registry(**(plugins or EVERYTHING)), answers, **rest))


BASE = {CORE, "km-host==1.5", "km-proxy==1.5", "km-here==1.5"}


def test_a_plain_profile_needs_core_supervisor_enforcer_and_substrate_and_no_control_plane():
    assert BASE == required(PLAN)


def test_another_substrate_or_mode_needs_another_distribution_instead():
    assert BASE - {"km-here==1.5"} | {"km-there==1.5"} == required(evolve(PLAN, substrate="docker"))

    other = evolve(PLAN, network=NetworkPlan(enforcement="ebpf"), runners=("pod", "bpf"))
    assert {CORE, "km-host==1.5", "km-ebpf==1.5", "km-here==1.5"} == required(other)


def test_a_substrate_that_enforces_by_itself_needs_no_enforcer():
    assert {CORE, "km-here==1.5"} == required(evolve(PLAN, runners=()), enforced_apart=False)


def test_the_plan_of_such_a_substrate_has_no_runner_and_requires_nothing_beside_it(tmp_path):
    from pathlib import Path

    from km_core.compile.pipeline import Overrides, plan_from_file
    from km_core.config import Config

    claims = [Claim("spec", ("theirs",), Answer.ENFORCED, "km_theirs")]
    alone = {"theirs": {"km_substrates": [substrate("theirs")], "km_field_claims": claims}}
    config = Config(tmp_path, tmp_path)
    file = Path(__file__).parent / "data_quickstart.yaml"

    compiled = plan_from_file(
        file, config, registry(**(EVERYTHING | alone)), Overrides(substrate="theirs")
    ).plan

    assert () == compiled.runners
    assert (CORE, "km-theirs==1.5") == compiled.requirements


def test_a_meter_is_needed_where_the_plan_allows_its_host_on_whatever_port():
    assert required(allowing(PLAN, "api.vendor.example")) == BASE | {"km-vendor==1.5"}
    assert required(allowing(PLAN, "api.vendor.example", ports=(8443,))) == BASE | {"km-vendor==1.5"}
    assert required(allowing(PLAN, "vendor.example", kind="suffix")) == BASE | {"km-vendor==1.5"}
    assert required(allowing(PLAN, "other.example")) == BASE

    everything = allowing(PLAN, "*", kind="any")
    assert required(everything) == BASE | {"km-vendor==1.5", "km-rival==1.5"}


def test_a_ceiling_needs_the_meters_of_the_hosts_that_may_be_reached_and_no_others():
    budgeted = evolve(allowing(PLAN, "api.rival.example"), budget=BudgetPlan(ai_limit_nusd=1))

    assert required(budgeted) == BASE | {"km-rival==1.5"}


def test_a_section_that_is_written_needs_its_plugin():
    written = FieldAnswer("spec.badge.text", Answer.ENFORCED, "km_badge")

    assert required(PLAN, written) == BASE | {"km-badge==1.5"}


def test_a_written_field_needs_the_plugin_whose_claim_is_its_answer():
    field = "spec.cli.notifyOnIdle"

    assert required(PLAN, FieldAnswer(field, Answer.ENFORCED, "km_chat")) == BASE | {"km-chat==1.5"}
    assert required(PLAN, FieldAnswer(field, Answer.ENFORCED, "km_other")) == BASE
    assert required(PLAN, FieldAnswer(field, Answer.INERT, "km_chat")) == BASE
    assert required(PLAN, FieldAnswer("spec.cli", Answer.ENFORCED, "km_chat")) == BASE


def test_what_a_control_plane_promises_is_kept_where_the_operator_is():
    assert required(PLAN, FieldAnswer("spec.lifecycle.ttl", Answer.ENFORCED, "km_control")) == BASE


def test_what_a_plugin_adds_gets_the_installed_version():
    assert required(evolve(PLAN, requirements=("km-chat",))) == BASE | {"km-chat==1.5"}
    assert required(evolve(PLAN, requirements=("km-chat==1.5",))) == BASE | {"km-chat==1.5"}
    assert required(evolve(PLAN, requirements=("km-far", "km-near==2"))) == BASE | {"km-far", "km-near==2"}


def test_what_a_plugin_adds_cannot_be_another_version_than_the_installed_one():
    with pytest.raises(PlanError, match="needs km-chat==2"):
        required(evolve(PLAN, requirements=("km-chat==2",)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "--index-url=https://evil.example",
        "km-x --hash=sha256:0",
        "km-x @ https://evil.example/x.whl",
        "km-x[extra]",
        "km-x; python_version>'3'",
        "km-x>=1",
        "km-x==1.*",
        "km-x==1\n--pre",
        "-e .",
        "../km-x",
        "km x",
        "km-x==",
        "\u212am-x",
    ],
)
def test_a_plugin_cannot_add_anything_that_an_installer_reads_otherwise(text):
    with pytest.raises(PluginError) as caught:
        added_requirement(text, plugin="evil")

    assert "evil" in caught.value.where


@given(st.text(max_size=40))
def test_what_is_accepted_is_a_plain_name_with_at_most_a_version(text):
    try:
        name, version = split_requirement(text)
    except PlanError:
        return
    made = f"{name}=={version}" if version else name

    assert made.isascii()
    assert not set(made) & set(" \t\r\n;@[]/\\#'\"<>~,")
    assert split_requirement(made) == (name, version)


def test_the_answer_does_not_depend_on_the_order_of_plugins():
    backwards = dict(reversed(EVERYTHING.items()))
    plan = allowing(PLAN, "*", kind="any")

    assert plan_requirements(plan, registry(**EVERYTHING)) == plan_requirements(plan, registry(**backwards))
