"""Each contract catches a plugin with one planted defect, by the promise that the defect breaks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

MUTANTS = Path(__file__).parent / "kit_mutants"
OUTCOME = re.compile(r"(FAILED|ERROR) \S+::(\w+)::test_([a-z]\d+)_")

DEFECTS = {
    "notifier": {
        "TestLosesAnEvent": "n1",
        "TestDropsTheDetail": "n1",
        "TestChangesTheEvent": "n2",
        "TestDeliversUnconfigured": "n3",
        "TestSaysOkWhenItFailed": "n4",
        "TestPrintsASecret": "n5",
        "TestShowsASecretInItsError": "n5",
        "TestRefusesARepeat": "n6",
        "TestIgnoresTheDeadline": "n7",
        "TestHangs": "n8",
        "TestMixesDeliveries": "n9",
    },
    "agent": {
        "TestHasABadName": "a1",
        "TestGoesThroughAShell": "a2",
        "TestStripsThePrompt": "a2",
        "TestReadsThePromptAsAnOption": "a2",
        "TestDropsArguments": "a3",
        "TestReadsAFile": "a4",
        "TestRaisesOnOddOutput": "a5",
        "TestReadsFailureAsSuccess": "a5",
        "TestHandsASecretIn": "a6",
        "TestLosesTheSession": "a7",
        "TestIgnoresAllowedTools": "a8",
    },
    "meter": {
        "TestClaimsAWildcard": "m1",
        "TestLetsUnknownEndpointsPass": "m2",
        "TestBoundsTooLow": "m3",
        "TestChargesMoreThanWasReserved": "m4",
        "TestTakesTheFirstOfTwoMembers": "m5",
        "TestClampsWrong": "m6",
        "TestClampsNothing": "m6",
        "TestRefusesInPlainText": "m7",
        "TestReadsAFile": "m8",
        "TestLetsTheClientsKeyThrough": "m9",
        "TestCountsAStreamAsFree": "m10",
        "TestDependsOnTheSplit": "m11",
        "TestIsFreeWhenItBreaksOff": "m12",
        "TestRaisesOnDamage": "m13",
        "TestSavesOnDamage": "m13",
        "TestHoldsTheWholeAnswer": "m14",
        "TestRaisesOnABrokenCoding": "m15",
    },
    "enforcer": {
        "TestOffersAModeNobodyCanName": "e1",
        "TestLetsEverythingThrough": "e3",
        "TestFailsOpen": "e4",
        "TestGoesOnWithoutItself": "e4",
        "TestSaysNoRemedy": "e5",
    },
    "sidecar": {
        "TestHasABadName": "r1",
        "TestPointsNowhere": "r2",
        "TestRunsWhateverItIsTold": "r3",
        "TestCrashes": "r3",
        "TestPrintsASecret": "r4",
    },
    "control": {
        "TestUpdatesWithoutLooking": "c4",
        "TestMixesTheJournal": "c8",
        "TestForgetsNothing": "c9",
        "TestOpensToAnyToken": "c10",
        "TestKeepsTheOldToken": "c10",
        "TestSettlesTwice": "c11",
        "TestReservesTooMuch": "c13",
        "TestSpendsAfterTheDeadline": "c15",
        "TestShowsSecrets": "c16",
        "TestLetsEventsBeForged": "c17",
        "TestBelievesTheSupervisor": "c18",
        "TestLosesASettlement": "c19",
        "TestAppliesToWhateverPlan": "c21",
        "TestAppliesWithoutAProfile": "c21",
        "TestTellsGatesTheOldPolicy": "c21",
        "TestGrantsToEverybody": "c22",
        "TestGrantsWhatIsWritten": "c22",
        "TestTakesNothingBack": "c22",
        "TestGrantsForEver": "c22",
    },
    "substrate": {
        "TestMakesThingsWhileItLooks": "s2",
        "TestAcceptsWhatItCannotDo": "s3",
        "TestGoesThroughAShell": "s5",
        "TestLosesTheExitCode": "s6",
        "TestHoldsTheOutputBack": "s7",
        "TestStartsWhatWasNotMade": "s8",
        "TestRunsBeforeStart": "s9",
        "TestCreateIsNotIdempotent": "s10",
        "TestStopLosesTheFiles": "s11",
        "TestPauseDoesNothing": "s12",
        "TestDestroyLeavesProcesses": "s13",
        "TestDestroyIsNotIdempotent": "s13",
        "TestForgetsAKilledCreate": "s14",
        "TestLeaksOnAFailedCreate": "s15",
        "TestFindsNoOrphans": "s16",
        "TestShowsTheToken": "s17",
        "TestFailsOpen": "s18",
        "TestIgnoresTheDeadline": "s19",
    },
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", DEFECTS)
def test_a_planted_defect_is_caught_by_the_promise_it_breaks(kind, pytester):
    """One run per kind: every mutant's own promise, and all of the honest plugin's."""
    defects = DEFECTS[kind]
    module = f"test_{kind}_mutants"
    (pytester.path / f"{module}.py").write_bytes((MUTANTS / f"{kind}.py").read_bytes())
    wanted = [f"{module}.py::{name}" for name in defects]
    chosen = " or ".join(
        ["TestHonest", *(f"({name} and test_{promise}_)" for name, promise in defects.items())]
    )

    result = pytester.runpytest_subprocess(
        "-q", "-rfE", "--tb=no", "-p", "no:cacheprovider", "-k", chosen, f"{module}.py", timeout=280
    )

    broken = {(name, promise) for _, name, promise in OUTCOME.findall(result.stdout.str())}
    assert {item for item in broken if item[0] == "TestHonest"} == set()
    assert {f"{module}.py::{name}" for name, _ in broken} == set(wanted)
    assert broken == set(defects.items())
