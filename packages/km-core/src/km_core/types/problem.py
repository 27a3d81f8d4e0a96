"""Findings about a document, with their position."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from attrs import frozen


class Severity(StrEnum):
    """How bad a finding is; a warning never changes an exit code, info is shown only on request."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@frozen
class Problem:
    """
    One defect at one place.

    `path` is dotted without ``$.`` (``spec.network.egress.allowedHosts[2]``); the whole document is
    ``$``.  Lines and columns count from 1; 0 means unknown.
    """

    path: str
    message: str
    severity: Severity = Severity.ERROR
    hint: str = ""
    file: str = ""
    line: int = 0
    column: int = 0
    code: str = "profile"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form of ``km validate --json``."""
        return {
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "path": self.path,
            "severity": str(self.severity),
            "message": self.message,
            "hint": self.hint,
        }

    def __str__(self) -> str:
        """Return the ``FILE:LINE:COL: error: PATH: MESSAGE`` form."""
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        head = f"{place}: " if place else ""
        return f"{head}{self.severity}: {self.path}: {self.message}"
