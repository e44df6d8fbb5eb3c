"""Tables of the database, and what a row of each stands for."""

import msgspec

VERSION = 1
"""`user_version` of the database that this code reads and writes."""

TABLES = """
CREATE TABLE records (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    body BLOB NOT NULL,
    previous TEXT,
    size INTEGER NOT NULL,
    created REAL NOT NULL,
    used REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX records_by_use ON records (used);
CREATE TABLE items (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    owner TEXT NOT NULL REFERENCES records (id) ON DELETE CASCADE,
    id TEXT NOT NULL,
    is_input INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX items_by_owner ON items (owner, seq);
CREATE INDEX items_by_id ON items (id);
"""

RESPONSE = "response"
CONVERSATION = "conversation"


class KeptItem(msgspec.Struct, frozen=True, kw_only=True):
    """One item of a response or of a conversation."""

    id: str
    body: bytes
    """JSON, its id included."""
    is_input: bool = True
    """False for what the model said."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A response or a conversation."""

    id: str
    kind: str
    body: bytes
    """The object as callers get it, JSON."""
    previous: str | None = None
    """The response before it."""
    created: float = 0.0
    """Epoch seconds."""
