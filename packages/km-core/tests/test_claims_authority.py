"""Whose word counts: no plugin loosens what it has no part in, and a refusal never ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from km_core.compile.claims import (
    ClaimSource,
    claims_as_on,
    core_claims,
    core_source,
    enforces_itself,
    field_table,
    judge_field,
    model_fields,
    model_sections,
    substrates_of,
)
from km_core.profile.model import SUBSTRATES
from km_core.types import Answer, Claim

CORE = core_source()
GUARDED = [
    "spec.network.egress.allowedHosts",
    "spec.network.httpsOnly",
    "spec.network.enforcement",
    "spec.sourceAccess.github.allowedRepos",
    "spec.budget.ai.maxSpendUSD",
    "spec.budget.compute.maxSpendUSD",
    "spec.sidecars.auditLog.enabled",
    "spec.execution.privileged",
]


def source(name, *claims, **offers):
    return ClaimSource(name, claims, **{key: frozenset(value) for key, value in offers.items()})


def says(path, answer=Answer.ENFORCED, by="km-other", values=(), substrates=("*",)):
    return Claim(path, substrates, answer, by, "", values)


def answer(path, value, substrate, *sources, mode="proxy"):
    return judge_field(path, value, substrate, [CORE, *sources], mode=mode)


REFUSED_BY_CORE = [
    (claim.path, value)
    for claim in core_claims()
    if claim.answer is Answer.REFUSED and "local" in claim.substrates
    for value in claim.values
]


@pytest.mark.parametrize(("path", "value"), REFUSED_BY_CORE)
@pytest.mark.parametrize("wanted", [Answer.ENFORCED, Answer.INERT])
@pytest.mark.parametrize("offers", [{}, {"substrates": ["local"]}, {"modes": ["proxy"]}])
def test_nothing_turns_a_refusal_into_anything_else(path, value, wanted, offers):
    for claimed in (path, path.rpartition(".")[0], "spec"):
        for values in ((), (value,)):
            loud = source("km-other", says(claimed, wanted, values=values), **offers)

            assert answer(path, value, "local", loud).answer is Answer.REFUSED


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize("wanted", [Answer.ENFORCED, Answer.INERT])
def test_a_stranger_cannot_answer_for_policy_on_somebody_elses_substrate(path, wanted):
    stranger = source("km-stranger", says(path, wanted), says("spec", wanted), modes=["other"])
    owner = source("km-theirs", substrates=["theirs"])

    found = answer(path, "both", "theirs", owner, stranger)

    assert found.answer is None
    assert ("km-stranger",) == found.unheard


@pytest.mark.parametrize("path", GUARDED)
def test_a_strangers_refusal_counts(path):
    for wanted in (Answer.REFUSED, Answer.MISSING):
        owner = source("km-theirs", says(path), substrates=["theirs"])
        stranger = source("km-stranger", says(path, wanted))

        assert answer(path, "x", "theirs", owner, stranger).answer is wanted


@pytest.mark.parametrize("path", GUARDED)
def test_the_substrates_own_distribution_answers_for_everything_there(path):
    owner = source("km-theirs", says(path), substrates=["theirs"])

    assert answer(path, "x", "theirs", owner).answer is Answer.ENFORCED
    assert answer(path, "x", "elsewhere", owner).answer is None


def test_the_enforcer_of_the_profiles_mode_answers_for_the_network_but_not_for_privileges():
    enforcer = source(
        "km-kernel",
        *(says(path) for path in GUARDED),
        says("spec.execution.privileged"),
        modes=["ebpf"],
    )

    def found(path, mode):
        return answer(path, "ebpf", "theirs", enforcer, mode=mode).answer

    assert found("spec.network.enforcement", "ebpf") is Answer.ENFORCED
    assert found("spec.network.egress.allowedHosts", "ebpf") is Answer.ENFORCED
    assert found("spec.network.enforcement", "proxy") is None
    assert found("spec.execution.privileged", "ebpf") is None
    assert found("spec.budget.compute.maxSpendUSD", "ebpf") is None


def test_an_enforcer_of_another_name_ends_what_core_calls_missing():
    enforcer = source("km-kernel", says("spec.network.enforcement", values=("ebpf",)), modes=["ebpf"])

    assert answer("spec.network.enforcement", "ebpf", "local", mode="ebpf").answer is Answer.MISSING
    found = answer("spec.network.enforcement", "ebpf", "local", enforcer, mode="ebpf")
    assert (Answer.ENFORCED, "km-kernel") == (found.answer, found.by)


def test_missing_ends_where_its_named_provider_itself_enforces():
    path = "spec.email.signing"
    provider = source("km-mail", says(path, by="km-mail"))
    impostor = source("km-stranger", says(path, by="km-mail"))

    assert answer(path, "off", "local", provider).answer is Answer.ENFORCED
    assert answer(path, "off", "local", impostor).answer is Answer.MISSING
    assert answer(path, "off", "local", source("km-mail", says(path, Answer.INERT))).answer is Answer.MISSING


def test_what_nobody_is_named_for_is_open_to_whoever_provides_it():
    provider = source("km-pager", says("spec.cli.notifyOnIdle", by="somebody-else"))

    found = answer("spec.cli.notifyOnIdle", True, "local", provider)

    assert (Answer.ENFORCED, "km-pager") == (found.answer, found.by)
    git = says("spec.sourceAccess.github.allowedRepos")
    assert answer(git.path, ["o/n"], "local", source("km-pager", git)).by == "km-net-proxy"


def test_only_a_substrates_own_distribution_says_that_a_field_has_no_meaning_there():
    path = "spec.execution.initScripts"
    owner = source("km-theirs", says(path, Answer.INERT), substrates=["theirs"])

    assert answer(path, ["a"], "theirs", source("km-stranger", says(path, Answer.INERT))).answer is None
    assert answer(path, ["a"], "theirs", owner).answer is Answer.INERT


def test_a_section_of_a_plugin_is_answered_by_its_own_distribution():
    mine = source("km-mine", says("spec.mine"), sections=["mine"])
    stranger = source("km-stranger", says("spec.mine"), says("spec"))

    assert answer("spec.mine.level", 1, "local", mine).answer is Answer.ENFORCED
    assert answer("spec.mine.level", 1, "local", stranger).answer is None
    assert answer("spec.mine.level", 1, "local").answer is None


def test_a_value_named_for_a_section_says_nothing_of_an_empty_list_below_it():
    claim = says("spec.budget", Answer.INERT, values=((),))

    assert judge_field("spec.budget.x", [], "s", [source("o", claim, substrates=["s"])]).answer is None
    assert judge_field("spec.budget", {}, "s", [source("o", claim, substrates=["s"])]).answer is Answer.INERT


def test_a_substrate_that_enforces_by_itself_needs_no_enforcer():
    alone = source("km-alone", says("spec.network.enforcement", values=("proxy",)), substrates=["alone"])

    assert enforces_itself("alone", [CORE, alone], mode="proxy")
    assert not enforces_itself("alone", [CORE, alone], mode="both")
    assert not enforces_itself("local", [CORE, alone], mode="proxy")
    stranger = source("km-stranger", says("spec.network.enforcement"))
    assert not enforces_itself("alone", [CORE, stranger, source("km-alone", substrates=["alone"])])


@given(st.data())
def test_no_set_of_claims_by_strangers_loosens_policy(data):
    """Whatever strangers say, policy on local stays what core and the substrate's own made of it."""
    paths = ["spec", *GUARDED, *{path.rpartition(".")[0] for path in GUARDED}]
    claim = st.builds(
        Claim,
        path=st.sampled_from(paths),
        substrates=st.sampled_from([("*",), ("local",), ("docker", "local")]),
        answer=st.sampled_from(list(Answer)),
        by=st.sampled_from(["km-core", "km-net-proxy", "km-net-ebpf", "km-substrate-local", ""]),
        values=st.sampled_from([(), (True,), (False,), ("both",), ((),)]),
    )
    strangers = [
        source(f"km-s{index}", *claims)
        for index, claims in enumerate(data.draw(st.lists(st.lists(claim, max_size=4), max_size=3)))
    ]
    path = data.draw(st.sampled_from(GUARDED))
    value = data.draw(st.sampled_from([True, False, "both", "proxy", ["a"], [], 5]))
    loose = {Answer.ENFORCED: 1, Answer.INERT: 1, Answer.MISSING: 0, Answer.REFUSED: -1, None: 0}

    before = answer(path, value, "local")
    after = answer(path, value, "local", *strangers)

    assert loose[after.answer] <= loose[before.answer]


