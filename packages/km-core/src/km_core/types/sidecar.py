"""Long-running processes that a sandbox host supervises."""

from __future__ import annotations

from attrs import frozen


@frozen
class Sidecar:
    """
    A runner that ``km-sidecar NAME`` starts.

    Attributes:
        name: ``pod``, ``gate``, ``ebpf`` ...
        target: ``module:function`` called with the remaining arguments (a list of str) and
            returning an exit code; imported only when the runner starts.
        summary: one line for ``km plugins info``.
    """

    name: str
    target: str
    summary: str = ""
