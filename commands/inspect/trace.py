"""Trace: follow a training example back to the source record from which it was made.

Input:   shards and every table behind them; the source itself, of which one record is read again.
Output:  file and row of each table on the way, and the record with its location in the source; or JSON. Nothing is
         written. Exit code 3 if the record no longer produces the document.
Command: rpt trace data_manifests/<name>.yaml SITE_ID|DOC_ID|SHARD:ROW [--source PATH] [--json]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from pipeline.audit.locate import locate
from pipeline.audit.trace import find_site
from pipeline.audit.trace import trace as follow
from pipeline.config.manifest import Manifest
from pipeline.core.invisible import escape_invisible

SHOWN = 4000
"""Characters of a record in the terminal; JSON has all of them."""


def trace(manifest: Manifest, start: str, *, work: Path, source: str | None = None) -> dict[str, Any]:
    """Follow a training example, or any position, back to its source record, as JSON values.

    Args:
        manifest: with its overrides.
        start: a `site_id`, a `doc_id`, or file and row (from 0) of a shard, `train-….parquet:17`.
        work: folder of all manifests' artifacts.
        source: read this instead of `corpus.source`.

    Raises:
        UserError: the row, position or source does not exist.
        IntegrityError: a file on the way has been changed.
    """
    lineage, site_id = find_site(work / manifest.name, manifest, start)
    return follow(locate(lineage, site_id), manifest.corpus, source)


def tables(found: Mapping[str, Any]) -> list[Table]:
    """Render the trace as tables."""
    way = Table("table", "file", "row", title=found["site_id"], title_justify="left")
    way.columns[1].overflow = "fold"
    for row in found["rows"]:
        way.add_row(row["table"], row["file"], f"{row['row']:,}")
    document, source = found["document"], found["source"]
    column = document["column"]
    facts = Table.grid(padding=(0, 2))
    for name, value in {
        "token": escape_invisible(document["token"]).replace(" ", "␣").replace("\n", "⏎"),
        "in the document": _span(document["bytes"]),
        **({f"in `{escape_invisible(column)}`": _span(document["bytes_of_column"])} if column else {}),
        "source": f"{escape_invisible(source['file'])}, row {source['row']:,}",
        "in the file": _span(source["bytes"]) if source["bytes"] else source["where"],
        "text's hash": f"{document['doc_id']}, unchanged" if source["agrees"] else f"CHANGED: now {source['doc_id']}",
    }.items():
        facts.add_row(Text(name, "dim"), value)
    record = Table("the record")
    record.columns[0].overflow = "fold"
    cut = f"… {len(source['record']):,} characters" if len(source["record"]) > SHOWN else ""
    record.add_row(Text(escape_invisible(source["record"][:SHOWN]) + cut))
    return [way, facts, record]


def _span(span: tuple[int, int]) -> str:
    return f"bytes {span[0]:,}–{span[1]:,}"
