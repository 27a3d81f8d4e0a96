"""A wheelhouse is whole, unchanged and replaced only by another one: with small wheels, without an index."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from standins.distributions import make_wheel

from km_core.errors import GuardError
from km_core.plan import SandboxPlan
from km_core.wheelhouse import (
    LOCK,
    MANIFEST,
    Manifest,
    Order,
    Source,
    Wheel,
    WheelhouseError,
    build_wheelhouse,
    order_for,
    read_wheel,
    verify_wheelhouse,
)
from km_core.wheelhouse import fetch as fetching
from km_core.wheelhouse.fetch import same_as_installed

if TYPE_CHECKING:
    from pathlib import Path

PLAN = SandboxPlan("small", "0" * 64, "sb", "local", requirements=("km-tiny==1.0",))


@pytest.fixture
def order(tmp_path: Path) -> Order:
    """Two wheels, one of which requires the other."""
    sources = []
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for name, requires in (("km-tiny", ("km-tinier",)), ("km-tinier", ())):
        path = shelf / f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
        path.write_bytes(make_wheel(name, "1.0", {f"{name.replace('-', '_')}.py": ""}, requires=requires))
        sources.append(Source(name, "1.0", path))
    return Order(PLAN, tuple(sources), ())


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the fetched set be what was built: these wheels need no resolver."""

    def only_built(built, wanted, versions, work):
        target = work / "fetched"
        target.mkdir()
        for path in built:
            os.link(path, target / path.name)
        return sorted(target.iterdir())

    monkeypatch.setattr("km_core.wheelhouse.build.fetch", only_built)


@pytest.fixture
def house(order: Order, offline: None, tmp_path: Path) -> Path:
    build_wheelhouse(order, tmp_path / "house")
    return tmp_path / "house"


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def problems(house: Path) -> list[str]:
    return [flaw.file for flaw in verify_wheelhouse(house)[1]]


WHEELS = ["km_tinier-1.0-py3-none-any.whl", "km_tiny-1.0-py3-none-any.whl"]


def test_what_was_built_is_listed_locked_and_well(house: Path) -> None:
    manifest, flaws = verify_wheelhouse(house)

    assert flaws == ()
    assert names(house) == sorted([*WHEELS, LOCK, MANIFEST])
    assert [wheel.file for wheel in manifest.wheels] == WHEELS
    lines = (house / LOCK).read_text().splitlines()[1:]
    assert lines == [f"{w.name}==1.0 --hash=sha256:{w.sha256}" for w in manifest.wheels]


def test_every_kind_of_change_is_named_by_file(house: Path) -> None:
    wheel = house / WHEELS[0]
    good = wheel.read_bytes()

    wheel.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert problems(house) == [WHEELS[0]]
    wheel.write_bytes(good + b"\0")
    assert problems(house) == [WHEELS[0]]
    wheel.unlink()
    assert problems(house) == [WHEELS[0]]
    wheel.symlink_to(house.parent / "shelf" / WHEELS[0])
    assert problems(house) == [WHEELS[0]]
    wheel.unlink()
    os.mkfifo(wheel)
    assert problems(house) == [WHEELS[0]]
    wheel.unlink()
    wheel.write_bytes(good)
    assert problems(house) == []

    (house / "extra-1.0-py3-none-any.whl").write_bytes(good)
    assert problems(house) == ["extra-1.0-py3-none-any.whl"]
    (house / "extra-1.0-py3-none-any.whl").unlink()
    (house / LOCK).write_text((house / LOCK).read_text() + "--index-url https://evil.example\n")
    assert problems(house) == [LOCK]


def test_a_list_that_was_rewritten_has_another_digest(house: Path) -> None:
    manifest, _ = verify_wheelhouse(house)
    other = evolve(manifest, wheels=manifest.wheels[:1], requirements=())
    (house / WHEELS[1]).unlink()
    (house / LOCK).write_text(other.to_lock())
    (house / MANIFEST).write_text(other.to_json())

    assert problems(house) == []
    assert verify_wheelhouse(house)[0].digest() != manifest.digest()


def test_a_list_that_leaves_out_what_one_of_its_wheels_requires_is_told(house: Path) -> None:
    manifest, _ = verify_wheelhouse(house)
    other = evolve(manifest, wheels=manifest.wheels[1:])
    (house / WHEELS[0]).unlink()
    (house / LOCK).write_text(other.to_lock())
    (house / MANIFEST).write_text(other.to_json())

    assert [flaw.what for flaw in verify_wheelhouse(house)[1]] == [
        "km-tiny requires km-tinier, which is not listed"
    ]


