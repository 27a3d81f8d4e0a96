from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from km_core.config import Config
from km_core.errors import GuardError, ProvisionError
from km_core.lifecycle.interrupts import undisturbed
from km_core.lifecycle.journal import Journal, Step
from km_core.lifecycle.locks import exclusive

ID = "sb-0000000a"


@pytest.fixture
def config(tmp_path):
    return Config(home=tmp_path / "h", runtime_dir=tmp_path / "r")


def test_the_second_waits_for_the_first_and_nothing_is_left(config):
    order = []

    def second():
        with exclusive(config, ID):
            order.append("second")

    with exclusive(config, ID):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join()

    assert ["first", "second"] == order
    assert [] == list((config.runtime_dir / "ops").iterdir())


def test_who_waits_for_too_long_is_refused(config):
    with exclusive(config, ID), pytest.raises(GuardError, match="another km command"):
        exclusive(config, ID, wait_s=0.1).__enter__()


def test_another_sandbox_is_not_waited_for(config):
    with exclusive(config, ID), exclusive(config, "sb-0000000b", wait_s=0):
        pass


def test_many_at_once_never_overlap(config):
    inside, seen = [], []

    def work():
        with exclusive(config, ID):
            inside.append(1)
            seen.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [1] * 8 == seen


def test_a_killed_holder_does_not_keep_the_lock(config):
    program = (
        "import sys, time, pathlib\n"
        "from km_core.config import Config\n"
        "from km_core.lifecycle.locks import exclusive\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "with exclusive(Config(home=root / 'h', runtime_dir=root / 'r'), 'sb-0000000a'):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(config.runtime_dir.parent)], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        holder.kill()
    with exclusive(config, ID, wait_s=1):
        pass


def test_a_link_in_place_of_the_lock_is_not_followed(config, tmp_path):
    (config.runtime_dir / "ops").mkdir(parents=True)
    (config.runtime_dir / "ops" / f"{ID}.lock").symlink_to(tmp_path / "victim")

    with pytest.raises(ProvisionError):
        exclusive(config, ID).__enter__()
    assert not (tmp_path / "victim").exists()


def test_two_signals_wait_for_a_clean_up_and_the_third_ends_it(capsys):
    done = []
    with undisturbed("please wait"):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("cleaned")
    assert ["cleaned"] == done
    assert capsys.readouterr().err == "please wait\n" * 2
    with pytest.raises(KeyboardInterrupt), undisturbed("please wait"):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Book:
    """A control plane that only keeps a journal."""

    def call(self, op, /, **args):
        del op, args

    def close(self):
        pass


def test_an_interrupt_in_the_middle_of_a_rollback_does_not_cut_it_short():
    undone = []

    def undo():
        os.kill(os.getpid(), signal.SIGINT)
        undone.append("late")

    def fail():
        raise ProvisionError("no")

    journal = Journal(Book(), ID)
    steps = [
        Step("early", lambda: None, lambda: undone.append("early")),
        Step("late", lambda: None, undo),
        Step("last", fail, lambda: None),
    ]
    with pytest.raises(ProvisionError, match="no"):
        journal.run(steps)

    assert ["late", "early"] == undone
    assert journal.rolled_back


def test_an_undo_that_raises_anything_leaves_the_rest_to_reconcile():
    def fail():
        raise ZeroDivisionError

    journal = Journal(Book(), ID)
    with pytest.raises(ProvisionError) as caught:
        journal.run([Step("a", lambda: None, lambda: None), Step("b", fail, fail)])

    assert caught.value.hint == "run km reconcile"
    assert not journal.rolled_back
