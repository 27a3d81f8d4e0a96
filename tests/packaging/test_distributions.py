"""Every distribution is complete, says the same version, and works when it is built and installed alone."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = sorted(path for path in (ROOT / "packages").iterdir() if (path / "pyproject.toml").exists())
VERSION = (ROOT / "VERSION").read_text(encoding="utf-8").strip()


def project(package: Path) -> dict[str, object]:
    data: dict[str, object] = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    return data


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.name)
def test_folder_distribution_and_import_package_have_one_name(package: Path) -> None:
    assert project(package)["name"] == package.name
    assert (package / "src" / package.name.replace("-", "_") / "__init__.py").exists()


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.name)
def test_distribution_is_typed_licensed_and_described(package: Path) -> None:
    assert (package / "src" / package.name.replace("-", "_") / "py.typed").exists()
    assert (package / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    readme = (package / "README.md").read_text(encoding="utf-8")
    assert readme.startswith(f"# {package.name}\n")
    assert "Typing :: Typed" in str(project(package)["classifiers"])


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.name)
def test_own_distributions_are_required_in_this_minor_version_only(package: Path) -> None:
    major, minor, _ = VERSION.split(".")
    wanted = f">={major}.{minor},<{major}.{int(minor) + 1}"
    own = [str(item) for item in project(package).get("dependencies", []) if str(item).startswith("km-")]
    assert own == [f"{re.split('[<>=]', item)[0]}{wanted}" for item in own]


def test_no_registry_host_and_no_machines_path_stands_in_the_repository() -> None:
    pattern = "|".join(
        ["registry[.]npm" + "js", "py" + "pi[.]org", "python" + "hosted", "deb[.]debian" + "[.]org"]
    )
    done = subprocess.run(
        ["git", "grep", "-nIE", pattern], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == ""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheels")
    for package in PACKAGES:
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)],
            cwd=package,
            check=True,
            capture_output=True,
        )
    return target


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.name)
def test_wheel_holds_the_package_and_nothing_else(package: Path, wheels: Path) -> None:
    module = package.name.replace("-", "_")
    (wheel,) = wheels.glob(f"{module}-{VERSION}-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert f"{module}/py.typed" in names
    assert {name.split("/")[0] for name in names} == {module, f"{module}-{VERSION}.dist-info"}
    # The templates of new plugins are data, their tests included.
    own = [name for name in names if not name.startswith("km_core/scaffold/templates/")]
    assert not [name for name in own if "/tests/" in name or name.endswith(".pyc")]
    sources = (package / "src").rglob("*")
    missing = [
        str(path.relative_to(package / "src"))
        for path in sources
        if path.is_file()
        and "__pycache__" not in path.parts
        and str(path.relative_to(package / "src")) not in names
    ]
    assert missing == []


def test_help_and_version_load_neither_plugins_nor_heavy_libraries() -> None:
    km = Path(sys.executable).with_name("km")
    for arguments in (["--help"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", str(km), *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
        heavy = {
            "boto3",
            "botocore",
            "nacl",
            "proxy",
            "dnslib",
            "cattrs",
            "structlog",
            "uvloop",
            "yaml",
            "docker",
        }
        plugins = {"km_embedded", "km_host", "km_net_proxy", "km_substrate_local", "km_substrate_docker"}
        assert loaded & (heavy | plugins) == set(), arguments
