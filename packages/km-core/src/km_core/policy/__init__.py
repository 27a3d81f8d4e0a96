"""
The one policy: pure functions that the gate, ``km explain`` and validation all call.

Default deny; deny wins; nothing here does I/O.  Semantics in spec/network.md sections 2 and 6.6.
"""

from __future__ import annotations

from km_core.policy.addresses import (
    embedded_ipv4,
    forbidden_range,
    normalise_address,
    parse_address,
)
from km_core.policy.ai_hosts import ai_vendor
from km_core.policy.authority import Authority, parse_authority
from km_core.policy.explain import explain_egress
from km_core.policy.grants import with_grants
from km_core.policy.names import INSIDE_NAME, canonical_name
from km_core.policy.network import NetworkPolicy
from km_core.policy.patterns import compile_address, compile_pattern
from km_core.policy.public_resolvers import is_public_resolver

__all__ = [
    "INSIDE_NAME",
    "Authority",
    "NetworkPolicy",
    "ai_vendor",
    "canonical_name",
    "compile_address",
    "compile_pattern",
    "embedded_ipv4",
    "explain_egress",
    "forbidden_range",
    "is_public_resolver",
    "normalise_address",
    "parse_address",
    "parse_authority",
    "with_grants",
]
