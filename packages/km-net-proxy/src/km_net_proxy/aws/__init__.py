"""Requests to AWS: the scope of their signature, read as the service reads it, and what it may ask for."""

from __future__ import annotations

from km_net_proxy.aws.requests import judge_aws_request
from km_net_proxy.aws.sigv4 import ScopeError, credential_scope

__all__ = ["ScopeError", "credential_scope", "judge_aws_request"]
