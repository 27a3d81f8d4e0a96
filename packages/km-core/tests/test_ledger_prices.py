"""Prices: look-up order, hand-computed vectors, overlays."""

from __future__ import annotations

from datetime import date

import pytest

from km_core.errors import ConfigError
from km_core.ledger import PriceTable, default_table, price, recorded_model
from km_core.types import Usage


def usd(micro_cents: str) -> int:
    """Nano-dollars of a decimal dollar text, for vectors written by hand."""
    whole, _, rest = micro_cents.partition(".")
    return int(whole) * 10**9 + int(rest.ljust(9, "0"))


def cost(model: str, provider: str = "anthropic", **figures) -> int:
    return price(Usage(provider, model, **figures)).cost_nusd


@pytest.mark.parametrize(
    ("provider", "model", "figures", "dollars"),
    [
        # 1000 * 3 + 500 * 15 = 10500 per million
        ("anthropic", "claude-sonnet-4-5", {"input_tokens": 1000, "output_tokens": 500}, "0.0105"),
        # 11 * 1 + 7 * 5 + 5 * 0.1 + 3 * 1.25 = 50.25 per million
        (
            "anthropic",
            "claude-haiku-4-5-20251001",
            {"input_tokens": 11, "output_tokens": 7, "cache_read_tokens": 5, "cache_write_tokens": 3},
            "0.00005025",
        ),
        # 100 5-minute writes and 900 1-hour writes: 100 * 6.25 + 900 * 10 = 9625
        (
            "anthropic",
            "claude-opus-4-6",
            {"cache_write_tokens": 1000, "cache_write_1h_tokens": 900},
            "0.009625",
        ),
        # above 200,000 input tokens (cache counted) every rate is the long one
        # 1 * 6 + 200000 * 0.6 + 10 * 22.5 = 120231
        (
            "anthropic",
            "claude-sonnet-4-5",
            {"input_tokens": 1, "cache_read_tokens": 200_000, "output_tokens": 10},
            "0.120231",
        ),
        # exactly at the step: the short rates. 200000 * 0.3 + 10 * 15 = 60150
        ("anthropic", "claude-sonnet-4-5", {"cache_read_tokens": 200_000, "output_tokens": 10}, "0.06015"),
        # fast mode, in the US: (100 * 5 + 10 * 25) * 6 * 1.1 = 4950
        (
            "anthropic",
            "claude-opus-4-6",
            {"input_tokens": 100, "output_tokens": 10, "multipliers": ("speed:fast", "inference_geo:us")},
            "0.00495",
        ),
        # two searches on top of 10 * 3
        ("anthropic", "claude-sonnet-4-6", {"input_tokens": 10, "web_search_requests": 2}, "0.02003"),
        # 6 * 2.5 + 5 * 1.25 + 7 * 10 = 91.25
        (
            "openai",
            "gpt-4o-2024-08-06",
            {"input_tokens": 6, "cache_read_tokens": 5, "output_tokens": 7, "reasoning_tokens": 2},
            "0.00009125",
        ),
        # the fraction of a nano-dollar: 1 * 0.0375... 1 cached token of gpt-4o-mini = 75 nano-dollars
        ("openai", "gpt-4o-mini-2024-07-18", {"cache_read_tokens": 1}, "0.000000075"),
        # rounded up: 1 token at 0.025 per million = 25 nano; 1 at 0.005 = 5 nano
        ("openai", "gpt-5-nano", {"cache_read_tokens": 1}, "0.000000005"),
        ("openai", "gpt-5.5", {"input_tokens": 1_000_000}, "10"),
        # flex is half
        (
            "openai",
            "o3",
            {"input_tokens": 3, "output_tokens": 1, "multipliers": ("service_tier:flex",)},
            "0.000007",
        ),
        ("openai", "text-embedding-3-small", {"input_tokens": 1000}, "0.00002"),
    ],
)
def test_hand_computed_vectors(provider, model, figures, dollars):
    assert cost(model, provider, **figures) == usd(dollars)


