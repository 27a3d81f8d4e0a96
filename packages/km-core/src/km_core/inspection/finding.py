"""What a check says of a plugin."""

from __future__ import annotations

from attrs import asdict, frozen

OK, WARNING, ERROR, SKIPPED = "ok", "warning", "error", "skipped"


@frozen
class Finding:
    """
    The outcome of one check.

    Attributes:
        plugin: whose.
        check: stable name of the check (`km_core.inspection.inspect`).
        status: ``ok``, ``warning``, ``error`` or ``skipped``.
        message: what was found.
        hint: what to do about it.
    """

    plugin: str
    check: str
    status: str
    message: str
    hint: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return plain JSON data."""
        return dict(asdict(self))
