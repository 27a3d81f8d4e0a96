"""The supervisor's log: one line of JSON an event, to stderr, which is ``logs/pod.log``."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import Any


def log(event: str, /, **fields: Any) -> None:
    """Write one event; fields are plain data and never hold a secret."""
    record = {
        "at": round(time.time(), 3),
        "event": event,
        **{key: _plain(value) for key, value in fields.items()},
    }
    with contextlib.suppress(OSError):
        sys.stderr.write(json.dumps(record) + "\n")
        sys.stderr.flush()


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, dict, list, type(None))) else repr(value)
