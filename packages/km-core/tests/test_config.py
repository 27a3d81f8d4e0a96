from __future__ import annotations

import pytest

from km_core.config import load_config
from km_core.errors import ConfigError


def config(tmp_path, text="", **env):
    (tmp_path / "config.yaml").write_text(text)
    return load_config({"KM_HOME": str(tmp_path), **env})


def test_defaults_hold_without_a_file(tmp_path):
    loaded = load_config({"KM_HOME": str(tmp_path / "fresh")})

    assert ("embedded", 10) == (loaded.control_plane, loaded.max_sandboxes)
    assert not (tmp_path / "fresh").exists()


def test_the_environment_wins_over_the_file(tmp_path):
    loaded = config(
        tmp_path,
        "upstream_dns: 192.0.2.1\nmax_sandboxes: 3\n",
        KM_UPSTREAM_DNS="192.0.2.9",
        KM_MAX_SANDBOXES="7",
    )

    assert ("192.0.2.9", 7) == (loaded.upstream_dns, loaded.max_sandboxes)


def test_an_unknown_key_is_an_error_with_a_suggestion(tmp_path):
    with pytest.raises(ConfigError, match="unknown key upstream_dsn") as caught:
        config(tmp_path, "upstream_dsn: 192.0.2.1\n")

    assert "upstream_dns" in caught.value.hint
    assert 2 == caught.value.exit_code


def test_x_keys_are_left_alone(tmp_path):
    config(tmp_path, "x-mine: 1\n")


def test_a_broken_file_names_line_and_column(tmp_path):
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, "limits: {memory: 1G\n")

    assert "config.yaml:2:1" in caught.value.where


@pytest.mark.parametrize(
    "text",
    [
        "max_sandboxes: ten",
        "max_sandboxes: true",
        "limits: 3",
        "limits: {memori: 1G}",
        "upstreams: {a.example: 3}",
        "private_hosts: [a]",
    ],
)
def test_values_of_the_wrong_shape_are_errors(tmp_path, text):
    with pytest.raises(ConfigError):
        config(tmp_path, text + "\n")


def test_upstreams_take_a_url_or_a_mapping(tmp_path):
    loaded = config(
        tmp_path,
        "upstreams:\n  API.example.: https://127.0.0.1:1\n  b.example: {url: 'http://127.0.0.1:2', ca_file: /x}\n",
    )

    assert {"api.example": ("https://127.0.0.1:1", ""), "b.example": ("http://127.0.0.1:2", "/x")} == {
        host: (up.url, up.ca_file) for host, up in loaded.upstreams.items()
    }


def test_sockets_of_two_homes_never_meet(tmp_path):
    first, second = (load_config({"KM_HOME": str(tmp_path / name)}) for name in ("a", "b"))

    assert first.runtime_dir != second.runtime_dir
    assert len(str(first.runtime_dir / "sb-00000000" / "gate" / "bootstrap.sock")) < 100


@pytest.mark.parametrize(
    "text",
    [
        "profile_search_paths: [1]\n",
        "local: {read_only_paths: [{a: 1}]}\n",
        "ai: {openaiCompatibleHosts: [null]}\n",
        "private_hosts: [{host: a.example, cidr: nonsense}]\n",
        "max_sandboxes: -1\n",
        "dns: {name_bytes: 255}\n",
        "dns: {name_bytes_per_hour: -1}\n",
        "domain: 2001-99-99\n",
        "[" * 3000,
    ],
)
def test_a_value_that_would_fail_later_is_refused_with_its_file(tmp_path, text):
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, text)

    assert str(tmp_path) in caught.value.where


def test_a_key_without_a_value_keeps_its_default(tmp_path):
    loaded = config(tmp_path, "max_sandboxes:\ncontrol_plane:\ndns: {name_bytes: , name_bytes_per_hour: 0}\n")

    assert (10, "embedded") == (loaded.max_sandboxes, loaded.control_plane)
    assert (8192, 0) == (loaded.dns_name_bytes, loaded.dns_name_bytes_per_hour)


def test_a_configuration_that_was_named_must_be_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config({"KM_HOME": str(tmp_path), "KM_CONFIG_PATH": str(tmp_path / "missing.yaml")})


def test_relative_directories_hold_for_processes_that_leave_this_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = load_config({"KM_HOME": "h", "KM_RUNTIME_DIR": "r", "XDG_RUNTIME_DIR": "x"})

    assert (tmp_path / "h", tmp_path / "r") == (loaded.home, loaded.runtime_dir)
    assert load_config({"KM_HOME": "h", "XDG_RUNTIME_DIR": "."}).runtime_dir.is_absolute()
