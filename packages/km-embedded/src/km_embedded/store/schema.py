"""
The database's schema as numbered migrations.

Each is applied once, in order, in one transaction together with its number (``PRAGMA user_version``).
A migration that has been released is never edited; a change is a new one at the end.
"""

from __future__ import annotations

APPLICATION_ID = 0x6B6D6462
"""``PRAGMA application_id``: "kmdb", so that no other database is taken for ours."""

_INITIAL = (
    """CREATE TABLE sandboxes (
        id TEXT PRIMARY KEY,
        number INTEGER NOT NULL UNIQUE,
        alias TEXT NOT NULL,
        data TEXT NOT NULL,
        state_version INTEGER NOT NULL,
        updated_at REAL NOT NULL
    ) STRICT""",
    "CREATE UNIQUE INDEX sandboxes_alias ON sandboxes (alias) WHERE alias <> ''",
    "CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT",
    """CREATE TABLE journal (
        sandbox_id TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
        step TEXT NOT NULL,
        position INTEGER NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('begun', 'done')),
        PRIMARY KEY (sandbox_id, step)
    ) STRICT""",
    # The ceiling is not a CHECK: a provider may bill more than was reserved, and that is recorded as it
    # is.  That reservations never pass it is the condition of the one UPDATE that makes them.
    """CREATE TABLE budgets (
        sandbox_id TEXT PRIMARY KEY REFERENCES sandboxes (id) ON DELETE CASCADE,
        ai_limit INTEGER CHECK (ai_limit >= 0),
        ai_spent INTEGER NOT NULL DEFAULT 0 CHECK (ai_spent >= 0),
        ai_reserved INTEGER NOT NULL DEFAULT 0 CHECK (ai_reserved >= 0),
        ai_warned INTEGER NOT NULL DEFAULT 0,
        ai_told INTEGER NOT NULL DEFAULT 0,
        compute_limit INTEGER CHECK (compute_limit >= 0),
        compute_spent INTEGER NOT NULL DEFAULT 0 CHECK (compute_spent >= 0),
        compute_warned INTEGER NOT NULL DEFAULT 0,
        compute_told INTEGER NOT NULL DEFAULT 0,
        threshold_ppm INTEGER NOT NULL DEFAULT 800000
    ) STRICT""",
    """CREATE TABLE reservations (
        sandbox_id TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
        call_id TEXT NOT NULL,
        amount INTEGER NOT NULL CHECK (amount >= 0),
        provider TEXT NOT NULL,
        model TEXT NOT NULL,
        at REAL NOT NULL,
        PRIMARY KEY (sandbox_id, call_id)
    ) STRICT""",
    "CREATE INDEX reservations_at ON reservations (at)",
    """CREATE TABLE calls (
        sandbox_id TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
        call_id TEXT NOT NULL,
        outcome TEXT NOT NULL CHECK (outcome IN ('settled', 'released', 'stale')),
        reserved INTEGER,
        cost INTEGER NOT NULL CHECK (cost >= 0),
        provider TEXT NOT NULL,
        model TEXT NOT NULL,
        at REAL NOT NULL,
        PRIMARY KEY (sandbox_id, call_id)
    ) STRICT""",
    "CREATE INDEX calls_at ON calls (at)",
    """CREATE TABLE models (
        sandbox_id TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
        provider TEXT NOT NULL,
        model TEXT NOT NULL,
        input_tokens INTEGER NOT NULL DEFAULT 0,
        output_tokens INTEGER NOT NULL DEFAULT 0,
        cache_read_tokens INTEGER NOT NULL DEFAULT 0,
        cache_write_tokens INTEGER NOT NULL DEFAULT 0,
        calls INTEGER NOT NULL DEFAULT 0,
        estimated_calls INTEGER NOT NULL DEFAULT 0,
        spent INTEGER NOT NULL DEFAULT 0 CHECK (spent >= 0),
        rate_source TEXT NOT NULL DEFAULT '',
        PRIMARY KEY (sandbox_id, provider, model)
    ) STRICT""",
    """CREATE TABLE tokens (
        sandbox_id TEXT PRIMARY KEY REFERENCES sandboxes (id) ON DELETE CASCADE,
        digest BLOB NOT NULL CHECK (length(digest) = 32),
        version INTEGER NOT NULL
    ) STRICT""",
    """CREATE TABLE heads (
        sandbox_id TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
        writer TEXT NOT NULL,
        seq INTEGER NOT NULL,
        hash TEXT NOT NULL,
        PRIMARY KEY (sandbox_id, writer)
    ) STRICT""",
    """CREATE TABLE recoveries (
        sandbox_id TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
        at REAL NOT NULL
    ) STRICT""",
    """CREATE TABLE notices (
        sandbox_id TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
        kind TEXT NOT NULL,
        subject TEXT NOT NULL,
        PRIMARY KEY (sandbox_id, kind)
    ) STRICT""",
    """CREATE TABLE secrets (
        name TEXT PRIMARY KEY,
        sealed BLOB NOT NULL,
        fingerprint TEXT NOT NULL,
        updated_at REAL NOT NULL
    ) STRICT""",
    # No reference to sandboxes: the last events of a sandbox outlive its record.
    """CREATE TABLE outbox (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        sandbox_id TEXT NOT NULL,
        kind TEXT NOT NULL,
        at REAL NOT NULL,
        detail TEXT NOT NULL,
        chained INTEGER NOT NULL,
        told INTEGER NOT NULL,
        done TEXT NOT NULL DEFAULT '[]',
        attempts INTEGER NOT NULL DEFAULT 0,
        next_at REAL NOT NULL DEFAULT 0
    ) STRICT""",
    "CREATE INDEX outbox_unchained ON outbox (number) WHERE chained = 0",
    "CREATE INDEX outbox_untold ON outbox (next_at) WHERE told = 0",
)

_ANCHORS = (
    # No reference to sandboxes: the evidence of a destroyed one is verified too.
    """CREATE TABLE anchors (
        sandbox_id TEXT PRIMARY KEY,
        number INTEGER NOT NULL,
        digest TEXT NOT NULL
    ) STRICT""",
)

_GRANTS = (
    """CREATE TABLE grants (
        sandbox_id TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
        entry TEXT NOT NULL,
        expires_at REAL NOT NULL,
        granted_at REAL NOT NULL,
        PRIMARY KEY (sandbox_id, entry)
    ) STRICT""",
    "CREATE INDEX grants_expires_at ON grants (expires_at)",
)

_SECRET_USES = (
    # No reference to sandboxes: where a secret was used is known after they are gone.
    """CREATE TABLE secret_uses (
        name TEXT NOT NULL,
        sandbox_id TEXT NOT NULL,
        host TEXT NOT NULL,
        at REAL NOT NULL,
        PRIMARY KEY (name, sandbox_id, host)
    ) STRICT""",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_INITIAL, _ANCHORS, _GRANTS, _SECRET_USES)
"""Statements by migration; number N (from 1) brings the schema from version N-1 to N."""
