"""Claims: who acts on a profile field on which substrate (DESIGN section 4)."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from attrs import frozen


class Answer(StrEnum):
    """The four answers a written field can get."""

    ENFORCED = "enforced"
    INERT = "inert"
    MISSING = "missing"
    REFUSED = "refused"


@frozen
class Claim:
    """
    One answer for one field.

    Of one distribution's claims the longest path counts; between distributions the strictest answer does.
    ``enforced`` and ``inert`` count only from who can keep the promise: for the network, repositories,
    budgets, filtering sidecars and privileges that is km-core, the distribution that offers the substrate
    and, but for privileges, the one that offers the profile's enforcement mode; for a plugin's section its
    own distribution.  ``missing`` ends where *by*, or the substrate's distribution, claims ``enforced``;
    ``refused`` never ends.

    Attributes:
        path: dotted path of a field or section, without list indexes (``spec.budget.ai``); a claim
            on a section covers what lies below it unless a longer claim says otherwise.
        substrates: names it holds for; ``*`` means all.
        answer: see `Answer`.
        by: the distribution that enforces it, or would; for ``missing`` empty when none is known, and
            then any distribution may provide it.
        note: why it is inert or refused, for people.
        values: the claim speaks of these written values only (plain scalars, or ``()`` for an empty
            list or mapping); empty means every value.  Of two claims on one path, the one that names
            the written value counts.
    """

    path: str
    substrates: tuple[str, ...]
    answer: Answer
    by: str
    note: str = ""
    values: tuple[Any, ...] = ()
