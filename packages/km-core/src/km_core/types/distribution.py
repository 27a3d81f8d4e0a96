"""Names of distributions, as installers compare them."""

from __future__ import annotations

import re


def canonical_distribution(name: str) -> str:
    """Return a distribution's name in its normalised form (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
