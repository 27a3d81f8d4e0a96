"""Notifiers with one planted defect each; `Honest` has none."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from km_core import hookimpl
from km_core.testing.fakes import SilentServer
from km_core.testing.notifier import NotifierContract
from km_core.types import Delivery

LOCK = threading.Lock()


class Honest:
    def write(self, event):
        with LOCK, open(os.environ["KM_NOTIFY_FILE"], "a", encoding="utf-8") as out:
            out.write(event.to_json() + "\n")

    @hookimpl
    def km_notify(self, event):
        if "KM_NOTIFY_FILE" not in os.environ:
            return None
        return self.deliver(event)

    def deliver(self, event):
        self.write(event)
        return Delivery.ok()


class Base(NotifierContract):
    Made = Honest

    @pytest.fixture
    def plugin(self, monkeypatch, tmp_path):
        monkeypatch.setenv("KM_NOTIFY_FILE", str(tmp_path / "events.jsonl"))
        monkeypatch.setenv("KM_NOTIFY_TOKEN", "hunter2-hunter2")
        return self.Made()


class TestHonest(Base):
    pass


class TestLosesAnEvent(Base):
    class Made(Honest):
        def deliver(self, event):
            if event.kind != "budget_warning":
                self.write(event)
            return Delivery.ok()


class TestSaysOkWhenItFailed(Base):
    class Made(Honest):
        def deliver(self, event):
            with contextlib.suppress(OSError):
                self.write(event)
            return Delivery.ok()


class TestPrintsASecret(Base):
    class Made(Honest):
        def deliver(self, event):
            print("posting with", os.environ["KM_NOTIFY_TOKEN"])
            return super().deliver(event)


class TestShowsASecretInItsError(Base):
    class Made(Honest):
        def deliver(self, event):
            try:
                return super().deliver(event)
            except OSError as error:
                raise RuntimeError(f"post to {os.environ['KM_NOTIFY_TOKEN']} failed") from error


class TestDropsTheDetail(Base):
    class Made(Honest):
        def write(self, event):
            super().write(type(event)(event.kind, event.sandbox_id, event.at))


class TestDeliversUnconfigured(Base):
    class Made(Honest):
        @hookimpl
        def km_notify(self, event):
            return Delivery.ok() if "KM_NOTIFY_FILE" not in os.environ else self.deliver(event)


class TestIgnoresTheDeadline(Base):
    deadline_s = 0.4

    class Made(Honest):
        def deliver(self, event):
            time.sleep(0.6 if event.kind == "created" else 0)
            return super().deliver(event)


class TestChangesTheEvent(Base):
    class Made(Honest):
        def deliver(self, event):
            answer = super().deliver(event)
            event.detail["delivered"] = True
            return answer


class TestMixesDeliveries(Base):
    class Made(Honest):
        def write(self, event):
            path = os.environ["KM_NOTIFY_FILE"]
            before = Path(path).read_text(encoding="utf-8") if os.path.exists(path) else ""
            time.sleep(0.002)
            with open(path, "w", encoding="utf-8") as out:
                out.write(before + event.to_json() + "\n")


class TestRefusesARepeat(Base):
    class Made(Honest):
        def __init__(self):
            self.seen = set()

        def deliver(self, event):
            if event.to_json() in self.seen:
                raise ValueError("a duplicate")
            self.seen.add(event.to_json())
            return super().deliver(event)


class TestHangs(Base):
    deadline_s = 0.5

    @pytest.fixture
    def hanging(self):
        with SilentServer() as server:

            class Waiting(Honest):
                @hookimpl
                def km_notify(self, event):
                    with socket.create_connection(server.address) as sock:
                        sock.recv(1)
                    return Delivery.ok()

            yield Waiting()
