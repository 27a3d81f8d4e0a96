"""What cannot be done is said once and clearly, before anything is made."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from standins.world import World


@pytest.fixture
def broken(world: World) -> Path:
    path = world.profile("broken")
    path.write_text(
        path.read_text().replace('"allowedHosts": [', '"allowedHosts": ["https://api.example.org/",')
    )
    return path


def nothing_was_made(world: World) -> None:
    assert world.km("list", "--json").json() == []
    assert list((world.home / "sandboxes").glob("[!.]*")) == []


def test_a_profile_error_names_file_line_column_path_reason_and_hint(world: World, broken: Path) -> None:
    for command in (["validate", str(broken)], ["create", str(broken)]):
        outcome = world.km(*command).assert_failed(1, "spec.network.egress.allowedHosts[0]", "hint:")
        line = next(line for line in outcome.stderr.splitlines() if "allowedHosts[0]" in line)
        place, row, column = line.split(":")[:3]
        assert place == str(broken)
        assert int(row) > 1
        assert int(column) > 1
    nothing_was_made(world)


@pytest.mark.parametrize(
    ("section", "path"),
    [
        (
            {"network": {"enforcement": "ebpf", "egress": {"allowedDNSSuffixes": []}}},
            "spec.network.enforcement",
        ),
        ({"otp": {"secrets": ["/team/one"]}}, "spec.otp"),
    ],
    ids=["ebpf", "otp"],
)
def test_a_field_that_nothing_enforces_is_refused_by_name(
    world: World, substrate: str, section: dict[str, object], path: str
) -> None:
    profile = world.profile("unenforced", **section)
    world.km("create", str(profile), "--substrate", substrate).assert_failed(1, path)
    nothing_was_made(world)


def test_an_unknown_reference_is_not_found(world: World) -> None:
    for command in (["status", "nobody"], ["exec", "nobody", "--", "true"], ["destroy", "nobody", "--yes"]):
        world.km(*command).assert_failed(5)


def test_destroy_without_a_terminal_needs_yes(world: World, substrate: str) -> None:
    box = world.create(world.profile("asked"), substrate)
    world.km("destroy", box.id).assert_failed(3, "--yes")
    assert box.status()["state"] == "running"
    box.destroy().assert_ok()


def test_a_second_sandbox_of_one_alias_is_refused(world: World, substrate: str) -> None:
    box = world.create(world.profile("first"), substrate, "--alias", "taken")
    world.km(
        "create", str(world.profile("second")), "--substrate", substrate, "--alias", "taken"
    ).assert_failed(4)
    box.destroy().assert_ok()


@pytest.mark.parametrize(
    "substrate", [pytest.param("local", marks=pytest.mark.namespaces)], indirect=True, scope="module"
)
def test_without_user_namespaces_there_is_one_message_with_the_remedy(world: World) -> None:
    """``user.max_user_namespaces`` counts per user namespace, so a child can play the restricted host."""
    shell = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    done = subprocess.run(
        ["unshare", "-Ur", "sh", "-c", shell, "sh", *world.argv("create", str(world.profile("plain")))],
        env=world.env
        | {"KM_HOME": str(world.directory / "other"), "KM_RUNTIME_DIR": str(world.directory / "r2")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, done.stderr
    assert "max_user_namespaces" in done.stderr
