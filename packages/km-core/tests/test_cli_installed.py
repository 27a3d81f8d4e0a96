from __future__ import annotations

from importlib.metadata import entry_points
from importlib.metadata import version as installed_version

from km_core.cli import installed


def test_the_version_is_the_one_the_metadata_states():
    assert installed_version("km-core") == installed.version()


def test_the_same_commands_are_found_as_the_slow_way_finds():
    assert {entry.name for entry in entry_points(group="km.commands")} == set(installed.plugin_commands())


def test_a_plugins_command_is_listed_with_its_distributions_summary(tmp_path, monkeypatch):
    directory = tmp_path / "km_pretend-1.0.dist-info"
    directory.mkdir()
    (directory / "entry_points.txt").write_text(
        "[other]\nx = a:b\n\n[km.commands]\n# a remark\nslack = km_pretend.cli:slack\n"
    )
    (directory / "METADATA").write_text("Name: km-pretend\nSummary: Talk in Slack\n\nSummary: not this\n")
    monkeypatch.setattr("sys.path", [str(tmp_path), str(tmp_path / "nowhere"), str(tmp_path)])

    assert {"slack": "Talk in Slack"} == installed.plugin_commands()
