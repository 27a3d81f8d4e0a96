"""A working directory is handed over to the sandbox's user, so it is none of the system's."""

from __future__ import annotations

import pytest

from km_substrate_docker.plugin import km_validate_profile


def profile(directory):
    return {"spec": {"execution": {"workingDir": directory}}}


@pytest.mark.parametrize(
    "path", ["/etc", "/etc/", "//etc", "/tmp/../etc", "/usr/bin", "/usr", "/opt/km/bin", "/lib64"]
)
def test_a_directory_of_the_system_is_refused(path):
    (problem,) = km_validate_profile(profile(path), "docker")
    assert problem.path == "spec.execution.workingDir"
    assert not km_validate_profile(profile(path), "local")


@pytest.mark.parametrize(
    "path", ["/workspace", "/home/sandbox/a", "/", "/app", "/usr/src/app", "/var/www", "/etcetera"]
)
def test_others_are_not(path):
    assert not km_validate_profile(profile(path), "docker")
