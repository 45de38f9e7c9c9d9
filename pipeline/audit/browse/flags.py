"""Flags: sites that a person marked, with a note; the only data that the pages write."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from pipeline.config.errors import UserError

FLAGS = pa.schema(
    [
        pa.field("site_id", pa.string(), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),
        pa.field("note", pa.string(), nullable=False),
        pa.field("flagged_at", pa.string(), nullable=False),
    ]
)
"""Schema that `select.exclude` of a manifest takes: one row per flagged site. `flagged_at` is UTC, ISO 8601."""

FLAGS_NAMES = frozenset(FLAGS.names)

NOTE_LENGTH = 2000

LINES_AT_ONCE = 1000
"""Lines of one write."""

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""First characters of cells that a spreadsheet evaluates as formulas."""

QUOTE = "'"
"""Prefix of such cells in CSV, with which a spreadsheet shows them as text.

A cell that already begins with it gets one more, so that removing one always restores the text (`stages/select.py`
does).
"""


class Flags:
    """Append-only file with one line per change; the last line of a site counts, and a `note` of null removes its flag.

    Whole lines are written at once to a file opened for appending, so lines of concurrent writers never mix.
    `select.exclude` of a manifest takes this file as it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._size = -1
        self._flags: dict[str, dict[str, Any]] = {}

    def set(self, doc_id: str, position: int, note: str | None) -> None:
        """Flag a site, change its note, or remove its flag (note None)."""
        self.set_all([(doc_id, position)], note)

    def set_all(self, sites: Iterable[tuple[str, int]], note: str | None) -> None:
        """Do the same with many sites, given as (document, position)."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        shortened = None if note is None else note[:NOTE_LENGTH]
        lines = []
        for doc_id, position in sites:
            flag = {"site_id": f"{doc_id}-{position}", "doc_id": doc_id, "position": position, "note": shortened}
            lines.append(f"{json.dumps(flag | {'flagged_at': at})}\n")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            with self._lock:
                for first in range(0, len(lines), LINES_AT_ONCE):
                    # The leading newline isolates a line that a crash cut off.
                    os.write(descriptor, f"\n{''.join(lines[first : first + LINES_AT_ONCE])}".encode())
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def all(self) -> Mapping[str, Mapping[str, Any]]:
        """Return flags by `site_id`, last set last; a line that a crash cut off is ignored."""
        with self._lock:
            size = self.path.stat().st_size if self.path.exists() else 0
            if size != self._size:
                self._flags, self._size = _read(self.path) if size else {}, size
            return self._flags

    def table(self) -> pa.Table:
        """Return the flags as a table with schema `FLAGS`."""
        return pa.Table.from_pylist(list(self.all().values()), schema=FLAGS)

    def csv(self) -> bytes:
        """Return the flags as CSV without formulas."""
        out = io.BytesIO()
        rows = [{name: _as_text(value) for name, value in flag.items()} for flag in self.all().values()]
        pyarrow.csv.write_csv(pa.Table.from_pylist(rows, schema=FLAGS), out)
        return out.getvalue()


def _as_text(value: Any) -> Any:
    """Escape a cell that a spreadsheet would evaluate or unescape.

    Example:
        >>> _as_text("=1+1"), _as_text("'tis"), _as_text("a note"), _as_text(-7)
        ("'=1+1", "''tis", 'a note', -7)
    """
    return QUOTE + value if isinstance(value, str) and value.startswith((QUOTE, *FORMULA)) else value


def _read(path: Path) -> dict[str, dict[str, Any]]:
    flags: dict[str, dict[str, Any]] = {}
    for line in path.read_bytes().splitlines():
        try:
            flag = json.loads(line)
        except ValueError:
            continue  # empty, or cut off
        if not isinstance(flag, dict) or not flag.keys() >= FLAGS_NAMES:
            raise UserError("not a file of flags", where=path, hint="give the `flags.jsonl` of `rpt browse`")
        flags.pop(flag["site_id"], None)
        if flag["note"] is not None:
            flags[flag["site_id"]] = flag
    return flags
