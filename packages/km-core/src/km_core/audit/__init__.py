"""
Evidence: hash-chained records, signed checkpoints, verification.

One chain per writer (``audit/<sandbox>/<writer>.jsonl``); a writer that cannot record makes its caller
refuse (DESIGN section 1, promise 6).
"""

from __future__ import annotations

from km_core.audit.anchor import Anchor, read_anchor, write_anchor
from km_core.audit.chain import ChainWriter, record_hash
from km_core.audit.checkpoint import Checkpoints, Head
from km_core.audit.decisions import DecisionLog
from km_core.audit.redact import redact, redact_processor, redact_text
from km_core.audit.schema import FIELDS, defects
from km_core.audit.verify import Finding, Report, verify_dir

__all__ = [
    "FIELDS",
    "Anchor",
    "ChainWriter",
    "Checkpoints",
    "DecisionLog",
    "Finding",
    "Head",
    "Report",
    "defects",
    "read_anchor",
    "record_hash",
    "redact",
    "redact_processor",
    "redact_text",
    "verify_dir",
    "write_anchor",
]
