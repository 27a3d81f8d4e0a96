"""``km explain at``: what a time expression stands for, and when it fires next."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from km_core.cli.output import emit_json, note, printable
from km_core.errors import UsageError

if TYPE_CHECKING:
    from km_core.schedule import Schedule, Zone

_FIRST_YEAR, _LAST_YEAR = 1970, 2199


@click.command("at", epilog="Example: km explain at 'every weekday at 9am' --tz Europe/Berlin")
@click.argument("text", metavar="TIME")
@click.option("--now", metavar="ISO", help="Read TIME at this moment; without an offset in the zone.")
@click.option("--tz", metavar="ZONE", help="Zone of wall times: an IANA name, or UTC.")
@click.option(
    "--count",
    type=click.IntRange(1, 1000),
    default=5,
    show_default=True,
    help="How many of the next times to show.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def at(ctx: click.Context, text: str, now: str | None, tz: str | None, count: int, as_json: bool) -> None:
    """
    Say what TIME stands for in `km at` and when it fires.

    docs/reference/time.md has every form.
    """
    from km_core.cli.timezone import resolve_timezone
    from km_core.schedule import TimeExpressionError, find_zone, next_times, parse

    try:
        zone = find_zone(resolve_timezone(tz))
        moment = _moment(now, zone)
        schedule = parse(text, moment, zone.name)
    except TimeExpressionError as error:
        if not as_json:
            raise
        emit_json({"reject": error.code, "message": error.message})
        note(printable(f"error: {error.message}" + (f"\n  hint: {error.hint}" if error.hint else "")))
        ctx.exit(error.exit_code)
    times = next_times(schedule, moment, count)
    if as_json:
        emit_json(_document(schedule, times))
    else:
        # A one-off time is kept in UTC, but was meant in the zone that applies.
        _show(schedule, times, find_zone(schedule.timezone) if schedule.recurring else zone)


def _moment(now: str | None, zone: Zone) -> datetime:
    if now is None:
        return datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(now)
        aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=zone.info)
        aware = aware.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"--now {now[:40]!r} is no date and time", hint="write it like 2026-04-10T12:00:00Z"
        ) from error
    if not _FIRST_YEAR <= aware.year <= _LAST_YEAR:
        raise UsageError(f"--now must be in the years {_FIRST_YEAR} to {_LAST_YEAR}")
    return aware


def _document(schedule: Schedule, times: list[datetime]) -> dict[str, Any]:
    data: dict[str, Any] = {
        "expression": schedule.expression,
        "timezone": schedule.timezone,
        "recurring": schedule.recurring,
        "next": [moment.isoformat(timespec="seconds") for moment in times],
        "human": schedule.human,
    }
    if schedule.notes:
        data["notes"] = list(schedule.notes)
    return data


def _show(schedule: Schedule, times: list[datetime], zone: Zone) -> None:
    click.echo(f"{schedule.expression}  {schedule.timezone}")
    click.echo(schedule.human)
    for moment in times:
        wall = zone.wall(moment).isoformat(sep=" ", timespec="seconds")
        utc = moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
        click.echo(f"  {wall}  ({utc} UTC)")
    if not times:
        click.echo("  never")
    for remark in schedule.notes:
        note(f"note: {remark}")