@pytest.mark.parametrize("gate", [True, False])
def test_claims_like_those_of_local_cover_what_local_covers(gate):
    made = source("km-mine", *claims_as_on("local", "mine", gate=gate), substrates=["mine"])

    for path in [*model_fields(), *model_sections()]:
        theirs = answer(path, [], "local")
        ours = answer(path, [], "mine", made)
        if not gate and theirs.by == "km-net-proxy":
            assert ours.answer is not Answer.ENFORCED, path
        else:
            assert (path, theirs.answer) == (path, ours.answer)


def test_a_difference_replaces_what_lies_below_it():
    made = claims_as_on(
        "local",
        "mine",
        gate=False,
        but=[
            says("spec.network.egress", Answer.REFUSED, substrates=("mine",)),
            says("spec.network.egress.allowedHosts", values=((),), substrates=("mine",)),
        ],
    )
    mine = source("km-mine", *made, substrates=["mine"])

    assert answer("spec.network.egress.allowedHosts", [], "mine", mine).answer is Answer.ENFORCED
    assert answer("spec.network.egress.allowedHosts", ["a"], "mine", mine).answer is Answer.REFUSED
    assert answer("spec.network.httpsOnly", True, "mine", mine).answer is None
    with pytest.raises(ValueError, match="table for local and docker"):
        claims_as_on("ec2", "mine", gate=False)


def test_the_matrix_has_an_answer_for_every_field_on_every_substrate():
    rows = field_table([CORE], SUBSTRATES)

    assert [row for row in rows if row.answer is None] == []
    assert {(row.path, row.substrate) for row in rows} == {
        (path, substrate) for path in model_fields() for substrate in SUBSTRATES
    }


def test_on_a_cloud_substrate_everything_names_what_would_provide_it():
    rows = [row for row in field_table([CORE], ("ec2", "ecs")) if row.path.startswith("spec.")]

    assert {row.answer for row in rows if row.path != "spec.runtime.substrate"} == {Answer.MISSING}
    assert {row.by for row in rows if row.path.startswith("spec.runtime.ami")} == {
        "km-substrate-ec2",
        "km-substrate-ecs",
    }


def test_the_substrates_own_distribution_fills_the_cloud_table():
    cloud = source("km-substrate-ec2", says("spec.lifecycle.ttl"), substrates=["ec2"])

    assert answer("spec.lifecycle.ttl", "1h", "ec2", cloud).answer is Answer.ENFORCED
    assert ("ec2", "ecs", "docker", "local") == substrates_of([CORE, cloud])
    assert "theirs" in substrates_of([CORE, source("km-theirs", substrates=["theirs"])])
