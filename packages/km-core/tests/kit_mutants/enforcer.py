"""Enforcers with one planted defect each; `Honest` has none."""

from __future__ import annotations

import pytest

from km_core import hookimpl
from km_core.testing.enforcer import EnforcerContract
from km_core.types import CheckResult, DoctorCheck


class Honest:
    modes = ("proxy",)
    result = CheckResult("OK", "all there")

    @hookimpl
    def km_enforcers(self):
        return self.modes

    @hookimpl
    def km_doctor_checks(self):
        return [DoctorCheck("toy", lambda: self.result)]


class Wall:
    alive = True

    def allowed(self):
        return self.alive

    def denied(self):
        return False

    def kill(self):
        self.alive = False


class Base(EnforcerContract):
    watch_s = 0.3
    Made = Honest
    Barrier = Wall

    @pytest.fixture
    def plugin(self):
        return self.Made()

    @pytest.fixture
    def trial(self):
        return self.Barrier()


class TestHonest(Base):
    pass


class TestOffersAModeNobodyCanName(Base):
    class Made(Honest):
        modes = ("none",)


class TestLetsEverythingThrough(Base):
    class Barrier(Wall):
        def denied(self):
            return True


class TestFailsOpen(Base):
    class Barrier(Wall):
        def denied(self):
            return not self.alive


class TestGoesOnWithoutItself(Base):
    class Barrier(Wall):
        def kill(self):
            pass


class TestSaysNoRemedy(Base):
    class Made(Honest):
        result = CheckResult("ERROR", "broken")
