"""Secrets do not reach records or logs; the evidence stays readable."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from km_core.audit import ChainWriter, redact, redact_processor, redact_text

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c"
SECRETS = [
    "AKIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE", "ghp_" + "a1" * 18, "ghs_" + "B2" * 20, "github_pat_" + "x" * 30,
    "xoxb-123456789012-abcdef", "xapp-1-A0123-456", "sk-ant-api03-abcdefgh", "sk-proj-abcdefgh12345678", "sk-" + "z" * 40,
    JWT, "f" * 40, "DEADBEEF" * 6,
    "ABSK" + "QmVk" * 12, "ghs_" + "a_" * 30, "sk_live_" + "a1" * 12, "rk_test_" + "b2" * 12, "gsk_" + "c" * 52,
    "xai-" + "d" * 40, "pplx-" + "e" * 48, "hf_" + "g" * 34, "npm_" + "h" * 36, "glpat-" + "i" * 20, "dckr_pat_" + "j" * 27,
    "dop_v1_" + "k" * 40, "hvs." + "l" * 24, "pypi-" + "AgEI" * 20, "AIza" + "m" * 35, "ya29." + "n" * 40,
    "SG." + "o" * 22 + "." + "p" * 43, "AGE-SECRET-KEY-1" + "Q" * 58, "hooks.slack.com/services/T0/B0/" + "r" * 24,
    "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjE\nAAAA\n-----END OPENSSH PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\ncut off",
]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_replaced_wherever_it_stands(secret):
    for text in (secret, f"before {secret} after", f'{{"x":"{secret}"}}', f"https://host/?q={secret}"):
        assert secret not in redact_text(text)
        assert "[REDACTED]" in redact_text(text)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("Authorization: Basic dXNlcjpwdw==", "dXNlcjpwdw"),
        ("authorization: token abc", "abc"),
        ("curl -H 'Authorization: Bearer abc.def-123'", "abc.def"),
        ("x-api-key: abc", "abc"),
        ("/b/k?X-Amz-Security-Token=IQoJb3JpZ2luX2VjEJ%2F%2F%2F%2F%2F", "IQoJb3"),
        ("/b/k?X-Amz-Signature=" + "0a" * 32, "0a0a0a"),
        ("https://user:hunter2@example.org/", "hunter2"),
        ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "wJalr"),
        ('"password": "correct-horse-battery"', "correct-horse"),
    ],
)
def test_a_secret_next_to_its_key_word_is_replaced(text, hidden):
    assert hidden not in redact_text(text)


@pytest.mark.parametrize(
    "text", ["api.github.com", "no rule of the profile allows this name", "input_tokens 12", "a" * 39, "keyboard", "https://example.org:443/x"]
)  # fmt: skip
def test_ordinary_text_stays(text):
    assert redact_text(text) == text


def test_a_commit_id_keeps_its_head():
    assert redact_text("commit 0123456789012345678901234567890123456789") == "commit 0123456…"


def test_keys_named_like_secrets_hide_the_whole_value():
    data = {
        "api_key": "x",
        "nested": [{"Password": ["a"], "SESSION-TOKEN": "y"}],
        "input_tokens": 5,
        "cookie": "",
        "n": None,
    }
    assert redact(data) == {
        "api_key": "[REDACTED]",
        "nested": [{"Password": "[REDACTED]", "SESSION-TOKEN": "[REDACTED]"}],
        "input_tokens": 5,
        "cookie": "",
        "n": None,
    }
    assert data["api_key"] == "x"


@given(st.recursive(st.text() | st.integers() | st.none() | st.binary(max_size=20),
                    lambda i: st.lists(i, max_size=3) | st.dictionaries(st.text(max_size=12), i, max_size=3)))  # fmt: skip
def test_any_data_can_be_redacted_twice_alike(data):
    once = redact(data)
    assert redact(once) == once


def test_records_and_log_lines_are_redacted_and_their_structure_is_not(tmp_path):
    with ChainWriter(tmp_path / "g.jsonl", writer="g", sandbox_id="sb-12345678") as chain:
        chain.append(
            {
                "kind": "http",
                "name": "f" * 40 + ".test",
                "path": "/?key=" + SECRETS[0],
                "detail": {"token": "t"},
            }
        )
    record = json.loads((tmp_path / "g.jsonl").read_text())
    assert record["name"] == "f" * 40 + ".test"
    assert SECRETS[0] not in record["path"]
    assert record["detail"] == {"token": "[REDACTED]"}
    line = redact_processor(
        None, "info", {"event": f"got {SECRETS[0]}", "level": "info", "token": "abc", "sandbox_id": "sb-1"}
    )
    assert line == {"event": "got [REDACTED]", "level": "info", "token": "[REDACTED]", "sandbox_id": "sb-1"}


def test_a_long_hostile_line_costs_little():
    redact_text("://" * 20_000 + "-----BEGIN " * 2000 + "a:" * 20_000)