def test_a_fraction_of_a_nano_dollar_is_rounded_up_once():
    table = PriceTable.load(
        {"providers": {"tiny": {"models": {"m": {"input": "0.0001", "output": "0.0001"}}}}}
    )
    assert price(Usage("tiny", "m", input_tokens=1), table).cost_nusd == 1
    assert price(Usage("tiny", "m", input_tokens=7, output_tokens=4), table).cost_nusd == 2


@pytest.mark.parametrize(
    "model",
    [
        "claude-sonnet-4-5-20250929",
        "anthropic.claude-sonnet-4-5-20250929-v1:0",
        "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
        "apac.anthropic.claude-sonnet-4-5-20250929-v1:0",
        "us-gov.anthropic.claude-sonnet-4-5-20250929-v1:0",
        "global.anthropic.claude-sonnet-4-5-20250929-v1:0",
        "arn:aws:bedrock:us-east-1::foundation-model/anthropic.claude-sonnet-4-5-20250929-v1:0",
        "arn:aws-us-gov:bedrock:us-gov-west-1:123456789012:inference-profile/us-gov.anthropic.claude-sonnet-4-5-20250929-v1:0",
        "arn%3Aaws%3Abedrock%3Aus-east-1%3A%3Afoundation-model%2Fanthropic.claude-sonnet-4-5-20250929-v1%3A0",
        "Claude-Sonnet-4-5[1m]",
        "claude-sonnet-4-5@20250929",
        "anthropic/claude-sonnet-4-5",
        "claude-sonnet-4-5-latest",
    ],
)
def test_arn_and_geo_prefix_priced(model):
    found = default_table().find("anthropic", model)
    assert (found.source, found.key) == ("table", "claude-sonnet-4-5")


@pytest.mark.parametrize(
    ("text", "recorded"),
    [
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "anthropic.claude-sonnet-4-5-20250929-v1:0"),
        (
            "arn:aws:bedrock:eu-west-1:1:application-inference-profile/abc123",
            "application-inference-profile/abc123",
        ),
        ("arn:aws:bedrock:eu-west-1:1:provisioned-model/xyz", "provisioned-model/xyz"),
        ("us.example.model", "us.example.model"),
        ("GPT-4o-2024-08-06", "gpt-4o-2024-08-06"),
        ("", ""),
        (None, ""),
        (7, ""),
    ],
)
def test_recorded_id_keeps_vendor_date_and_version(text, recorded):
    assert recorded_model(text) == recorded


def test_exact_id_wins_over_its_undated_form():
    assert default_table().find("openai", "gpt-4o-2024-05-13").key == "gpt-4o-2024-05-13"
    assert default_table().find("openai", "gpt-4o-2024-11-20").key == "gpt-4o"


def test_family_prices_at_the_dearest_member():
    found = default_table().find("anthropic", "claude-opus-4-9-20270101")
    assert (found.source, found.key) == ("family", "claude-opus-4-")
    assert found.rates.output == 75 * 10**9


def test_unknown_model_not_free():
    priced = price(Usage("openai", "brand-new-model", input_tokens=1_000_000, output_tokens=1_000_000))
    assert priced.rate_source == "fallback"
    # the dearest of the table: 30 (60 above the long-context step) and 180 (270) dollars
    assert priced.cost_nusd >= (30 + 180) * 10**9
    every = [
        default_table().find("openai", name).rates for name in ("gpt-5.5-pro", "o3", "gpt-4", "gpt-6-astra")
    ]
    fallback = default_table().find("openai", "brand-new-model").rates
    assert all(fallback.input >= rates.input and fallback.output >= rates.output for rates in every)


def test_unknown_model_of_anthropic_costs_the_dearest():
    rates = default_table().find("anthropic", "mystery").rates
    assert rates.input >= 15 * 10**9
    assert rates.output >= 75 * 10**9


def test_unknown_provider_costs_the_dearest_of_all():
    table = default_table()
    found = table.find("nobody", "claude-haiku-4-5")
    assert found.source == "fallback"
    for provider in ("anthropic", "openai"):
        other = table.find(provider, "mystery").rates
        assert found.rates.input >= other.input
        assert found.rates.output >= other.output


