"""The hook specifications as a reader finds them: complete pages whose examples work, one test per hook."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest

from km_core import hookspecs
from km_core.inspection.sample import sample
from km_core.plugins import PluginInfo, PluginRegistry, new_manager
from km_core.plugins.discover import hook_arguments, problems_of
from km_core.plugins.offers import CONTRACTS
from km_core.types import AgentRequest, EndpointKind, InsideRequest

SPECS = {
    name: value
    for family in hookspecs.FAMILIES
    for name, value in vars(family).items()
    if name in hook_arguments()
}


def sections(name):
    """The sections of a hook's page by heading."""
    text = inspect.getdoc(SPECS[name])
    parts = re.split(r"^(Shape|Called|Runs in|Order|Failure|Args|Returns|Example):", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def example(name):
    return textwrap.dedent(sections(name)["Example"]).strip() + "\n"


def registered(name):
    """The example of a hook, run and registered; returns the registry and the module."""
    made = types.ModuleType(f"example_{name}")
    sys.modules[made.__name__] = made
    exec(compile(example(name), f"<example of {name}>", "exec"), vars(made))
    assert [] == problems_of(made)
    manager = new_manager()
    manager.register(made, name="example")
    return PluginRegistry(manager, (PluginInfo("example", "km-example", "1", made.__name__, "ok"),)), made


@pytest.mark.parametrize("name", SPECS)
def test_the_page_of_a_hook_says_all_that_an_author_needs(name):
    page = sections(name)

    assert re.match(r" (offer|collect|tell)\.", page["Shape"]), page["Shape"]
    for heading in ("Called", "Runs in", "Order", "Failure", "Returns", "Example"):
        assert len(page[heading].split()) >= 3, heading
    documented = re.findall(r"^    (\w+): \S", page.get("Args", ""), re.MULTILINE)
    assert list(hook_arguments()[name]) == documented
    contract = CONTRACTS[name]
    shape = page["Shape"].strip(" .\n")
    assert shape == ("tell" if name == "km_notify" else "offer" if contract.offer else "collect")


def test_every_hook_has_a_test_of_its_own():
    source = Path(__file__).read_text(encoding="utf-8")

    assert [] == [name for name in SPECS if f"def test_hook_{name}(" not in source]


def test_the_examples_pass_the_type_checker(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed here")
    for name in SPECS:
        (tmp_path / f"example_{name}.py").write_text(f'"""{name}."""\n\n{example(name)}')
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(tmp_path / "c"), "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )

    assert 0 == done.returncode, done.stdout


def test_hook_km_profile_sections():
    [section] = registered("km_profile_sections")[0].profile_sections()

    assert ("ticket", "km-ticket") == (section.key, section.distribution)


def test_hook_km_validate_profile():
    made, _ = registered("km_validate_profile")
    profile = sample()["profile"]

    assert ["metadata.labels"] == [problem.path for problem in made.validate(profile, "local")]
    profile["metadata"]["labels"] = {"team": "a"}
    assert () == made.validate(profile, "local")


def test_hook_km_compile():
    made, _ = registered("km_compile")
    from attrs import evolve

    from km_core.plan import GitPlan

    draft = sample()["draft"]
    assert () == made.additions(draft, {})
    [(plugin, added)] = made.additions(evolve(draft, git=GitPlan(mode="allowlist")), {})
    assert "example" == plugin
    assert "made from sample\n" == added.files[0].content


def test_hook_km_substrates():
    [(name, nowhere)] = registered("km_substrates")[0].substrates().items()

    assert "nowhere" == name
    assert "spec.runtime.substrate" == nowhere.problems(None, None)[0].path


def test_hook_km_lifecycle_steps(tmp_path):
    from attrs import evolve

    from km_core.control.steps import StepContext

    made, _ = registered("km_lifecycle_steps")
    plan = sample()["plan"]
    assert () == made.lifecycle_steps(plan)
    plan = evolve(plan, labels=(("card", "yes"),))
    [(name, step)] = made.lifecycle_steps(plan)
    assert "example.card" == name
    context = StepContext("sb-00000000", plan, tmp_path, None)
    step.undo(context)
    step.do(context)
    assert "sb-00000000" == (tmp_path / "card").read_text()
    step.undo(context)
    assert [] == list(tmp_path.iterdir())


def test_hook_km_enforcers():
    assert ["ebpf"] == list(registered("km_enforcers")[0].enforcers())


def test_hook_km_sidecars():
    assert ["recorder"] == list(registered("km_sidecars")[0].sidecars())


def test_hook_km_notify(tmp_path, monkeypatch):
    made, _ = registered("km_notify")
    [impl] = made.manager.hook.km_notify.get_hookimpls()
    event = sample()["event"]
    monkeypatch.delenv("KM_NOTIFY_FILE", raising=False)

    assert ([], None) == made.ask("km_notify", "example", impl.function, {"event": event})
    monkeypatch.setenv("KM_NOTIFY_FILE", str(tmp_path / "events"))
    [delivery], failure = made.ask("km_notify", "example", impl.function, {"event": event})
    assert (True, None) == (delivery.delivered, failure)
    assert event.to_json() + "\n" == (tmp_path / "events").read_text()


def test_hook_km_meters():
    [(name, meter)] = registered("km_meters")[0].meters().items()
    assert "acme" == name
    endpoint = meter.endpoint("POST", "/v1/ask", {})
    assert EndpointKind.METERED is endpoint.kind
    assert EndpointKind.REFUSED is meter.endpoint("GET", "/", {}).kind
    call = meter.plan_call(endpoint, {}, b"{}")
    parser = meter.parser(endpoint, call, 200, {})
    for piece in (b'{"usage": {"in"', b": 3, ", b'"out": 4}}'):
        parser.feed(piece)
    usage = parser.finish()
    assert (3, 4) == (usage.input_tokens, usage.output_tokens)
    lost = meter.parser(endpoint, call, 200, {}).finish()
    assert not lost.complete
    assert lost.output_tokens == call.output_limit


def test_hook_km_control_planes():
    from km_core.errors import ControlUnavailableError

    [(name, offer)] = registered("km_control_planes")[0].control_planes().items()

    assert "away" == name
    with pytest.raises(ControlUnavailableError):
        offer.connect(None).call("ping")


def test_hook_km_field_claims():
    claims = registered("km_field_claims")[0].claims()

    assert ["spec.ticket", "spec.ticket.queue"] == [claim.path for claim in claims]


def test_hook_km_egress_groups():
    [(name, group)] = registered("km_egress_groups")[0].egress_groups().items()

    assert "@our-mirror" == name == group.resolve().name


def test_hook_km_doctor_checks():
    [(name, check)] = registered("km_doctor_checks")[0].doctor_checks().items()

    assert "git" == name
    assert check.run().status in {"OK", "ERROR"}


def test_hook_km_agents():
    [(name, agent)] = registered("km_agents")[0].agents().items()

    assert "echo" == name
    assert ("echo-agent", "-x", "--", "--help") == agent.argv(AgentRequest("--help", ("-x",)))
    assert agent.result(b"\xff", 0).ok


def test_hook_km_inside_services():
    made, module = registered("km_inside_services")
    assert ["thrift"] == list(made.inside_services())

    request = InsideRequest("GET", "", "", b"", "sb-00000000")
    answer = module.answer(request, lambda op: {"ai": {"spent_nusd": 500_000_000}})
    assert {"sandbox": "sb-00000000", "spent_usd": 0.5} == answer.data
