"""Requests to AWS: the scope of their signature, read as the service reads it."""

from __future__ import annotations

from km_net_proxy.aws.refusal import aws_refusal
from km_net_proxy.aws.sigv4 import ScopeError, credential_scope

__all__ = ["ScopeError", "aws_refusal", "credential_scope"]
