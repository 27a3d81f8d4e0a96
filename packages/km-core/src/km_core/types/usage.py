"""Token usage of one model call (spec/metering-budget.md section 2)."""

from __future__ import annotations

from attrs import frozen


@frozen
class Usage:
    """
    Disjoint token figures of one call: the cost is the sum of figure times its own rate.

    `cache_write_1h_tokens` is a part of `cache_write_tokens`; `reasoning_tokens` is a part of
    `output_tokens`, for information only.  `complete` says that the provider's final figures were
    seen; otherwise `estimated_output_tokens` is a bound made from what was streamed.

    Attributes:
        estimated_input_tokens: input bound of the request, when the answer broke off before it said
            anything about its input; 0 otherwise.
        estimated_cache_write: dearest cache write that input may have been: ``none``, ``5m``, ``1h``.
        output_bound_tokens: output limit of the request, when the answer broke off and may have
            billed output that it does not show (hidden reasoning, a lost JSON body); 0 otherwise.
        multipliers: price multipliers the answer names, such as ``service_tier:priority``.
    """

    provider: str
    model: str
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0
    web_search_requests: int = 0
    status: int = 200
    complete: bool = True
    estimated_output_tokens: int = 0
    service_tier: str = ""
    response_id: str = ""
    notes: tuple[str, ...] = ()
    estimated_input_tokens: int = 0
    estimated_cache_write: str = "1h"
    output_bound_tokens: int = 0
    multipliers: tuple[str, ...] = ()
