"""Plugins that keep the contract, and every way not to."""

from __future__ import annotations

import importlib
import importlib.metadata
import itertools
import os
import re
import subprocess
import sys
import textwrap
import threading
import types

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from km_core import hookimpl
from km_core.control.steps import LifecycleStep
from km_core.errors import PluginError
from km_core.plan import BudgetPlan, PlanFile, SandboxPlan
from km_core.plugins import PluginInfo, PluginRegistry, new_manager
from km_core.plugins.discover import hook_arguments, load_entries
from km_core.plugins.offers import CONTRACTS
from km_core.plugins.ordering import in_order
from km_core.types import Answer, Claim, InsideService, Sidecar


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
def impatient(monkeypatch):
    """A short time limit for calls."""
    monkeypatch.setenv("KM_PLUGIN_TIMEOUT_S", "0.3")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A directory of real distributions; ``site(name, source, …)`` installs one, ``site.load()`` loads them."""
    made = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(str(made.path))
    yield made
    for name in list(sys.modules):
        if name.startswith("kmx_"):
            del sys.modules[name]


COUNT = itertools.count()


class Site:
    def __init__(self, path):
        self.path = path
        path.mkdir()

    def __call__(self, name, source, *, module=None, dist=None, version="9.9"):
        # A thread that hangs in an import keeps that module's lock: every module has a name of its own.
        module = module or f"kmx_{name.replace('-', '_')}_{next(COUNT)}"
        (self.path / f"{module}.py").write_text(textwrap.dedent(source))
        dist = dist or f"km-{name}"
        info = self.path / f"{dist.replace('-', '_')}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n")
        with (info / "entry_points.txt").open("a") as out:
            out.write(f"[km.plugins]\n{name} = {module}\n")
        return module

    def load(self, block=""):
        importlib.invalidate_caches()
        entries = [
            entry
            for dist in importlib.metadata.distributions(path=[str(self.path)])
            for entry in dist.entry_points
        ]
        return load_entries(entries, block=block)

    def failure(self):
        """The one failure, of a plugin whose distribution and version it names."""
        [failure] = self.load().failures
        assert "km-pretend" == failure.distribution
        assert "9.9" == failure.version
        return failure


GOOD = """
from km_core import hookimpl
KM_PLUGIN_API = 1
@hookimpl
def km_enforcers():
    return ["ebpf"]
