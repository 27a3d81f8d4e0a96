"""Credentials that stay outside a sandbox: on which hosts the gate puts them, and where they are kept."""

from __future__ import annotations

from km_core.secrets.aws import AwsAccess
from km_core.secrets.rules import CredentialRule, credential_value, parse_rules
from km_core.secrets.sources import CommandSource, EnvFileSource, SecretSource, fingerprint, parse_sources

__all__ = [
    "AwsAccess",
    "CommandSource",
    "CredentialRule",
    "EnvFileSource",
    "SecretSource",
    "credential_value",
    "fingerprint",
    "parse_rules",
    "parse_sources",
]