def test_empty_model_is_a_fallback():
    assert default_table().find("anthropic", "").source == "fallback"


def test_cache_only_call_is_not_free():
    assert cost("claude-sonnet-4-5", cache_read_tokens=1000) == usd("0.0003")


def test_unknown_service_tier_costs_the_dearest_of_its_kind():
    dear = cost("gpt-4o", "openai", input_tokens=100, multipliers=("service_tier:hyper",))
    assert dear == 6 * cost("gpt-4o", "openai", input_tokens=100)


def test_incomplete_usage_takes_the_larger_of_report_and_estimate():
    base = {"input_tokens": 100, "output_tokens": 1, "complete": False}
    assert cost("claude-sonnet-4-6", **base, estimated_output_tokens=40) == usd("0.0009")
    assert cost("claude-sonnet-4-6", **base, output_bound_tokens=1000) == usd("0.0153")
    assert price(Usage("anthropic", "claude-sonnet-4-6", **base)).estimated


def test_unseen_input_of_an_incomplete_call_is_priced():
    usage = Usage(
        "openai", "gpt-4o", complete=False, estimated_input_tokens=1000, estimated_cache_write="none"
    )
    assert price(usage).cost_nusd == usd("0.0025")


def test_overlay_adds_a_model_a_provider_and_replaces_figures():
    table = PriceTable.load(
        {
            "as_of": "2027-01-01",
            "source": "contract",
            "providers": {
                "openai": {
                    "models": {"gpt-4o": {"input": 2, "output": 9}, "house": {"input": 0.15, "output": "0.6"}}
                },
                "acme": {"models": {"big": {"input": "1", "output": "2"}}},
            },
        }
    )
    assert table.overlaid
    assert (table.as_of, table.source) == ("2027-01-01", "contract")
    assert price(Usage("openai", "gpt-4o", output_tokens=100), table).cost_nusd == usd("0.0009")
    assert price(Usage("openai", "house", input_tokens=1000), table).cost_nusd == usd("0.00015")
    assert price(Usage("acme", "big", input_tokens=1000), table).rate_source == "table"
    assert table.find("openai", "o3").source == "table"
    # cache rates of a new model follow the provider's factors
    assert table.find("openai", "house").rates.cache_write_1h == 300_000_000


@pytest.mark.parametrize(
    "overlay",
    [
        {"models": {}},
        {"providers": {"openai": {"modles": {}}}},
        {"providers": {"openai": {"models": {"m": {"input": "1"}}}}},
        {"providers": {"openai": {"models": {"m": {"input": "NaN", "output": 1}}}}},
        {"providers": {"openai": {"models": {"m": {"input": -1, "output": 1}}}}},
        {"providers": {"openai": {"models": {"m": {"input": True, "output": 1}}}}},
        {"providers": {"openai": {"models": {"m": {"input": 1, "output": "cheap"}}}}},
        {"providers": {"openai": {"models": {"m": {"input": 1, "output": 1, "context_window": "x"}}}}},
        {"providers": {"openai": {"models": {"m": {"input": 1, "output": 1, "typo": 1}}}}},
        {"providers": {"openai": {"models": {"m": 3}}}},
        {"providers": {"new": {"models": {}}}},
        {"providers": []},
    ],
)
def test_a_damaged_overlay_is_an_error_not_a_free_model(overlay):
    with pytest.raises(ConfigError):
        PriceTable.load(overlay)


def test_table_says_how_old_it_is():
    table = default_table()
    assert table.age_days(date.fromisoformat(table.as_of)) == 0
    assert table.source


def test_no_price_in_the_table_is_zero_but_embeddings_output():
    table = default_table()
    for provider, entry in table._providers.items():
        for name, rates in entry.models.items():
            assert rates.input > 0, (provider, name)
            assert rates.cache_read > 0
            assert rates.output > 0 or name.startswith("text-embedding")
            assert rates.context_window > 0


def test_the_memory_of_names_is_bounded():
    table = PriceTable.load()
    for number in range(2000):
        table.find("openai", f"m{number}")
    table.find("openai", "x" * 100_000)
    assert len(table._memo) <= 256