def test_a_requirement_without_a_wheel_is_a_problem_of_the_list(house: Path) -> None:
    manifest, _ = verify_wheelhouse(house)
    for requirement in ("km-gone==1.0", "km-tiny==2.0"):
        (house / MANIFEST).write_text(evolve(manifest, requirements=(requirement,)).to_json())

        assert problems(house) == [MANIFEST]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("file", "../../etc/passwd"),
        ("file", "-rf-1.0-py3-none-any.whl"),
        ("name", "km-tiny\n--pre"),
        ("version", "1.0 --pre"),
        ("sha256", "0" * 63),
        ("size", -1),
        ("size", True),
        ("size", "1"),
        ("file", None),
        ("more", 1),
    ],
)
def test_a_list_that_says_more_than_it_should_is_refused(house: Path, key: str, value: object) -> None:
    data = json.loads((house / MANIFEST).read_text())
    data["wheels"][0][key] = value
    (house / MANIFEST).write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")

    with pytest.raises(WheelhouseError):
        verify_wheelhouse(house)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(deadline=None)
def test_no_list_however_damaged_is_more_than_an_error(tmp_path_factory, data: bytes) -> None:
    directory = tmp_path_factory.mktemp("damaged")
    (directory / MANIFEST).write_bytes(data)

    with pytest.raises(WheelhouseError):
        verify_wheelhouse(directory)


def test_a_directory_without_a_list_is_no_wheelhouse(tmp_path: Path) -> None:
    with pytest.raises(WheelhouseError, match="not a wheelhouse"):
        verify_wheelhouse(tmp_path)


