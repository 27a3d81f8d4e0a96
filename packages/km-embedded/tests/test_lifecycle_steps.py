"""Steps that plugins add to a creation, against a real kmd: acting, undoing, and what interrupts them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import types

import pytest

from km_core import hookimpl
from km_core.control.steps import LifecycleStep
from km_core.errors import PluginError, ProvisionError
from km_core.lifecycle.create import create_sandbox
from km_core.lifecycle.power import destroy_sandbox, reconcile
from km_core.lifecycle.session import Session
from km_core.plan import BudgetPlan, LifecyclePlan, SandboxPlan
from km_core.plugins import PluginInfo, PluginRegistry, new_manager
from km_core.types import SandboxState

PLAN = SandboxPlan("p", "0" * 64, "sb", "paper", lifecycle=LifecyclePlan(ttl_s=3600))


class Paper:
    """A substrate whose sandboxes are files in a directory, so that a killed process leaves them."""

    name = "paper"
    capabilities = frozenset({"stop"})

    def __init__(self, root, log):
        self.root, self.log = root, log
        root.mkdir(exist_ok=True)

    def problems(self, plan, config):
        return ()

    def prepare(self, box):
        self.log("prepare")
        (self.root / box.id).write_text("prepared")

    def start(self, box):
        self.log("start")
        (self.root / box.id).write_text("running")

    def stop(self, box):
        (self.root / box.id).unlink(missing_ok=True)

    pause = resume = stop

    def destroy(self, box):
        self.log("destroy")
        (self.root / box.id).unlink(missing_ok=True)

    def exec(self, box, argv, **options):
        return 0

    def status(self, box):
        return {"running": (self.root / box.id).exists()}

    def leftovers(self, config):
        return ()

    def remove_leftover(self, config, leftover):
        raise NotImplementedError


@pytest.fixture
def bench(daemon, config):
    config.home.parent.joinpath("marks").mkdir()
    return Bench(daemon, config)


class Bench:
    def __init__(self, daemon, config):
        self.daemon, self.config = daemon, config
        self.marks = config.home.parent / "marks"
        self.book = config.home.parent / "log"
        self.paper = Paper(config.home.parent / "paper", self.log)

    def log(self, line):
        with self.book.open("a") as out:
            out.write(line + "\n")

    @property
    def lines(self):
        return self.book.read_text().split()

    def step(self, name, phase="prepared", *, do=None, undo=None, **options):
        """A step that puts a mark outside everything km owns, and takes it away."""

        def act(context):
            self.log(f"do:{name}")
            (self.marks / f"{context.sandbox_id}.{name}").touch()
            if do is not None:
                do(context)

        def take(context):
            self.log(f"undo:{name}")
            if undo is not None:
                undo(context)
            (self.marks / f"{context.sandbox_id}.{name}").unlink(missing_ok=True)

        return LifecycleStep(name, phase, act, take, **options)

    def session(self, **plugins):
        """A session in which each plugin adds the given steps, or has the given hook."""
        manager = new_manager()
        infos = []

        def module(name, hook, function):
            made = types.ModuleType(name)
            setattr(made, hook, hookimpl(function))
            manager.register(made, name=name)
            infos.append(PluginInfo(name, f"km-{name}", "1.0", name, "ok"))

        module("papers", "km_substrates", lambda: [self.paper])
        for name, steps in plugins.items():
            module(name, "km_lifecycle_steps", steps if callable(steps) else (lambda steps=steps: steps))
        return Session(self.config, PluginRegistry(manager, tuple(infos)), self.daemon.connect())

    def left(self):
        return sorted(path.name.partition(".")[2] for path in self.marks.iterdir())


def create(session, plan=PLAN):
    return create_sandbox(session, plan, "profile text\n")


def test_steps_act_in_their_phase_and_order_and_are_undone_in_reverse_after_the_workload(bench):
    session = bench.session(
        b=[bench.step("late", "running"), bench.step("first", after=("c.second", "gone.away"))],
        c=[bench.step("second")],
    )

    record = create(session)

    assert ["prepare", "do:second", "do:first", "start", "do:late"] == bench.lines
    steps = [step["step"] for step in session.control.call("journal.list", id=record.id)]
    assert ["prepare", "c.second", "b.first", "start", "b.late"] == [
        s for s in steps if s in {"prepare", "start"} or "." in s
    ]
    bench.book.unlink()
    destroy_sandbox(session, record)
    assert ["destroy", "undo:late", "undo:first", "undo:second"] == bench.lines
    assert [] == bench.left()


def test_a_step_that_fails_rolls_everything_back_and_names_its_plugin(bench, capsys):
    def refuse(context):
        print("not on standard output")
        raise ProvisionError("no channel left", hint="archive one")

    session = bench.session(slack=[bench.step("identity"), bench.step("z-channel", do=refuse)])

    with pytest.raises(
        PluginError, match=r"km-slack 1\.0.*slack\.z-channel failed: no channel left"
    ) as caught:
        create(session)

    assert "archive one" == caught.value.hint
    assert ([], []) == (bench.left(), session.records())
    assert "" == capsys.readouterr().out


def test_what_a_program_that_a_step_starts_prints_stays_out_of_the_commands_answer(bench, capfd):
    def shout(context):
        subprocess.run(["/bin/sh", "-c", "echo from a program"], check=True)

    session = bench.session(x=[bench.step("one", do=shout, undo=shout)])
    destroy_sandbox(session, create(session))

    told = capfd.readouterr()
    assert ("", 2) == (told.out, told.err.count("from a program"))


def test_a_step_that_fails_while_the_workload_runs_ends_the_workload_before_anything_is_undone(bench):
    def refuse(context):
        raise SystemExit(3)

    session = bench.session(x=[bench.step("one", "running", do=refuse)])

    with pytest.raises(PluginError, match="SystemExit"):
        create(session)

    assert ["destroy", "undo:one"] == bench.lines[bench.lines.index("do:one") + 1 :][:2]
    assert [] == session.records()


def test_a_step_that_is_not_fatal_is_a_warning_an_event_and_no_more(bench, capsys):
    def refuse(context):
        raise OSError("nobody listens")

    session = bench.session(x=[bench.step("one", do=refuse, fatal=False)])

    record = create(session)

    assert SandboxState.RUNNING is record.state
    assert (
        "warning: plugin x (km-x 1.0): the step x.one failed: OSError: nobody listens"
        in capsys.readouterr().err
    )
    chain = (bench.config.audit_dir(record.id) / "kmd.jsonl").read_text().splitlines()
    assert "step_failed" in [json.loads(line)["kind"] for line in chain]
    destroy_sandbox(session, record)
    assert [] == bench.left()


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", ["x.early", "x.late", "start"])
def test_what_a_killed_creation_left_of_a_step_is_undone_by_reconcile(bench, step, moment, monkeypatch):
    steps = [bench.step("early"), bench.step("late", "running")]
    child = os.fork()
    if child == 0:
        try:
            os.environ["KM_FAULT"] = f"kill:{step}:{moment}"
            create(bench.session(x=steps))
        finally:
            os._exit(7)
    _, status = os.waitpid(child, 0)
    assert signal.SIGKILL == os.WTERMSIG(status)
    session = bench.session(x=steps)

    findings = reconcile(session)

    assert ["destroyed"] == [finding["action"] for finding in findings]
    assert ([], [], []) == (bench.left(), session.records(), list(bench.paper.root.iterdir()))


def test_an_undo_that_fails_leaves_nothing_running_and_can_be_tried_again(bench):
    broken = [OSError("no network")]

    def undo(context):
        if broken:
            raise broken.pop()

    session = bench.session(x=[bench.step("one", undo=undo), bench.step("two")])
    record = create(session)

    with pytest.raises(PluginError, match=r"x\.one could not be undone: OSError: no network"):
        destroy_sandbox(session, record)

    assert (SandboxState.FAILED, ["one"]) == (session.record(record.id).state, bench.left())
    assert [] == list(bench.paper.root.iterdir())
    destroy_sandbox(session, record)
    assert ([], []) == (bench.left(), session.records())


@pytest.mark.parametrize(
    ("steps", "said"),
    [(None, "the step x.one was not undone: its plugin is not here"), (lambda: 1 // 0, "ZeroDivisionError")],
    ids=["not installed", "broken"],
)
def test_a_destroy_goes_on_without_a_plugin_that_is_gone_and_says_so(bench, steps, said, capsys):
    record = create(bench.session(x=[bench.step("one")], y=[bench.step("two")]))
    later = bench.session(y=[bench.step("two")], **({} if steps is None else {"x": steps}))

    destroy_sandbox(later, record)

    assert (["one"], []) == (bench.left(), later.records())
    assert said in capsys.readouterr().err
    chain = (bench.config.audit_dir(record.id) / "kmd.jsonl").read_text()
    assert "step_not_undone" in chain


def test_a_plugin_whose_steps_cannot_be_asked_keeps_a_sandbox_from_being_made(bench):
    with pytest.raises(PluginError, match="km_lifecycle_steps failed: ZeroDivisionError"):
        create(bench.session(x=lambda: 1 // 0))

    assert not bench.book.exists()


def test_nothing_is_made_when_a_plugin_that_the_plan_needs_is_broken(bench):
    session = bench.session()
    failure = PluginError(
        "cannot be imported: ImportError", plugin="mail", distribution="km-mail", version="2"
    )
    session.plugins.infos += (PluginInfo("mail", "km-mail", "2", "km_mail", "failed"),)
    session.plugins._disabled["mail"] = failure

    create(session)
    with pytest.raises(PluginError, match="is needed by this profile but failed to load: cannot be imported"):
        create(session, SandboxPlan("p", "", "sb", "paper", requirements=("km-core==1", "Km_Mail==2")))


def test_nothing_is_made_under_a_ceiling_when_a_meter_is_broken(bench):
    session = bench.session()
    session.plugins.manager.register(types.SimpleNamespace(km_meters=hookimpl(lambda: 1 // 0)), name="meter")
    assert {} == session.plugins.meters()

    create(session)
    with pytest.raises(PluginError, match="km_meters failed"):
        create(session, SandboxPlan("p", "", "sb", "paper", budget=BudgetPlan(ai_limit_nusd=5)))
