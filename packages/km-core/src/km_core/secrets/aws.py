"""Whose requests to AWS pass: ``aws`` in ``config.yaml``."""

from __future__ import annotations

import re
from typing import Any

from attrs import frozen


@frozen
class AwsAccess:
    """
    What the operator lets sandboxes do at AWS: ``aws`` in ``config.yaml``; empty lists allow nothing.

    Attributes:
        access_key_ids: keys that may sign.
        accounts: accounts whose keys may sign, as 12 digits: for keys that change.
        services: service names of signature scopes (``s3``, ``sts``, ``dynamodb``).
        regions: regions of signature scopes.
        buckets: S3 buckets (or access points) that may be asked for; ``*`` is every one.
    """

    access_key_ids: tuple[str, ...] = ()
    accounts: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    buckets: tuple[str, ...] = ()

    @classmethod
    def from_data(cls, data: Any) -> AwsAccess:
        """Rebuild from a mapping of lists of texts; raises `ValueError` for anything else."""
        if not isinstance(data, dict):
            raise ValueError("aws is a mapping")  # noqa: TRY004 - callers catch one kind
        lists: dict[str, tuple[str, ...]] = {}
        for key, items in data.items():
            if key not in {"access_key_ids", "accounts", "services", "regions", "buckets"}:
                raise ValueError(f"aws has no member {key}")
            if not isinstance(items, list | tuple) or not all(
                isinstance(item, str) and item for item in items
            ):
                raise ValueError(f"aws.{key} is a list of texts")
            lists[key] = tuple(items)
        if not all(re.fullmatch("[0-9]{12}", account) for account in lists.get("accounts", ())):
            raise ValueError("aws.accounts: an account has 12 digits; put them in quotes")
        return cls(**lists)
