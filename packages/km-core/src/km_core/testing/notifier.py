"""What every notifier promises; subclass `NotifierContract`."""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from km_core.testing.pm import manager_with
from km_core.testing.probes import must_override, sealed, secret_values, unreachable
from km_core.types import Delivery, Event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

AT = "2026-01-02T03:04:05Z"
EVENTS = (
    Event("created", "sb-0000000a", AT),
    Event("budget_warning", "sb-0000000a", AT, {"pool": "ai", "spent_nusd": 2**62, "threshold": 0.8}),
    Event(
        "failed", "sb-0000000b", AT, {"why": 'a "quoted"\nline\ttab \\ back', "nested": {"list": [1, None]}}
    ),
    Event("a_kind_nobody_knows", "sb-0000000b", AT, {"text": "Grüße, 世界 🜁 \u2028 <b>&amp;</b> `x` {0} %s"}),
)
"""What a contract sends: every kind of value that an event may hold, and a kind from a later version."""


class NotifierContract:
    """
    Promises N1 to N9.

    Must override: `plugin`.  May override: `received`, `unconfigured`, `broken`, `hanging`, `secrets`.

    Attributes:
        deadline_s: how long one delivery may take with a healthy back end, and until it gives up one
            that never answers.  The control plane gives all notifiers a minute together.
    """

    deadline_s = 10.0

    @pytest.fixture(autouse=True)
    def environment(self) -> Iterator[dict[str, str]]:
        """The environment as it was before `plugin` configured itself."""
        before = dict(os.environ)
        yield before
        os.environ.clear()
        os.environ.update(before)

    @pytest.fixture
    def plugin(self) -> Any:
        """The plugin, configured so that it delivers."""
        must_override("plugin", "return the module with km_notify, configured to deliver")

    @pytest.fixture
    def received(self, plugin: Any, tmp_path: Path) -> Callable[[], Sequence[Event]]:  # noqa: ARG002 - it is configured first
        """
        Give a function that returns what the back end has got so far.

        The default reads every file below `tmp_path` as JSON lines of `Event.to_json`.
        """
        return lambda: _events_below(tmp_path)

    @pytest.fixture
    def unconfigured(self, plugin: Any, environment: dict[str, str]) -> Any:
        """The plugin without its configuration; the default puts the environment back."""
        os.environ.clear()
        os.environ.update(environment)
        return plugin

    @pytest.fixture
    def broken(self) -> Any:
        """The plugin with a back end that fails; None lets files, sockets and processes fail by themselves."""
        return None

    @pytest.fixture
    def hanging(self) -> Any:
        """The plugin with a back end that accepts and never answers (see `km_core.testing.fakes.SilentServer`)."""
        pytest.skip("no `hanging` fixture: nothing was said about a back end that never answers")

    @pytest.fixture
    def secrets(self, plugin: Any, environment: dict[str, str]) -> Sequence[str]:  # noqa: ARG002 - it is configured first
        """What must never be shown; the default takes new variables that are called like a credential."""
        return secret_values(environment, os.environ)

    def matches(self, event: Event, got: Event) -> bool:
        """Say whether *got* is *event*; override where the back end keeps less than was sent."""
        if not isinstance(got, Event):
            pytest.fail(
                f"`received` gave a {type(got).__name__} where an Event is expected: make one with "
                "Event(**json.loads(line)), or override `matches`"
            )
        return event == got

    def test_n1_every_event_is_delivered_exactly_as_given(
        self, plugin: Any, received: Callable[[], Sequence[Event]]
    ) -> None:
        """N1: each event reaches the back end once, complete and in order, whatever its detail holds."""
        for event in EVENTS:
            assert _ok(notify(plugin, event)), f"{event.kind} was not delivered"
        got = received()
        assert len(got) == len(EVENTS), f"{len(EVENTS)} events were sent, the back end has {len(got)}"
        for event, arrived in zip(EVENTS, got, strict=True):
            assert self.matches(event, arrived), (event, arrived)

    def test_n2_the_event_is_not_changed(self, plugin: Any) -> None:
        """N2: the event is the caller's: other notifiers get the same one."""
        for event in EVENTS:
            before = event.to_json()
            notify(plugin, event)
            assert event.to_json() == before

    def test_n3_an_unconfigured_notifier_answers_none(self, unconfigured: Any) -> None:
        """N3: without configuration the answer is None and nothing is touched."""
        notify(unconfigured, EVENTS[0])
        with sealed(unreachable) as touched:
            assert notify(unconfigured, EVENTS[0]) is None
        assert touched == []

    def test_n4_a_failing_back_end_is_never_reported_as_delivered(
        self, plugin: Any, broken: Any, received: Callable[[], Sequence[Event]]
    ) -> None:
        """N4: what did not arrive ends in an exception or ``delivered=False``, so that it is tried again."""
        notify(plugin, EVENTS[0])  # so that everything it imports is there
        before = len(received())
        failed, answer = _with_broken(broken, plugin)
        if failed:
            return
        assert isinstance(answer, Delivery), f"a failing back end was answered with {answer!r}"
        if answer.delivered and len(received()) > before:
            pytest.skip("the back end is not reached by files, sockets or processes: override `broken`")
        assert not answer.delivered, "a false ok: the event is lost"

    def test_n5_nothing_secret_is_shown(
        self,
        plugin: Any,
        broken: Any,
        secrets: Sequence[str],
        capfd: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """N5: credentials of its configuration stay out of output, logs, delivery details and errors."""
        if not secrets:
            pytest.skip("the plugin was configured without a credential: override `secrets`")
        caplog.set_level(0)
        shown = [repr(notify(plugin, EVENTS[0]))]
        failed, answer = _with_broken(broken, plugin)
        shown.append(failed or repr(answer))
        captured = capfd.readouterr()
        everything = "\n".join([*shown, captured.out, captured.err, caplog.text])
        for secret in secrets:
            assert secret not in everything, "a credential was shown"

    def test_n6_the_same_event_twice_is_fine(
        self, plugin: Any, received: Callable[[], Sequence[Event]]
    ) -> None:
        """N6: delivery is at least once: the same event again succeeds, and loses nothing."""
        assert _ok(notify(plugin, EVENTS[0]))
        assert _ok(notify(plugin, EVENTS[0]))
        assert _ok(notify(plugin, EVENTS[1]))
        got = received()
        for event in EVENTS[:2]:
            assert any(self.matches(event, arrived) for arrived in got), f"{event.kind} is gone"

    def test_n7_a_delivery_is_quick(self, plugin: Any) -> None:
        """N7: one delivery takes at most `deadline_s`."""
        _within(self.deadline_s, lambda: notify(plugin, EVENTS[0]))

    def test_n8_a_back_end_that_never_answers_is_given_up(self, hanging: Any) -> None:
        """N8: a silent back end ends in a failure within `deadline_s`, not in a hang."""

        def attempt() -> bool:
            try:
                return _ok(notify(hanging, EVENTS[0]))
            except Exception:  # noqa: BLE001 - any exception is an honest failure
                return False

        assert _within(self.deadline_s, attempt) is False, "a false ok: nobody answered"

    def test_n9_deliveries_at_once_do_not_mix(
        self, plugin: Any, received: Callable[[], Sequence[Event]]
    ) -> None:
        """N9: events delivered from several threads at once all arrive whole."""
        events = [Event("started", "sb-0000000a", AT, {"n": n, "pad": "x" * 3000}) for n in range(40)]
        answers: dict[int, bool] = {}

        def deliver(part: int) -> None:
            for n in range(part, len(events), 8):
                answers[n] = _ok(notify(plugin, events[n]))

        threads = [threading.Thread(target=deliver, args=(part,)) for part in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(self.deadline_s * 5)
        assert sorted(n for n, ok in answers.items() if ok) == list(range(len(events)))
        got = received()
        for event in events:
            assert any(self.matches(event, arrived) for arrived in got), f"event {event.detail['n']} is lost"


def notify(plugin: Any, event: Event) -> Any:
    """Hand one event to a plugin the way the control plane does, and return its answer."""
    implementations = manager_with(plugin).manager.hook.km_notify.get_hookimpls()
    assert implementations, "the plugin implements no km_notify"
    (implementation,) = implementations
    answer = implementation.function(*([event] if "event" in implementation.argnames else []))
    assert answer is None or isinstance(answer, Delivery), f"km_notify returned {answer!r}, not a Delivery"
    return answer


def _ok(answer: Any) -> bool:
    return isinstance(answer, Delivery) and answer.delivered


def _with_broken(broken: Any, plugin: Any) -> tuple[str, Any]:
    """Deliver to a failing back end; returns the error's text (empty for none) and the answer."""
    import traceback

    try:
        if broken is not None:
            return "", notify(broken, EVENTS[1])
        with sealed(unreachable):
            return "", notify(plugin, EVENTS[1])
    except AssertionError:
        raise
    except Exception as error:  # noqa: BLE001 - any exception is an honest failure
        return "".join(traceback.format_exception(error)), None


def _within(seconds: float, work: Callable[[], Any]) -> Any:
    """Return what *work* returns; fail when it takes longer."""
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), f"it takes longer than {seconds:g} s"
    assert result, "it raised"
    return result[0]


def _events_below(directory: Path) -> list[Event]:
    found = []
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        for line in path.read_text(encoding="utf-8").split("\n"):
            try:
                found.append(Event(**json.loads(line)))
            except (ValueError, TypeError):
                assert not line.strip(), f"{path} holds a line that is no event: {line[:200]!r}"
    return found
