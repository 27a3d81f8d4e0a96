"""Worst cases: never below what a call within its bounds can cost, and inverted exactly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from km_core.ledger import affordable_output, default_table, price, worst_case_nusd
from km_core.types import CallPlan, Usage

MODELS = [
    ("anthropic", "claude-sonnet-4-5"),
    ("anthropic", "claude-opus-5-5"),
    ("anthropic", "claude-haiku-5-5"),
    ("anthropic", "claude-3-haiku-20240307"),
    ("anthropic", "unheard-of"),
    ("openai", "gpt-4o-mini"),
    ("openai", "gpt-6.1-sol"),
    ("openai", "gpt-5.5-pro"),
    ("openai", "text-embedding-3-large"),
    ("nobody", "x"),
]
GEO = [
    (),
    ("inference_geo:us",),
    ("speed:fast", "inference_geo:us"),
    ("service_tier:priority",),
    ("service_tier:batch",),
]


def plan(**values) -> CallPlan:
    return CallPlan(
        **{"model": "m", "stream": False, "input_bound": 1000, "output_limit": 4096, "body": b"{}", **values}
    )


plans = st.builds(
    plan,
    input_bound=st.integers(0, 2_000_000),
    output_limit=st.integers(0, 500_000),
    server_tool_uses=st.integers(0, 20),
    cache_write=st.sampled_from(["none", "5m", "1h"]),
    multipliers=st.sampled_from(GEO),
)


def test_input_counts_at_the_dearest_rate_it_can_get():
    assert worst_case_nusd("anthropic", "claude-sonnet-4-6", plan(), 0) == 6_000_000
    assert worst_case_nusd("anthropic", "claude-sonnet-4-6", plan(cache_write="5m"), 0) == 3_750_000
    assert worst_case_nusd("anthropic", "claude-sonnet-4-6", plan(cache_write="none"), 0) == 3_000_000


def test_output_and_server_tools_count():
    two = plan(input_bound=0, server_tool_uses=2)
    assert worst_case_nusd("anthropic", "claude-sonnet-4-6", two, 1000) == 15_000_000 + 20_000_000


def test_long_context_counts_from_the_bound():
    big = plan(input_bound=200_001, cache_write="none")
    assert worst_case_nusd("anthropic", "claude-sonnet-4-5", big, 0) == 200_001 * 6000


def test_a_small_budget_affords_a_shorter_answer():
    limit = affordable_output("anthropic", "claude-sonnet-4-6", plan(cache_write="none"), 18_000_000)
    assert limit == 1000


def test_what_does_not_fit_at_all_is_minus_one():
    assert affordable_output("anthropic", "claude-sonnet-4-6", plan(), 5_999_999) == -1
    assert affordable_output("anthropic", "claude-sonnet-4-6", plan(), 0) == -1
    embedding = plan(input_bound=1000, output_limit=0, cache_write="none")
    assert affordable_output("openai", "text-embedding-3-large", embedding, 130_000) == 0
    assert affordable_output("openai", "text-embedding-3-large", embedding, 129_999) == -1


@given(st.sampled_from(MODELS), plans, st.integers(0, 10**13))
def test_the_affordable_limit_fits_and_one_more_does_not(model, call, remaining):
    limit = affordable_output(*model, call, remaining)
    if limit < 0:
        assert worst_case_nusd(*model, call, 0) > remaining
        return
    assert limit <= call.output_limit
    assert worst_case_nusd(*model, call, limit) <= remaining
    if limit < call.output_limit:
        assert worst_case_nusd(*model, call, limit + 1) > remaining


@given(st.sampled_from(MODELS), plans, st.integers(0, 500_000), st.integers(0, 500_000))
def test_the_worst_case_grows_with_the_limit(model, call, one, other):
    low, high = sorted((one, other))
    assert worst_case_nusd(*model, call, low) <= worst_case_nusd(*model, call, high)


@given(st.sampled_from(MODELS), plans, st.data())
def test_a_call_within_its_bounds_never_costs_more_than_was_reserved(model, call, data):
    provider, name = model
    left = call.input_bound
    figures = {}
    for figure in ("input_tokens", "cache_read_tokens", "cache_write_tokens"):
        if figure == "cache_write_tokens" and call.cache_write == "none":
            continue
        figures[figure] = data.draw(st.integers(0, left), label=figure)
        left -= figures[figure]
    if call.cache_write == "1h":
        figures["cache_write_1h_tokens"] = data.draw(st.integers(0, figures["cache_write_tokens"]))
    figures["output_tokens"] = data.draw(st.integers(0, call.output_limit))
    figures["web_search_requests"] = data.draw(st.integers(0, call.server_tool_uses))
    if data.draw(st.booleans()):
        figures["complete"] = False
        figures["estimated_input_tokens"] = call.input_bound
        figures["estimated_cache_write"] = call.cache_write
        figures["output_bound_tokens"] = call.output_limit
    usage = Usage(provider, name, multipliers=call.multipliers, **figures)
    assert price(usage).cost_nusd <= worst_case_nusd(provider, name, call, call.output_limit)


@pytest.mark.parametrize("model", MODELS)
def test_a_discount_that_was_only_asked_for_does_not_lower_the_reservation(model):
    cheap = plan(multipliers=("service_tier:batch", "service_tier:flex"))
    assert worst_case_nusd(*model, cheap, 100) >= worst_case_nusd(*model, plan(), 100)
    assert default_table().find(*model).rates.multiplier("service_tier:flex") <= 6000
