from __future__ import annotations

import types

import pytest

from km_core import hookimpl
from km_core.errors import PluginError
from km_core.plugins import PluginInfo, PluginRegistry, load_plugins, new_manager
from km_core.types import Sidecar


def module(name, **hooks):
    made = types.ModuleType(name)
    made.KM_PLUGIN_API = 1
    for hook, function in hooks.items():
        setattr(made, hook, hookimpl(function))
    return made


def registry(**modules):
    manager = new_manager()
    infos = []
    for name, plugin in modules.items():
        manager.register(plugin, name=name)
        infos.append(PluginInfo(name, f"dist-{name}", "1.0", name, "ok"))
    return PluginRegistry(manager, tuple(infos))


def sidecars(*names):
    def km_sidecars():
        return [Sidecar(name, "module:main") for name in names]

    return km_sidecars


def test_offers_of_all_plugins_are_found_by_name():
    found = registry(
        a=module("a", km_sidecars=sidecars("pod")), b=module("b", km_sidecars=sidecars("gate"))
    ).sidecars()

    assert ["gate", "pod"] == list(found)


def test_one_name_offered_twice_is_refused_naming_both_distributions():
    both = registry(a=module("a", km_sidecars=sidecars("gate")), b=module("b", km_sidecars=sidecars("gate")))

    with pytest.raises(PluginError, match="already offered by") as caught:
        both.sidecars()

    assert "dist-a 1.0" in str(caught.value)
    assert "dist-b 1.0" in str(caught.value)


def test_a_plugin_that_raises_is_disabled_and_named_and_the_others_stay(capsys):
    def km_sidecars():
        raise RuntimeError("boom")

    mixed = registry(a=module("a", km_sidecars=km_sidecars), b=module("b", km_sidecars=sidecars("gate")))

    assert ["gate"] == list(mixed.sidecars())
    assert ["a"] == [failure.plugin for failure in mixed.failures]
    assert "boom" in capsys.readouterr().err


def test_an_exception_in_a_collecting_hook_is_an_error_not_an_absence():
    def km_field_claims():
        raise RuntimeError("boom")

    with pytest.raises(PluginError, match="km_field_claims failed"):
        registry(a=module("a", km_field_claims=km_field_claims)).claims()


def test_an_offer_without_a_name_is_refused():
    def km_enforcers():
        return [""]

    bad = registry(a=module("a", km_enforcers=km_enforcers))

    assert {} == bad.enforcers()
    assert "is not a word" in bad.failures[0].what


@pytest.fixture
def entry(monkeypatch):
    """Pretend that one distribution with the given module is installed."""
    import km_core.plugins.discover as subject

    class Dist:
        name = "km-pretend"
        version = "9.9"

    class Entry:
        name = "pretend"
        value = "pretend_module"
        dist = Dist()

        def __init__(self, made):
            self.made = made

        def load(self):
            if isinstance(self.made, Exception):
                raise self.made
            return self.made

    def install(made):
        monkeypatch.setattr(subject, "entry_points", lambda group: [Entry(made)])
        load_plugins.cache_clear()
        return load_plugins()

    yield install
    load_plugins.cache_clear()


def test_a_plugin_for_another_api_is_left_out_with_a_reason(entry):
    made = module("pretend")
    made.KM_PLUGIN_API = 2

    [info] = entry(made).infos

    assert "failed" == info.status
    assert "plugin API 2" in info.detail


def test_a_plugin_that_cannot_be_imported_is_left_out_with_a_reason(entry):
    [info] = entry(ImportError("no module named gone")).infos

    assert ("failed", "km-pretend") == (info.status, info.distribution)
    assert "no module named gone" in info.detail


def test_a_misspelt_hook_is_an_error(entry):
    [info] = entry(module("pretend", km_sidecar=sidecars("gate"))).infos

    assert "failed" == info.status
    assert "does not know" in info.detail


def test_a_plugin_can_be_blocked_by_name(entry, monkeypatch):
    monkeypatch.setenv("KM_BLOCK_PLUGINS", "pretend, other")

    [info] = entry(module("pretend", km_sidecars=sidecars("gate"))).infos

    assert "blocked" == info.status


def plan():
    from km_core.plan import SandboxPlan

    return SandboxPlan("p", "", "sb", "local")


def adding(**parts):
    from km_core.plan import PlanAdditions

    def km_compile(draft, profile):
        return PlanAdditions(**parts)

    return km_compile


def test_a_plugins_additions_reach_the_plan():
    from km_core.compile.pipeline import _with_additions
    from km_core.plan import PlanFile

    made = registry(
        a=module(
            "a",
            km_compile=adding(
                env=(("X", "1"),), files=(PlanFile("/x", "y"),), runners=("mail",), requirements=("km-mail",)
            ),
        )
    )

    compiled = _with_additions(plan(), {}, made)

    assert (("X", "1"),) == compiled.workload.env
    assert ("/x",) == tuple(file.path for file in compiled.workload.files)
    assert "mail" in compiled.runners
    assert "km-mail" in compiled.requirements


def test_two_plugins_that_set_one_variable_are_a_conflict_that_names_the_second():
    from km_core.compile.pipeline import _with_additions

    both = registry(
        a=module("a", km_compile=adding(env=(("X", "1"),))),
        b=module("b", km_compile=adding(env=(("X", "2"),))),
    )

    with pytest.raises(PluginError, match="variable X") as caught:
        _with_additions(plan(), {}, both)

    assert "b" == caught.value.plugin


def test_a_mode_that_nothing_installed_enforces_is_refused_by_name(tmp_path, monkeypatch):
    from pathlib import Path

    from km_core.compile.pipeline import check_file
    from km_core.config import load_config

    text = Path(__file__).with_name("data_quickstart.yaml")
    problems, _ = check_file(text, load_config({"KM_HOME": str(tmp_path)}), registry(), substrate="local")

    assert "install km-substrate-local and km-net-proxy" in [
        p.hint for p in problems if p.path == "spec.runtime.substrate"
    ]
