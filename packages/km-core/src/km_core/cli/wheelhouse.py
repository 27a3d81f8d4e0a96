"""``km wheelhouse``: what a sandbox's host installs, locked, for hosts that reach no index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from km_core.cli.output import Progress, emit_json, note, printable

if TYPE_CHECKING:
    from km_core.plan import SandboxPlan
    from km_core.wheelhouse import Order


@click.group()
def wheelhouse() -> None:
    """Build and check the locked wheel set of one profile's hosts."""


@wheelhouse.command(
    epilog="""\b
Examples:
  km wheelhouse build profile.yaml --out wheels/
  km wheelhouse build profile.yaml --substrate docker --out wheels/ --dry-run"""
)
@click.argument("profile", metavar="FILE")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A new directory, or a wheelhouse.",
)
@click.option("--substrate", metavar="NAME", help="Default: the profile's own.")
@click.option(
    "--from",
    "origin",
    type=click.Choice(["workspace", "index"]),
    default="workspace",
    show_default=True,
    help="Build what was installed from sources here, or fetch everything with your pip.",
)
@click.option(
    "--drop", multiple=True, metavar="FIELD", help="Leave a field of the profile out, by dotted path."
)
@click.option("--dry-run", is_flag=True, help="Say what would be built and fetched; make nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def build(
    profile: str,
    out: Path,
    substrate: str | None,
    origin: str,
    drop: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Collect every wheel that a host of profile FILE needs, and nothing else, into DIR."""
    from km_core.compile.pipeline import Overrides, plan_from_file
    from km_core.config import load_config
    from km_core.plugins import load_plugins
    from km_core.wheelhouse import build_wheelhouse, order_for
    from km_core.wheelhouse.build import guard

    plugins = load_plugins()
    compiled = plan_from_file(profile, load_config(), plugins, Overrides(substrate=substrate, drop=drop))
    plugins.refuse_broken(compiled.plan)
    for problem in compiled.notes:
        note(printable(str(problem)))
    order = order_for(compiled.plan, origin)
    guard(out.absolute())
    if dry_run:
        _show_order(order, as_json=as_json)
        return
    manifest = build_wheelhouse(order, out, Progress())
    size = sum(wheel.size for wheel in manifest.wheels)
    if as_json:
        wheels = [
            {"file": w.file, "name": w.name, "version": w.version, "sha256": w.sha256, "size": w.size}
            for w in manifest.wheels
        ]
        emit_json(
            {"directory": str(out), "digest": manifest.digest(), **_head(compiled.plan), "wheels": wheels}
        )
        return
    click.echo(f"{out}: {len(manifest.wheels)} wheels, {size / 1e6:.1f} MB, sha256 {manifest.digest()}")
    note(
        f"Install: python3 -m pip install --no-index --find-links {out} --require-hashes -r {out}/requirements.txt"
    )


@wheelhouse.command(epilog="Example: km wheelhouse verify wheels/")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--digest", metavar="SHA256", help="Also check that it is the wheelhouse of this digest.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def verify(ctx: click.Context, directory: Path, digest: str | None, as_json: bool) -> None:
    """Check that DIR is whole, unchanged and holds nothing else; exit code 1 names the file that is not."""
    from km_core.wheelhouse import MANIFEST, Flaw, verify_wheelhouse

    manifest, flaws = verify_wheelhouse(directory)
    if digest is not None and digest.lower() != manifest.digest():
        flaws = (*flaws, Flaw(MANIFEST, f"has the digest {manifest.digest()}, another one is expected"))
    if as_json:
        emit_json(
            {
                "valid": not flaws,
                "digest": manifest.digest(),
                "problems": [{"file": flaw.file, "what": flaw.what} for flaw in flaws],
            }
        )
    for flaw in flaws:
        note(printable(f"{directory / flaw.file}: {flaw.what}"))
    if flaws:
        ctx.exit(1)
    if not as_json:
        click.echo(f"{directory}: {len(manifest.wheels)} wheels, all well, sha256 {manifest.digest()}")


def _head(plan: SandboxPlan) -> dict[str, Any]:
    return {"profile": plan.profile, "substrate": plan.substrate, "requirements": list(plan.requirements)}


def _show_order(order: Order, *, as_json: bool) -> None:
    if as_json:
        build_these = [{"name": source.name, "version": source.version} for source in order.build]
        emit_json({**_head(order.plan), "build": build_these, "fetch": list(order.fetch)})
        return
    for source in order.build:
        click.echo(f"build  {source.name}=={source.version}")
    for text in order.fetch:
        click.echo(f"fetch  {text}")
    note("What these require comes with them.")
