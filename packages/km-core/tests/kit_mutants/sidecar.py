"""Sidecars with one planted defect each; `Honest` has none."""

from __future__ import annotations

import os
import sys

import pytest

from km_core import hookimpl
from km_core.testing.sidecar import SidecarContract
from km_core.types import Sidecar


def honest(arguments):
    sys.stderr.write("usage: toy\n")
    return 2


def careless(arguments):
    return 0


def crashing(arguments):
    raise RuntimeError("no such option")


def talkative(arguments):
    sys.stderr.write(f"usage: toy (token {os.environ.get('KM_CONTRACT_TOKEN')})\n")
    return 2


class Base(SidecarContract):
    target = "honest"
    title = "toy"

    @pytest.fixture
    def plugin(self):
        offered = [Sidecar(self.title, f"{__name__}:{self.target}", "a toy")]

        class Toy:
            @hookimpl
            def km_sidecars(self):
                return offered

        return Toy()


class TestHonest(Base):
    pass


class TestHasABadName(Base):
    title = "Toy Sidecar"


class TestPointsNowhere(Base):
    target = "nothing"


class TestRunsWhateverItIsTold(Base):
    target = "careless"


class TestCrashes(Base):
    target = "crashing"


class TestPrintsASecret(Base):
    target = "talkative"
