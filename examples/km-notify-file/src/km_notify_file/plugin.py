"""Hook implementations: the notifier and its health check."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from km_core import hookimpl
from km_core.types import Delivery, DoctorCheck

from km_notify_file.file import append_line, check_file

if TYPE_CHECKING:
    from collections.abc import Iterable

    from km_core.types import Event

KM_PLUGIN_API = 1
VARIABLE = "KM_NOTIFY_FILE"


@hookimpl
def km_notify(event: Event) -> Delivery | None:
    """Append the event; None when no file is configured."""
    target = os.environ.get(VARIABLE)
    if not target:
        return None
    append_line(Path(target), event.to_json())
    return Delivery.ok(f"appended to {target}")


@hookimpl
def km_doctor_checks() -> Iterable[DoctorCheck]:
    """Offer one check, of the file."""
    return (DoctorCheck("notify-file: file", lambda: check_file(os.environ.get(VARIABLE, ""), VARIABLE)),)
