"""What a meter is: it recognises model calls, bounds their cost and reads their usage."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from km_core.types.usage import Usage


class EndpointKind(StrEnum):
    """
    What a request on a metered host is.

    ``METERED`` calls are reserved and settled; ``FREE`` ones pass; ``REFUSED`` ones bill without
    usage in the answer, or are not known, and are refused while a ceiling is set.
    """

    METERED = "metered"
    FREE = "free"
    REFUSED = "refused"


@frozen
class Endpoint:
    """
    A recognised endpoint of a provider: *name* such as ``messages`` or ``responses``.

    Attributes:
        reason: why a refused endpoint is refused.
        model: model id that the path names (Azure deployments); empty when it names none.
    """

    name: str
    kind: EndpointKind
    reason: str = ""
    model: str = ""


@frozen
class InjectionRule:
    """
    How a host's credential is put on a request by the gate.

    Attributes:
        secret: name of the secret in ``km secrets`` (``anthropic-api-key``).
        strip: lower-case header names of the client that are always removed.
        header: header that carries the credential.
        template: value with ``{secret}`` filled in.
        env: ``(name, placeholder)`` pairs set inside so that clients start; never the secret.
    """

    secret: str
    strip: tuple[str, ...]
    header: str
    template: str
    env: tuple[tuple[str, str], ...] = ()


@frozen
class CallPlan:
    """
    A metered request, read before it leaves (all sizes in tokens).

    Attributes:
        model: model id as the request names it; empty when it names none.
        stream: whether the client asked for a stream.
        input_bound: worst-case billed input tokens: min(bytes bound, context window), or the window
            when the body refers to state the provider keeps.
        output_limit: output limit the request asks for (times the number of choices), or the
            model's maximum when absent.
        choices: number of completions asked for; output is billed for each.
        min_output: lowest output limit the request may be clamped to, counted as *output_limit* is
            (for all choices together).
        server_tool_uses: how many billed server-tool calls the request permits; -1 is unbounded.
        strips_usage_chunk: the meter added a usage chunk that must not reach the client.
        body: the body to send when the output limit stays as asked (may differ from the client's).
        refusal: why the call cannot be bounded (then it is refused under a ceiling), else empty.
        cache_write: dearest prompt-cache write the request can cause: ``none``, ``5m`` or ``1h``.
        multipliers: price multipliers the request can cause, by their names in the price table
            (``service_tier:priority``, ``speed:fast``, ``inference_geo:us``).
        left_out: server tools that the client offered and *body* does not, since nothing bounds their cost.
        lesser: the same call without such tools, when they are all that stands against it: under a
            ceiling it is what is sent instead of a *refusal*.
    """

    model: str
    stream: bool
    input_bound: int
    output_limit: int
    body: bytes
    choices: int = 1
    min_output: int = 512
    server_tool_uses: int = 0
    strips_usage_chunk: bool = False
    refusal: str = ""
    cache_write: str = "1h"
    multipliers: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    lesser: CallPlan | None = None


class UsageParser(Protocol):
    """Incremental: fed any split of the *decoded* response body, the result does not depend on it."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the decoded body."""

    def finish(self) -> Usage:
        """Return the usage seen; may be called once, at the end or where the stream broke off."""


class Decoder(Protocol):
    """
    Undoes a response's ``Content-Encoding`` incrementally; never raises.

    Attributes:
        failed: the coding is unknown or the data damaged; what came out before stays valid, nothing
            more will come, and the usage counts as incomplete.
        pending: output is held back because one piece is bounded; ``feed(b"")`` returns the next
            piece.  `finish` returns what is left, whether or not pieces were asked for.
    """

    failed: bool
    pending: bool

    def feed(self, data: bytes) -> bytes:
        """Take encoded bytes, return decoded ones (one bounded piece)."""

    def finish(self) -> bytes:
        """Return what is left at the end of the body or where it broke off."""


class ResponseFilter(Protocol):
    """Rewrites a decoded response stream on its way to the client, without holding it back."""

    def feed(self, data: bytes) -> bytes:
        """Take decoded bytes, return those that may go on now."""

    def finish(self) -> bytes:
        """Return what is left at the end."""


class Meter(Protocol):
    """A provider's rules.  Every method is pure: no I/O, no clock."""

    @property
    def name(self) -> str:
        """Provider name: ``anthropic``, ``openai``."""

    @property
    def hosts(self) -> tuple[str, ...]:
        """Exact canonical host names that this meter owns."""

    @property
    def injection(self) -> InjectionRule | None:
        """How the provider's credential is injected; None when there is none."""

    def endpoint(self, method: str, path: str, headers: Mapping[str, str]) -> Endpoint:
        """Classify a request; *path* is the raw target with its query, header names lower-case."""

    def plan_call(self, endpoint: Endpoint, headers: Mapping[str, str], body: bytes) -> CallPlan:
        """Read a metered request's (already content-decoded) body."""

    def clamp(self, endpoint: Endpoint, plan: CallPlan, output_limit: int) -> bytes:
        """Return the body with its output limit (and thinking budget) lowered to *output_limit*."""

    def parser(
        self, endpoint: Endpoint, plan: CallPlan, status: int, headers: Mapping[str, str]
    ) -> UsageParser:
        """Return a parser for the response; header names lower-case."""

    def refusal(self, code: str, message: str, km: Mapping[str, object]) -> tuple[int, bytes]:
        """
        Return status and body of a refusal in the provider's own error shape.

        *km* becomes the ``km`` member; the status is 403 except for
        ``control_plane_unavailable`` (503).
        """

    def decoder(self, content_encoding: str) -> Decoder:
        """Return a decoder for a response's ``Content-Encoding`` value (empty is identity)."""

    def response_filter(self, plan: CallPlan) -> ResponseFilter | None:
        """Return a filter that removes what the meter added to the request, or None."""
