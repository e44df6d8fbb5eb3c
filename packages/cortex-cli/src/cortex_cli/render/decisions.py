"""What the gateway decided, as lines."""

import datetime
from collections.abc import Sequence

from cortex_cli.context import Style
from cortex_cli.render.text import clean, table, text_of
from cortex_core.routing.record import Record


def render_decisions(records: Sequence[Record], style: Style) -> str:
    """Return records, which come newest first, as lines with the newest last."""
    if not records:
        return text_of(["nothing was decided"], style)
    header = ("AT", "WHAT", "MODEL", "NODE", "WHY")
    rows = [
        (
            _clock(record.at),
            record.kind.value,
            clean(record.model),
            clean(record.node or "-"),
            _why(record),
        )
        for record in reversed(records)
    ]
    return text_of(table(header, rows, style), style)


def _clock(at: float) -> str:
    """Return the time of day, in UTC as in the logs."""
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%H:%M:%S.%f")[:-3] + "Z"


def _why(record: Record) -> str:
    parts = [record.reason]
    if record.victims:
        parts.append("gives way: " + ", ".join(record.victims))
    parts += [f"not {one.node}: {one.rejected}" for one in record.considered if one.rejected]
    if record.took_s is not None:
        parts = [f"done in {record.took_s:.1f} s"]
    if record.error is not None:
        parts = [f"failed after {record.took_s or 0:.1f} s: {record.error}"]
    if record.request_id is not None:
        parts.append(f"[{record.request_id}]")
    return clean("; ".join(parts))
