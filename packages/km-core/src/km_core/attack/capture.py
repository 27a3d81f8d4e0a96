"""What comes back from a sandbox: what attempts print, and what its chains gain meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@frozen
class Said:
    """What an attempt printed."""

    code: int
    lines: tuple[dict[str, Any], ...]
    errors: str

    @property
    def ended(self) -> bool:
        """Whether it ran to its end."""
        return self.code == 0 and bool(self.lines) and "sent" in self.lines[-1]


@define
class Denials:
    """The denials that a sandbox's chains gain from now on."""

    directory: Path
    _sizes: dict[Path, int] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self._sizes = {path: path.stat().st_size for path in self._files()}

    def _files(self) -> list[Path]:
        return [path for path in self.directory.glob("*.jsonl") if path.name != "checkpoints.jsonl"]

    def has(self, needle: str, wait_s: float = 2.5) -> bool:
        """Say whether a denial that holds *needle* (a rule, or part of a name) was added."""
        deadline = time.monotonic() + wait_s
        while True:
            for path in self._files():
                with path.open("rb") as source:
                    source.seek(self._sizes.get(path, 0))
                    for record in parsed(source.read()):
                        judged = f"{record.get('rule')} {record.get('name')}"
                        if record.get("verdict") == "deny" and needle in judged:
                            return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)


def parsed(raw: bytes) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects among the lines of *raw*; what comes from inside may be anything."""
    for line in raw.splitlines():
        try:
            data = json.loads(line)
        except ValueError:
            continue
        if isinstance(data, dict):
            yield data


@contextlib.contextmanager
def standing_in(*descriptors: int) -> Iterator[None]:
    """Put *descriptors* in the places of this process's stdin, stdout and stderr: a substrate hands those on."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in range(len(descriptors))]
    try:
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        yield
    finally:
        for number, descriptor in enumerate(kept):
            os.dup2(descriptor, number)
            os.close(descriptor)
