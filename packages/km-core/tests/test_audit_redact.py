"""Secrets do not reach records or logs; the evidence stays readable."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from km_core.audit import ChainWriter, DecisionLog, redact, redact_processor, redact_text
from km_core.audit.redact import redact_name
from km_core.types import Verdict

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
    "ghs_1234567_" + JWT, "xoxe.xoxp-1-" + "a1" * 20, "xoxd-" + "b2%2B" * 8, "sk-svcacct-" + "c3" * 20, "GOCSPX-" + "d4" * 14,
    "glrt-" + "e5" * 10, "dckr_oat_" + "f6" * 16, "tskey-auth-" + "g7" * 16, "shpat_" + "a8" * 16, "dapi" + "0b" * 16,
    "glsa_" + "h9" * 16, "ntn_" + "i0" * 22, "sntryu_" + "a1" * 32, "123456789:AA" + "j2" * 16, "/api/webhooks/123456789012345678/" + "k3" * 30,
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
        ("{'password': 'short!'}", "short"),
        ("{'authorization': 'token abc'}", "abc"),
        (r"{\"authorization\": \"token abc\"}", "abc"),
        ("password=hunter2!", "hunter2"),
        ("?client_secret=p%40ss&x=1", "p%40ss"),
        ("https://a.blob.example/c?sp=r&sig=a%2Bb%3D", "a%2Bb"),
        ("next=https%3A%2F%2Fh%2F%3Ftoken%3Dabcdef", "abcdef"),
        ("url%3Dsk-" + "z" * 30, "zzz"),
        ("https://0123456789abcdef0123@o1.ingest.example/1", "0123456789"),
    ],
)
def test_a_secret_next_to_its_key_word_is_replaced(text, hidden):
    assert hidden not in redact_text(text)


@pytest.mark.parametrize(
    "text", ["api.github.com", "no rule of the profile allows this name", "input_tokens 12", "a" * 39, "keyboard", "https://example.org:443/x",
     "/disk-encryption-set-configuration", "task-runner-production-eu-01", "token: expected", "pypi-mirror-internal.example",
     "npm_config_registry_setting", "https://user@example.org/", "signal=9"]
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


@pytest.mark.parametrize(
    ("name", "left"),
    [
        (f"{'ghp_' + 'a1' * 18}.evil.test", "[REDACTED].evil.test"),
        (f"x.{'SK-ant-api03-' + 'b2' * 20}.evil.test", "x.[REDACTED].evil.test"),
        (f"{'akiaiosfodnn7example'}.evil.test", "[REDACTED].evil.test"),
        (f"{'eyj' + 'c' * 30}.{'eyj' + 'd' * 30}.{'e' * 43}.evil.test", "[REDACTED].evil.test"),
        (f"{'f' * 40}.cdn.test", f"{'f' * 40}.cdn.test"),
        ("task-sk-eu-west.asia.akia.test", "task-sk-eu-west.asia.akia.test"),
        ("pypi-mirror.secret.token.test", "pypi-mirror.secret.token.test"),
    ],
)
def test_a_token_in_a_name_is_replaced_and_where_it_went_is_not(tmp_path, name, left):
    with ChainWriter(tmp_path / "g.jsonl", writer="g", sandbox_id="sb-12345678") as chain:
        DecisionLog(chain).record(Verdict(False, "r", "dns", "no"), kind="dns_query", name=name)
        chain.append({"kind": "dial_failed", "name": name})
    records = [json.loads(line) for line in (tmp_path / "g.jsonl").read_text().splitlines()]
    assert [record["name"] for record in records] == [left, left]


@pytest.mark.parametrize(
    "part",
    ["://", "-----BEGIN ", "a:", "eyJ", "eyJa.", "token=", "'password': '", "\\", "%3D", "%3DeyJ", "sk-", "ghs_", "SG.", "basic ",
     "token ", "cookie\t", "a.", "-", "xox", "0", "0:AA", "/api/webhooks/1"],
)  # fmt: skip
def test_a_long_hostile_line_costs_little(part):
    """As long as a record may be; what a sandbox reports goes through this in the control plane."""
    line = part * (256 * 1024 // len(part))
    began = time.process_time()
    redact_text(f"token {line}")
    redact_name(line)
    assert time.process_time() - began < 5
