"""Building a wheelhouse: whole or not at all."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from km_core.compile.requirements import split_requirement
from km_core.errors import GuardError
from km_core.wheelhouse.fetch import fetch, same_as_installed
from km_core.wheelhouse.lock import (
    LOCK,
    MANIFEST,
    Manifest,
    read_manifest,
    verify_wheelhouse,
)
from km_core.wheelhouse.sources import (
    Source,
    build_wheel,
    find,
    installed_closure,
    installed_source,
)
from km_core.wheelhouse.wheels import WheelhouseError, read_wheel, required_name, requirements_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from km_core.plan import SandboxPlan
    from km_core.wheelhouse.wheels import Wheel

ORIGINS = ("workspace", "index")


@frozen
class Order:
    """
    What a wheelhouse will be made from.

    Attributes:
        plan: whose requirements.
        build: sources here, by name.
        fetch: requirements for the index; what these and the sources require comes with them.
    """

    plan: SandboxPlan
    build: tuple[Source, ...]
    fetch: tuple[str, ...]


def order_for(plan: SandboxPlan, origin: str = "workspace") -> Order:
    """
    Decide where each requirement of a plan comes from.

    Args:
        plan: what the host will run.
        origin: ``workspace``: what was installed from a directory or a wheel file is made from that, the
            rest is fetched and must be the same as installed; ``index``: everything is fetched.

    Raises:
        WheelhouseError: a requirement is not installed here, so nothing says which one is meant.
    """
    if origin == "index":
        return Order(plan, (), plan.requirements)
    names = {split_requirement(text)[0]: text for text in plan.requirements}
    for name, text in names.items():
        if find(name) is None:
            raise WheelhouseError(
                f"{text} is required, but not installed here",
                where=plan.profile,
                hint=f"install {name}, or fetch everything with --from index",
            )
    found = (installed_source(name) for name in sorted(installed_closure(names)))
    sources = tuple(source for source in found if source is not None)
    held = {source.name for source in sources}
    return Order(plan, sources, tuple(text for name, text in sorted(names.items()) if name not in held))


def build_wheelhouse(
    order: Order, out: Path, on_step: Callable[[str, str], None] = lambda _title, _state: None
) -> Manifest:
    """
    Make *out*: wheels, ``requirements.txt`` and ``wheelhouse.json``.

    Everything is made beside it and takes its name in one rename.  An older wheelhouse is replaced.

    Args:
        order: from `order_for`.
        out: a directory that does not exist, is empty, or holds a wheelhouse.
        on_step: told each step's title and ``begin`` or ``done``.

    Raises:
        GuardError: something else stands at *out*.
        WheelhouseError: a wheel cannot be built or fetched, or the set is not complete.
    """
    out = out.absolute()
    guard(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        work = Path(scratch)
        built = [_build(source, work / "built", on_step) for source in order.build]
        _check_sources(built, order)
        on_step(f"fetch what {len(order.plan.requirements)} requirements need", "begin")
        names = [split_requirement(text)[0] for text in order.plan.requirements]
        own = {source.name for source in order.build}
        pinned = {name: version for name, version in installed_closure(names).items() if name not in own}
        wheels = _collect(fetch(built, order.fetch, pinned, work), built, set(names))
        on_step(f"{len(wheels)} wheels resolved", "done")
        made = work / "out"
        manifest = _write(order.plan, wheels, work / "fetched", made)
        _replace(made, out, work / "old")
    return manifest


def guard(out: Path) -> None:
    """Raise `GuardError` unless *out* is nothing, an empty directory, or a wheelhouse already."""
    try:
        found = out.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISDIR(found.st_mode):
        content = {path.name for path in out.iterdir()}
        if not content:
            return
        try:
            listed = {wheel.file for wheel in read_manifest(out).wheels}
        except WheelhouseError:
            listed = set()
        if MANIFEST in content and content <= listed | {MANIFEST, LOCK}:
            return
        why = "it is not empty, and not a wheelhouse alone"
    else:
        why = "it is not a directory"
    raise GuardError(
        "the wheelhouse cannot be put here", where=str(out), why=why, hint="name a new directory"
    )


def _build(source: Source, parent: Path, on_step: Callable[[str, str], None]) -> Path:
    title = f"build {source.name} {source.version}"
    on_step(title, "begin")
    target = parent / source.name
    target.mkdir(parents=True)
    wheel = build_wheel(source, target)
    on_step(title, "done")
    return target / wheel.file


def _check_sources(built: list[Path], order: Order) -> None:
    """Raise when a wheel requires a source that was not built: installed metadata lags behind the source."""
    held = {source.name for source in order.build}
    for path in built:
        for line in requirements_of(path):
            name = required_name(line)
            if name not in held and installed_source(name) is not None:
                raise WheelhouseError(
                    f"{path.name} requires {name}, which the installed version did not",
                    hint="install it again from its source",
                )


def _collect(paths: list[Path], built: list[Path], required: set[str]) -> list[Wheel]:
    """Read the fetched set and check what can be checked of it without trusting the index."""
    own = {wheel.name: wheel for wheel in map(read_wheel, built)}
    found: dict[str, Wheel] = {}
    for path in paths:
        wheel = read_wheel(path)
        if wheel.name in found:
            raise WheelhouseError(f"two wheels of {wheel.name} came", where=wheel.file)
        if own.get(wheel.name, wheel) != wheel:
            raise WheelhouseError("the wheel that was built is not the one that came", where=wheel.file)
        ours = wheel.name in required or wheel.name.startswith("km-")
        if ours and wheel.name not in own and not same_as_installed(wheel, path):
            raise WheelhouseError(
                f"the index has another {wheel.name} {wheel.version} than the one installed here",
                where=wheel.file,
                hint="find out whose it is before anything installs it",
            )
        found[wheel.name] = wheel
    return [found[name] for name in sorted(found)]


def _write(plan: SandboxPlan, wheels: list[Wheel], source: Path, target: Path) -> Manifest:
    """Put the set and its two files into *target*, on disk."""
    manifest = Manifest(
        profile=plan.profile,
        profile_digest=plan.profile_digest,
        substrate=plan.substrate,
        python=f"cp{sys.version_info.major}{sys.version_info.minor}",
        platform=sysconfig.get_platform().replace("-", "_").replace(".", "_"),
        requirements=plan.requirements,
        wheels=tuple(wheels),
    )
    target.mkdir()
    for wheel in wheels:
        shutil.copyfile(source / wheel.file, target / wheel.file)
    (target / LOCK).write_text(manifest.to_lock(), encoding="utf-8")
    (target / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    for path in [*target.iterdir(), target]:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    _, flaws = verify_wheelhouse(target)
    if flaws:
        why = f"{flaws[0].file} {flaws[0].what}"
        raise WheelhouseError("the wheelhouse would not be complete", where=plan.profile, why=why)
    return manifest


def _replace(made: Path, out: Path, old: Path) -> None:
    """Give *made* the name *out*; an older wheelhouse goes, and comes back when that fails."""
    guard(out)
    if not out.exists() or not any(out.iterdir()):
        made.rename(out)
        return
    try:
        out.rename(old)
        made.rename(out)
    except BaseException:
        # Also when it is interrupted between the two.
        if old.exists() and not out.exists():
            old.rename(out)
        raise
