"""Meter family: recognising, bounding and pricing model calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pluggy import HookspecMarker

if TYPE_CHECKING:
    from collections.abc import Iterable

    from km_core.types import Meter

hookspec = HookspecMarker("km")


@hookspec
def km_meters() -> Iterable[Meter]:
    """
    Offer meters: a provider's hosts, how its calls are bounded and how usage is read.

    A meter decides what a call may cost before it leaves; one that guesses low spends the operator's
    money.  Every method is pure.  Run `km_core.testing.meter.MeterContract` on it.

    Shape: offer.
    Called: by the gate at start, by the control plane for the names of credentials, when a plan is
        compiled, and by ``km explain``.
    Runs in: the gate, the control plane and the operator's ``km``; the methods in the gate only.
    Order: irrelevant; a name and a host may be owned by one meter only.
    Failure: this plugin is disabled with a warning.  Under a ceiling (``spec.budget.ai``) ``km create``
        and the gate refuse to go on without it.

    Returns:
        Objects with the members of `Meter`; *name* is the provider's name in the ledger.

    Example:
        import json
        from collections.abc import Mapping

        from km_core import hookimpl
        from km_core.types import (
            CallPlan,
            Decoder,
            Endpoint,
            EndpointKind,
            InjectionRule,
            Meter,
            ResponseFilter,
            Usage,
            UsageParser,
        )

        KM_PLUGIN_API = 1
        WINDOW = 100_000

        class _Whole:
            def __init__(self, model: str) -> None:
                self._model, self._body = model, bytearray()

            def feed(self, data: bytes) -> None:
                self._body += data

            def finish(self) -> Usage:
                try:
                    usage = json.loads(self._body)["usage"]
                    return Usage("acme", self._model, int(usage["in"]), int(usage["out"]))
                except (ValueError, KeyError, TypeError):
                    return Usage("acme", self._model, WINDOW, WINDOW, complete=False)

        class _Plain:
            pending = False

            def __init__(self, coding: str) -> None:
                self.failed = coding not in ("", "identity")

            def feed(self, data: bytes) -> bytes:
                return b"" if self.failed else data

            def finish(self) -> bytes:
                return b""

        class Acme:
            name = "acme"
            hosts = ("api.acme.example",)
            injection: InjectionRule | None = None

            def endpoint(self, method: str, path: str, headers: Mapping[str, str]) -> Endpoint:
                if (method, path) == ("POST", "/v1/ask"):
                    return Endpoint("ask", EndpointKind.METERED)
                return Endpoint(path, EndpointKind.REFUSED, "not known to this meter")

            def plan_call(
                self, endpoint: Endpoint, headers: Mapping[str, str], body: bytes
            ) -> CallPlan:
                return CallPlan("acme-1", False, min(len(body), WINDOW), WINDOW, body)

            def clamp(self, endpoint: Endpoint, plan: CallPlan, output_limit: int) -> bytes:
                return json.dumps({**json.loads(plan.body), "max_out": output_limit}).encode()

            def parser(
                self, endpoint: Endpoint, plan: CallPlan, status: int, headers: Mapping[str, str]
            ) -> UsageParser:
                return _Whole(plan.model)

            def refusal(
                self, code: str, message: str, km: Mapping[str, object]
            ) -> tuple[int, bytes]:
                status = 503 if code == "control_plane_unavailable" else 403
                return status, json.dumps({"error": message, "km": dict(km)}).encode()

            def decoder(self, content_encoding: str) -> Decoder:
                return _Plain(content_encoding)

            def response_filter(self, plan: CallPlan) -> ResponseFilter | None:
                return None

        @hookimpl
        def km_meters() -> list[Meter]:
            return [Acme()]
    """