def test_the_same_order_gives_the_same_bytes(house: Path, order: Order, tmp_path: Path) -> None:
    build_wheelhouse(order, tmp_path / "again")

    assert names(house) == names(tmp_path / "again")
    for name in names(house):
        assert (house / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_something_foreign_is_never_replaced(
    order: Order, offline: None, house: Path, tmp_path: Path
) -> None:
    file, full, link = tmp_path / "file", tmp_path / "full", tmp_path / "link"
    file.write_text("mine")
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    link.symlink_to(house)
    (house / "notes.txt").write_text("mine")

    for out in (file, full, link, house):
        with pytest.raises(GuardError):
            build_wheelhouse(order, out)

    assert (full / "notes.txt").read_text() == (house / "notes.txt").read_text() == file.read_text() == "mine"


def test_an_empty_directory_and_an_older_wheelhouse_are_replaced(
    order: Order, house: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    build_wheelhouse(order, tmp_path / "empty")
    only = Order(evolve(PLAN, requirements=("km-tinier==1.0",)), order.build[1:], ())
    build_wheelhouse(only, house)

    assert problems(tmp_path / "empty") == []
    assert names(house) == sorted([WHEELS[0], LOCK, MANIFEST])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "house", "shelf"]


def test_a_build_that_fails_leaves_nothing_and_keeps_the_older_one(
    order: Order, house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args):
        raise OSError(28, "No space left on device")

    before = verify_wheelhouse(house)[0].digest()
    monkeypatch.setattr("km_core.wheelhouse.build.shutil.copyfile", fail)
    for out in (house, tmp_path / "new"):
        with pytest.raises(OSError, match="No space"):
            build_wheelhouse(order, out)

    assert verify_wheelhouse(house)[0].digest() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["house", "shelf"]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_an_older_wheelhouse_comes_back_when_the_new_one_cannot_take_its_name(
    order: Order, house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    from pathlib import Path as Real

    rename = Real.rename

    def sometimes(self, target):
        if self.name == "out":
            raise error
        return rename(self, target)

    monkeypatch.setattr(Real, "rename", sometimes)
    with pytest.raises(type(error)):
        build_wheelhouse(order, house)

    assert problems(house) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["house", "shelf"]


def test_a_set_that_lacks_what_one_of_its_wheels_requires_is_not_made(
    order: Order, offline: None, tmp_path: Path
) -> None:
    with pytest.raises(WheelhouseError, match="would not be complete") as caught:
        build_wheelhouse(Order(PLAN, order.build[:1], ()), tmp_path / "house")

    assert "km-tinier" in caught.value.why
    assert not (tmp_path / "house").exists()


def test_a_wheel_file_that_changed_after_its_installation_is_refused(
    order: Order, offline: None, tmp_path: Path
) -> None:
    changed = evolve(order.build[0], sha256="0" * 64)

    with pytest.raises(WheelhouseError, match="changed since it was installed"):
        build_wheelhouse(Order(PLAN, (changed, order.build[1]), ()), tmp_path / "house")


def test_a_source_of_another_version_than_the_installed_one_is_refused(
    order: Order, offline: None, tmp_path: Path
) -> None:
    other = evolve(order.build[0], version="2.0")

    with pytest.raises(WheelhouseError, match=r"km-tiny 1\.0, but km-tiny 2\.0 is installed"):
        build_wheelhouse(Order(PLAN, (other, order.build[1]), ()), tmp_path / "house")


def test_a_file_that_is_no_wheel_is_refused_whatever_it_is_called(tmp_path: Path) -> None:
    path = tmp_path / "km_tiny-1.0-py3-none-any.whl"
    for data in (b"", b"PK\x03\x04", make_wheel("km-other", "1.0", {}), make_wheel("km-tiny", "2.0", {})):
        path.write_bytes(data)
        with pytest.raises(WheelhouseError):
            read_wheel(path)


def test_a_wheel_of_one_name_from_another_origin_is_told_from_the_installed_one(tmp_path: Path) -> None:
    from importlib.metadata import version

    installed = version("pluggy")
    path = tmp_path / f"pluggy-{installed}-py3-none-any.whl"
    path.write_bytes(make_wheel("pluggy", installed, {"pluggy/__init__.py": "import os\n"}))
    other = tmp_path / "pluggy-0.0.1-py3-none-any.whl"
    other.write_bytes(make_wheel("pluggy", "0.0.1", {}))

    assert not same_as_installed(read_wheel(path), path)
    assert same_as_installed(read_wheel(other), other)


def test_a_set_with_a_wheel_of_another_origin_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.metadata import version

    text = f"pluggy=={version('pluggy')}"

    def impostor(built, wanted, versions, work):
        (work / "fetched").mkdir()
        path = work / "fetched" / f"pluggy-{version('pluggy')}-py3-none-any.whl"
        path.write_bytes(make_wheel("pluggy", version("pluggy"), {"pluggy/__init__.py": "import os\n"}))
        return [path]

    monkeypatch.setattr("km_core.wheelhouse.build.fetch", impostor)
    with pytest.raises(WheelhouseError, match="the index has another pluggy"):
        build_wheelhouse(Order(evolve(PLAN, requirements=(text,)), (), (text,)), tmp_path / "house")

    assert list(tmp_path.iterdir()) == []


def test_what_is_required_but_not_installed_here_is_never_guessed() -> None:
    plan = evolve(PLAN, requirements=("km-nobody-has-this==1.0",))

    with pytest.raises(WheelhouseError, match="not installed here"):
        order_for(plan)
    assert order_for(plan, "index").fetch == plan.requirements


def test_pips_reason_is_told_without_the_credentials_of_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "pip"
    script.write_text(
        "#!/bin/sh\necho 'WARNING: retrying' >&2\n"
        "echo 'ERROR: No match for km-x at https://me:hunter2hunter2@index.example/' >&2\n"
        "echo 'ERROR: the end' >&2\nexit 1\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(fetching, "find_pip", lambda: [str(script)])

    with pytest.raises(WheelhouseError) as caught:
        fetching.fetch([], ["km-x"], {}, tmp_path)

    assert "No match for km-x" in caught.value.why
    assert "hunter2" not in str(caught.value.to_dict())


def test_of_a_traceback_of_pip_what_was_raised_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "pip"
    script.write_text(
        "#!/bin/sh\necho 'ERROR: Exception:' >&2\necho 'Traceback (most recent call last):' >&2\n"
        "echo 'OSError: [Errno 28] No space left on device' >&2\nexit 2\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(fetching, "find_pip", lambda: [str(script)])

    with pytest.raises(WheelhouseError, match="No space left"):
        fetching.fetch([], ["km-x"], {}, tmp_path)


def test_the_digest_names_the_whole_content() -> None:
    manifest = Manifest("p", "0" * 64, "local", "cp311", "linux_x86_64", (), ())
    wheel = Wheel("a-1-py3-none-any.whl", "a", "1", "0" * 64, 1)
    changed = [
        evolve(manifest, profile_digest="1" * 64),
        evolve(manifest, python="cp312"),
        evolve(manifest, wheels=(wheel,)),
        evolve(manifest, wheels=(evolve(wheel, sha256="1" * 64),)),
    ]

    assert len({each.digest() for each in [manifest, *changed]}) == 5
