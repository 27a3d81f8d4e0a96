"""Typed events that notifiers deliver."""

from __future__ import annotations

import json
from typing import Any

from attrs import field, frozen


@frozen
class Event:
    """
    Something that happened to a sandbox.

    Attributes:
        kind: ``created``, ``started``, ``stopped``, ``resumed``, ``destroyed``, ``budget_warning``,
            ``budget_exhausted``, ``budget_topup``, ``name_budget_exhausted``, ``enforcement_lost``,
            ``recovered``, ``failed`` ...
        sandbox_id: whose event it is.
        at: RFC 3339 UTC time.
        detail: plain JSON data; never a secret.
    """

    kind: str
    sandbox_id: str
    at: str
    detail: dict[str, Any] = field(factory=dict)

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(
            {"kind": self.kind, "sandbox_id": self.sandbox_id, "at": self.at, "detail": self.detail},
            sort_keys=True,
        )


@frozen
class Delivery:
    """What a notifier did with an event."""

    delivered: bool
    detail: str = ""

    @classmethod
    def ok(cls, detail: str = "") -> Delivery:
        """Return a successful delivery."""
        return cls(delivered=True, detail=detail)
