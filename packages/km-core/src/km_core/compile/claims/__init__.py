"""
Claims: nothing written in a profile is silently ignored (DESIGN section 4).

Core's table, the claims of plugins and who may say what are put together to one answer per written field.
"""

from __future__ import annotations

from km_core.compile.claims.fields import FieldRow, field_table, model_fields, model_sections
from km_core.compile.claims.judge import (
    FieldAnswer,
    check_claims,
    claim_matrix,
    enforces_itself,
    inert_fields,
    judge_field,
)
from km_core.compile.claims.sources import ClaimSource, claim_sources, core_source, substrates_of
from km_core.compile.claims.table import claims_as_on, core_claims

__all__ = [
    "ClaimSource",
    "FieldAnswer",
    "FieldRow",
    "check_claims",
    "claim_matrix",
    "claim_sources",
    "claims_as_on",
    "core_claims",
    "core_source",
    "enforces_itself",
    "field_table",
    "inert_fields",
    "judge_field",
    "model_fields",
    "model_sections",
    "substrates_of",
]
