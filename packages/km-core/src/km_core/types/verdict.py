"""The answer of a policy question."""

from __future__ import annotations

from typing import Any

from attrs import frozen


@frozen
class Verdict:
    """
    Allow or deny, and the reason a person can act on.

    Attributes:
        allow: the answer; nothing else grants access.
        rule: the profile entry (or built-in rule) that decided, such as
            ``allowedHosts[2] api.example.org`` or ``builtin:private-address``.
        layer: where it was decided: ``dns``, ``tcp``, ``connect``, ``tls``, ``http``, ``git``,
            ``budget``, ``lease``.
        reason: one sentence for people.
    """

    allow: bool
    rule: str
    layer: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form of ``km explain egress``."""
        return {
            "verdict": "allow" if self.allow else "deny",
            "rule": self.rule,
            "layer": self.layer,
            "reason": self.reason,
        }
