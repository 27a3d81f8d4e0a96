"""Rules for credentials and places of secrets, as the configuration has them."""

from __future__ import annotations

import base64
import os
import sys
import time

import pytest

from km_core.config import load_config
from km_core.errors import ConfigError, ControlError
from km_core.secrets import CommandSource, CredentialRule, EnvFileSource, credential_value, fingerprint
from km_core.secrets import sources as places

VALUE = "sk-very-secret-0123456789"


def config(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    return load_config({"KM_HOME": str(tmp_path), "KM_RUNTIME_DIR": str(tmp_path / "r")})


def test_a_rule_needs_a_host_and_a_secret_and_has_defaults(tmp_path):
    found = config(tmp_path, "credentials:\n- {host: API.Example.COM., secret: example-key}\n")
    assert found.credentials == (CredentialRule("api.example.com", "example-key"),)
    rule = found.credentials[0]
    assert CredentialRule.from_data(rule.to_data()) == rule
    assert (rule.injection.header, rule.injection.template) == ("authorization", "Bearer {secret}")


@pytest.mark.parametrize(
    "rule",
    [
        "{host: api.example.com}",
        "{host: '*.example.com', secret: k}",
        "{host: .example.com, secret: k}",
        "{host: localhost, secret: k}",
        "{host: 'https://api.example.com', secret: k}",
        "{host: api.example.com, secret: K}",
        "{host: api.example.com, secret: k, header: Host}",
        "{host: api.example.com, secret: k, header: content-length}",
        "{host: api.example.com, secret: k, header: 'x y'}",
        "{host: api.example.com, secret: k, template: plain}",
        "{host: api.example.com, secret: k, template: '{secret}{secret}'}",
        '{host: api.example.com, secret: k, template: "{secret}\\r\\nx: y"}',
        "{host: api.example.com, secret: k, strip: x-key}",
        "{host: api.example.com, secret: k, env: {lower: x}}",
        "{host: api.example.com, secret: k, value: v}",
    ],
)
def test_a_rule_that_is_none_is_refused_with_its_number(tmp_path, rule):
    with pytest.raises(ConfigError, match=r"credentials\[0\]"):
        config(tmp_path, f"credentials:\n- {rule}\n")


def test_a_host_has_one_rule(tmp_path):
    with pytest.raises(ConfigError, match="two rules"):
        config(tmp_path, "credentials:\n- {host: a.example, secret: k}\n- {host: A.example, secret: l}\n")


def test_a_template_is_filled_in_plain_or_as_basic():
    assert credential_value("token {secret}", "abc\n") == "token abc"
    filled = credential_value("Basic {basic:x-access-token}", "abc")
    assert base64.b64decode(filled.removeprefix("Basic ")) == b"x-access-token:abc"
    for value in ("a\nb", "ü", ""):
        with pytest.raises(ValueError, match="characters"):
            credential_value("{secret}", value)


@pytest.mark.parametrize(
    "place", ["{}", "{command: []}", "{command: op}", "{command: [op], env_file: /x}", "{env_file: /x}",
              "{env_file: x, variable: K}", "{env_file: /x, variable: 'a b'}", "sk-123"],
)  # fmt: skip
def test_a_place_that_is_none_is_refused_without_its_content(tmp_path, place):
    with pytest.raises(ConfigError, match=r"secrets\.my-key") as caught:
        config(tmp_path, f"secrets:\n  my-key: {place}\n")
    assert "sk-123" not in str(caught.value)


def test_a_variable_of_a_private_file_is_read(tmp_path):
    path = tmp_path / "keys.env"
    path.write_text(f"# keys\nOTHER=x\nexport MY_KEY='{VALUE}'\n")
    path.chmod(0o600)
    source = config(tmp_path, f"secrets:\n  my-key: {{env_file: {path}, variable: MY_KEY}}\n").secrets[
        "my-key"
    ]
    assert source.read() == VALUE
    before = source.stamp()
    path.write_text("MY_KEY=another-value\n")
    assert source.stamp() != before
    assert source.read() == "another-value"
    with pytest.raises(ControlError, match="no variable"):
        EnvFileSource(path, "NONE").read()


def test_a_file_that_others_may_read_is_not_used(tmp_path):
    path = tmp_path / "keys.env"
    path.write_text(f"MY_KEY={VALUE}\n")
    path.chmod(0o640)
    with pytest.raises(ControlError, match="owner only") as caught:
        EnvFileSource(path, "MY_KEY").read()
    assert VALUE not in str(caught.value)


def test_a_commands_output_is_the_value_and_its_errors_show_nothing():
    print_it = f"print({VALUE!r})"
    assert CommandSource((sys.executable, "-c", print_it)).read() == VALUE
    failing = f"import sys; {print_it}; print({VALUE!r}, file=sys.stderr); sys.exit(3)"
    for argv in ((sys.executable, "-c", failing), (sys.executable, "-c", ""), ("/nonexistent/op",)):
        with pytest.raises(ControlError) as caught:
            CommandSource(argv).read()
        assert VALUE not in str(caught.value.to_dict())


def test_a_command_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(places, "COMMAND_TIMEOUT_S", 0.3)
    began = time.monotonic()
    with pytest.raises(ControlError, match="did not end"):
        CommandSource((sys.executable, "-c", "import time; time.sleep(60)")).read()
    assert time.monotonic() - began < 10


def test_a_fingerprint_needs_its_key():
    assert fingerprint(bytes(32), VALUE) == fingerprint(bytes(32), VALUE)
    assert fingerprint(bytes(32), VALUE) != fingerprint(b"1" * 32, VALUE)
    assert len(fingerprint(bytes(32), VALUE)) == 8


def test_the_last_line_of_a_variable_counts_and_a_pipe_makes_nobody_wait(tmp_path):
    path = tmp_path / "keys.env"
    path.write_text(f"MY_KEY=old\nMY_KEY={VALUE}\nMY_KEY_2=x\n")
    path.chmod(0o600)
    assert EnvFileSource(path, "MY_KEY").read() == VALUE
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ControlError, match="owner only"):
        EnvFileSource(tmp_path / "pipe", "MY_KEY").read()
