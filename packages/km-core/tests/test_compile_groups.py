from __future__ import annotations

import pytest

from km_core.compile.groups import core_groups, resolve_groups, resolve_python_packages
from km_core.errors import PlanError

DEFAULT = {"index": "https://index.invalid/simple", "files": "files.invalid"}


def resolve(*settings):
    return resolve_python_packages(lambda: {**DEFAULT, "settings": list(settings)})


def test_without_settings_the_operators_pip_default_is_used_with_its_file_host():
    assert ("files.invalid:443", "index.invalid:443") == resolve().hosts


def test_a_configured_index_replaces_the_default_and_keeps_its_port():
    group = resolve("global.index-url='https://mirror.invalid:8443/simple'")

    assert ("mirror.invalid:8443",) == group.hosts
    assert ("PIP_INDEX_URL", "https://mirror.invalid:8443/simple") in group.env


def test_uv_is_told_the_same_indexes():
    group = resolve(
        "global.index-url='https://a.invalid/simple'", "global.extra-index-url='https://b.invalid/simple'"
    )

    assert ("UV_DEFAULT_INDEX", "https://a.invalid/simple") in group.env
    assert ("UV_INDEX", "https://b.invalid/simple") in group.env


def test_the_environment_wins_over_files():
    group = resolve(
        ":env:.index-url='https://b.invalid/simple'", "global.index-url='https://a.invalid/simple'"
    )

    assert ("b.invalid:443",) == group.hosts


def test_local_indexes_are_left_out():
    group = resolve("global.extra-index-url='file:///somewhere/simple https://extra.invalid/simple'")

    assert ("extra.invalid:443", "files.invalid:443", "index.invalid:443") == group.hosts


def test_credentials_in_an_index_are_refused_and_not_repeated():
    with pytest.raises(PlanError) as caught:
        resolve("global.index-url='https://me:hunter2@mirror.invalid/simple'")

    assert "hunter2" not in str(caught.value) + caught.value.hint


def test_an_unknown_group_is_named():
    with pytest.raises(PlanError, match="@nobody"):
        resolve_groups(["@nobody"], core_groups())


def test_the_operators_real_pip_answers():
    group = core_groups()["@python-packages"].resolve()

    assert group.hosts
    assert all(":" in host for host in group.hosts)
