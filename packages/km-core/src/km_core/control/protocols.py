"""What a control plane offers to the commands and to the runners."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Callable

    from km_core.config import Config


class Control(Protocol):
    """
    A connection with the operator's rights.

    One verb keeps every backend and the wire alike; the operations, their arguments and results are
    tabled in ``docs/internals.md``.
    """

    def call(self, op: str, /, **args: Any) -> Any:
        """Carry out an operation; raises `KmError`."""

    def close(self) -> None:
        """Give the connection back."""


@frozen
class ControlPlaneOffer:
    """A control plane by name; *connect* starts what must run and returns a connection."""

    name: str
    summary: str
    connect: Callable[[Config], Control]