"""


def test_a_real_distribution_is_found_by_its_metadata(site):
    site("pretend", GOOD)

    loaded = site.load()

    [info] = loaded.infos
    assert ("pretend", "km-pretend", "9.9", "ok") == (info.name, info.distribution, info.version, info.status)
    assert {"ebpf": "pretend"} == loaded.owners("km_enforcers")


@pytest.mark.parametrize(
    ("source", "what", "hint"),
    [
        ("import gone_module", "cannot be imported: ModuleNotFoundError", "reinstall km-pretend"),
        ("raise SystemExit(0)", "cannot be imported: SystemExit", "reinstall"),
        ("class Odd(BaseException): pass\nraise Odd('x')", "cannot be imported: Odd: x", "reinstall"),
        ("def (", "cannot be imported: SyntaxError", "reinstall"),
        ("import time\ntime.sleep(60)", "hangs while it is imported: no answer within 0.3 s", "report it"),
        ("", "states no KM_PLUGIN_API", "KM_PLUGIN_API = 1"),
        ("KM_PLUGIN_API = '1'", "states plugin API '1', which is no integer", "KM_PLUGIN_API = 1"),
        ("KM_PLUGIN_API = True", "states plugin API True, which is no integer", "KM_PLUGIN_API = 1"),
        ("KM_PLUGIN_API = 2", "states plugin API 2, this km has 1", "install a newer km-core"),
        ("KM_PLUGIN_API = 0", "states plugin API 0, this km has 1", "made for this km"),
        (
            GOOD.replace("km_enforcers", "km_enforcer"),
            "does not know: km_enforcer",
            "did you mean km_enforcers?",
        ),
        (GOOD.replace("@hookimpl", ""), "defines km_enforcers without @hookimpl", "import hookimpl"),
        (GOOD.replace("()", "(mode)"), "asks km_enforcers for the argument mode", "no arguments"),
        (
            "from km_core import hookimpl\nKM_PLUGIN_API = 1\n@hookimpl\ndef km_notify(evnt): pass",
            "asks km_notify for the argument evnt",
            "did you mean event?",
        ),
        (GOOD.replace("()", "(*all)"), "takes *all in km_enforcers", "no arguments"),
        (GOOD.replace("def", "async def"), "makes km_enforcers asynchronous", "not async def"),
        (
            GOOD.replace("@hookimpl", "@hookimpl(wrapper=True)"),
            "makes km_enforcers a wrapper",
            "@hookimpl alone",
        ),
    ],
)
def test_a_plugin_that_cannot_be_used_is_left_out_with_one_clear_message(
    site, source, what, hint, *, impatient, capsys
):
    site("pretend", source)
    site("well", GOOD)

    failure = site.failure()

    assert what in failure.what
    assert hint in failure.hint
    told = capsys.readouterr()
    assert "" == told.out
    assert 1 == told.err.count("warning: plugin pretend (km-pretend 9.9): ")
    assert ["ebpf"] == list(site.load().enforcers())


def test_an_import_that_prints_is_told_and_kept_out_of_standard_output(site, capsys):
    site("pretend", "import sys\nprint('surprise')\nsys.stdout.flush()" + GOOD)

    assert () == site.load().failures
    told = capsys.readouterr()
    assert ("", True) == (told.out, "plugin pretend (km-pretend) prints while it is imported" in told.err)


def test_a_name_that_two_distributions_register_is_used_by_neither(site):
    site("pretend", GOOD, dist="km-one")
    site("pretend", GOOD, dist="km-two")

    loaded = site.load()

    assert ["km-one", "km-two"] == sorted(info.distribution for info in loaded.infos)
    assert {"failed"} == {info.status for info in loaded.infos}
    assert "registered twice: by km-one 9.9 and by km-two 9.9" in loaded.failures[0].what.replace(
        "km-two 9.9 and by km-one 9.9", "km-one 9.9 and by km-two 9.9"
    )
    assert {} == loaded.enforcers()


def test_one_module_under_two_names_is_used_once_and_the_other_name_is_told(site):
    name = site("pretend", GOOD)
    site("second", GOOD, module=name)

    loaded = site.load()

    assert ["failed", "ok"] == sorted(info.status for info in loaded.infos)
    assert "cannot be registered" in loaded.failures[0].what


def test_a_plugin_can_be_blocked_by_name_and_an_unknown_name_is_told(site, capsys):
    site("pretend", "raise RuntimeError")

    [info] = site.load("pretend, pretent").infos

    assert "blocked" == info.status
    assert "names 'pretent', which is not installed; did you mean pretend?" in capsys.readouterr().err


def test_what_is_missing_because_it_failed_or_is_blocked_is_said_instead_of_install(site):
    site("pretend", "KM_PLUGIN_API = 3", dist="Km_Substrate.X")

    why, hint = site.load().remedy("km-substrate-x")
    assert "Km_Substrate.X 9.9 is installed but failed to load: states plugin API 3" in why
    assert "newer km-core" in hint
    why, hint = site.load("pretend").remedy("km-substrate-x")
    assert "is installed but blocked" in why
    assert "KM_BLOCK_PLUGINS" in hint
    assert ("failed plugins: pretend", "install km-other") == site.load().remedy("km-other")


def hook(body, name="km_sidecars", arguments=""):
    """A plugin module whose hook has the given body."""
    scope = {"Sidecar": Sidecar}
    exec(f"def {name}({arguments}):\n" + textwrap.indent(textwrap.dedent(body), "    "), scope)
    return module("a", **{name: scope[name]})


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("return 5", "returned a int where an iterable is expected"),
        ("return None", "returned None where an iterable is expected"),
        ("return 'gate'", "returned a str where an iterable is expected"),
        ("return ['gate']", "returned a str where a Sidecar is expected"),
        ("return [None]", "returned None where a Sidecar is expected"),
        ("return [Sidecar('Gate', 'm:f')]", "returned a Sidecar 'Gate' whose name is not a word"),
        ("return [Sidecar('', 'm:f')]", "whose name is not a word"),
        ("return [Sidecar(7, 'm:f')]", "returned a Sidecar whose name is not a word"),
        ("return [Sidecar('gate', 'main')]", "whose target is not of the form module:function"),
        ("return [Sidecar('gate', 'm:f', 5)]", "whose summary is no text"),
        ("yield Sidecar('gate', 'm:f')\nraise RuntimeError('half way')", "RuntimeError: half way"),
        ("raise SystemExit(0)", "km_sidecars failed: SystemExit: 0"),
        ("while True:\n    __import__('time').sleep(0.05)", "km_sidecars hangs: no answer within 0.3 s"),
        ("while True:\n    yield Sidecar('gate', __import__('time').sleep(0.05) or 'm:f')", "hangs"),
    ],
)
def test_an_offer_that_breaks_the_contract_disables_its_plugin_whole(body, what, monkeypatch, capsys):
    monkeypatch.setenv("KM_PLUGIN_TIMEOUT_S", "0.3")
    made = registry(a=hook(body), b=module("b", km_sidecars=sidecars("pod")))

    assert ["pod"] == list(made.sidecars())
    [failure] = made.failures
    assert what in failure.what
    assert ("a", "dist-a", "1.0") == (failure.plugin, failure.distribution, failure.version)
    # It is told once and not asked again.
    assert ["pod"] == list(made.sidecars())
    assert 1 == capsys.readouterr().err.count("warning: ")


@pytest.mark.parametrize(
    ("name", "arguments", "ask"),
    [
        ("km_field_claims", "", lambda r: r.claims()),
        ("km_validate_profile", "profile", lambda r: r.validate({}, "local")),
        ("km_compile", "draft", lambda r: r.additions(plan(), {})),
        ("km_lifecycle_steps", "plan", lambda r: r.lifecycle_steps(plan())),
    ],
)
@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("return [object()]", "where a"),
        ("raise ValueError('x')", "failed: ValueError: x"),
        ("__import__('time').sleep(60)", "hangs: no answer within 0.3 s"),
    ],
)
def test_where_a_plugin_decides_its_failure_is_an_error(name, arguments, ask, body, what, *, impatient):
    with pytest.raises(PluginError, match=re.escape(what)) as caught:
        ask(registry(a=hook(body, name, arguments)))

    assert "plugin a (dist-a 1.0)" == caught.value.where


@pytest.mark.parametrize(
    ("name", "make", "what"),
    [
        (
            "km_field_claims",
            lambda: Claim("spec.x[0]", ("*",), Answer.INERT, "me"),
            "path is not a dotted path",
        ),
        ("km_field_claims", lambda: Claim("spec.x", "local", Answer.INERT, "me"), "substrates is no tuple"),
        ("km_field_claims", lambda: Claim("spec.x", ("*",), "inert", "me"), "answer is none of enforced"),
        (
            "km_lifecycle_steps",
            lambda: LifecycleStep("x", "after", print, print),
            "phase is none of prepared",
        ),
        ("km_lifecycle_steps", lambda: LifecycleStep("X", "prepared", print, print), "name is not a word"),
        ("km_lifecycle_steps", lambda: LifecycleStep("x", "prepared", None, print), "do cannot be called"),
        (
            "km_lifecycle_steps",
            lambda: LifecycleStep("x", "prepared", print, print, fatal=1),
            "neither True nor",
        ),
    ],
)
def test_an_item_with_an_invalid_field_is_named_with_the_field(name, make, what):
    made = registry(a=module("a", **{name: lambda: [make()]}))

    with pytest.raises(PluginError, match=re.escape(what)):
        made.lifecycle_steps(plan()) if name == "km_lifecycle_steps" else made.claims()


@pytest.mark.parametrize(
    "parts",
    [
        {"env": {"A": "1"}},
        {"env": (("1A", "x"),)},
        {"files": (("path", "content"),)},
        {"files": (PlanFile("relative", "x"),)},
        {"files": (PlanFile("/x", "x", 0o4755),)},
        {"runners": "mail"},
    ],
)
def test_additions_that_no_plan_can_hold_are_refused(parts):
    with pytest.raises(PluginError, match="km_compile returned a PlanAdditions whose"):
        registry(a=module("a", km_compile=adding(**parts))).additions(plan(), {})


def test_a_substrate_that_lacks_a_member_says_which():
    class Half:
        name = "half"
        capabilities = frozenset()

        def problems(self, plan, config):
            return ()

    made = registry(a=module("a", km_substrates=lambda: [Half()]))

    assert {} == made.substrates()
    assert "which is no Substrate: it has no prepare()" in made.failures[0].what


def test_an_interrupt_by_the_operator_passes_through_a_plugin():
    def km_sidecars():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        registry(a=module("a", km_sidecars=km_sidecars)).sidecars()


def test_what_a_hook_prints_goes_to_standard_error_and_is_told_once(capsys):
    def km_sidecars():
        print("debugging")
        sys.stdout.buffer.write(b"more")
        return []

    registry(a=module("a", km_sidecars=km_sidecars)).sidecars()

    told = capsys.readouterr()
    assert "" == told.out
    assert "plugin a (dist-a 1.0): km_sidecars prints to standard output" in told.err


def test_what_a_hook_writes_to_the_descriptor_or_from_another_thread_stays_out_too(capfd):
    def km_sidecars():
        os.write(1, b"low")
        subprocess.run(["echo", "program"], check=True)
        inner = registry(b=module("b", km_sidecars=lambda: print("inner") or []))
        workers = [threading.Thread(target=inner.sidecars) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return []

    registry(a=module("a", km_sidecars=km_sidecars)).sidecars()
    print("own")

    told = capfd.readouterr()
    assert "own\n" == told.out
    assert all(word in told.err for word in ("low", "program", "inner"))


def test_an_error_of_a_plugin_shows_no_secret(capsys):
    def km_sidecars():
        raise RuntimeError("cannot use sk-ant-abcdefghijklmnop for api")

    made = registry(a=module("a", km_sidecars=km_sidecars))
    made.sidecars()

    assert "sk-ant" not in str(made.failures[0]) + capsys.readouterr().err


def test_the_trace_tells_plugin_hook_time_and_outcome_and_no_values(capsys, monkeypatch):
    monkeypatch.setenv("KM_TRACE_PLUGINS", "1")

    def km_validate_profile(profile):
        return []

    def km_field_claims():
        raise ValueError("the value")

    made = registry(a=module("a", km_validate_profile=km_validate_profile, km_field_claims=km_field_claims))
    made.validate({"secret": "value-of-the-profile"}, "local")
    with pytest.raises(PluginError):
        made.claims()

    lines = capsys.readouterr().err
    assert re.search(r"trace: plugin a: km_validate_profile: [0-9.]+ ms: ok, 0 items\n", lines)
    assert re.search(r"trace: plugin a: km_field_claims: [0-9.]+ ms: failed: ValueError\n", lines)
    assert "value" not in lines.replace("ValueError", "")


def test_offers_are_asked_once():
    asked = []

    def km_sidecars():
        asked.append(1)
        return [Sidecar("gate", "m:f")]

    made = registry(a=module("a", km_sidecars=km_sidecars))
    for _ in range(3):
        assert ["gate"] == list(made.sidecars())
    assert [1] == asked


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdefx"), max_size=3)))
def test_steps_come_after_what_they_wait_for_or_name_a_real_cycle(graph):
    steps = {
        name: LifecycleStep(name, "prepared", print, print, after=tuple(after))
        for name, after in graph.items()
    }

    order, cycle = in_order(steps)

    for position, name in enumerate(order):
        assert all(other in order[:position] for other in graph[name] if other in graph)
    if cycle:
        assert cycle[0] == cycle[-1]
        assert all(later in graph[earlier] for earlier, later in itertools.pairwise(cycle))
    else:
        assert sorted(graph) == sorted(order)


def test_a_cycle_of_steps_is_an_error_that_names_them():
    step = LifecycleStep("x", "running", print, print, after=("a.x",))

    with pytest.raises(PluginError, match=r"a\.x -> a\.x"):
        registry(a=module("a", km_lifecycle_steps=lambda: [step])).lifecycle_steps(plan())


def test_two_steps_of_one_name_are_an_error_or_left_out_when_a_sandbox_goes():
    step = LifecycleStep("x", "running", print, print)
    made = registry(a=module("a", km_lifecycle_steps=lambda: [step, step]))

    with pytest.raises(PluginError, match="two steps"):
        made.lifecycle_steps(plan())
    broken = []
    assert ["a.x"] == [name for name, _ in made.lifecycle_steps(plan(), broken)]
    assert 1 == len(broken)


def test_a_name_of_the_gates_own_cannot_be_offered():
    offered = module("a", km_inside_services=lambda: [InsideService("budget", "m:f")])

    with pytest.raises(PluginError, match="which the gate has itself"):
        registry(a=offered).inside_services()


def test_every_hook_has_a_contract_and_every_contract_a_hook():
    assert set(hook_arguments()) == set(CONTRACTS)


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

    assert "install km-substrate-local, km-net-proxy and km-embedded" in [
        p.hint for p in problems if p.path == "spec.runtime.substrate"
    ]


def test_under_a_ceiling_a_plugin_that_cannot_be_imported_may_be_the_meter_that_is_missing(site):
    site("mine", "raise RuntimeError('no wheel for this machine')")
    registry = site.load()
    plan = SandboxPlan(profile="t", profile_digest="0", prefix="sb", substrate="local")
    registry.refuse_broken(plan)
    with pytest.raises(PluginError, match="may meter a host") as caught:
        registry.refuse_broken(evolve(plan, budget=BudgetPlan(ai_limit_nusd=1)))
    assert "KM_BLOCK_PLUGINS=mine" in caught.value.hint
