"""Records that did not become documents: quarantined, duplicates, and matches of an evaluation set."""

from __future__ import annotations

from typing import Any

import polars as pl
import pyarrow as pa

from pipeline.audit.lineage import Lineage
from pipeline.core.parquet import read_table

ROWS_SHOWN = 50
BYTES_SHOWN = 400
"""Bytes shown of a quarantined record."""


def quarantine(lineage: Lineage) -> dict[str, Any]:
    """Return the number of quarantined records by stage and reason, and the first few of each reason."""
    reasons: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []
    for stage, record in (("ingest", lineage.ingest), ("score", lineage.score)):
        counts: dict[str, int] = {}
        for file in record.files("quarantine"):
            for row in read_table(file).to_pylist():
                seen = counts.get(row["reason"], 0)
                counts[row["reason"]] = seen + 1
                if seen < ROWS_SHOWN // 5 and len(shown) < ROWS_SHOWN:
                    raw = row["raw"]
                    shown.append(row | {"stage": stage, "raw": raw[:BYTES_SHOWN], "bytes": len(raw)})
        reasons += [{"stage": stage, "reason": name, "records": count} for name, count in sorted(counts.items())]
    return {"reasons": reasons, "rows": shown}


def duplicates(lineage: Lineage) -> dict[str, Any]:
    """Return the number of dropped duplicates, and the largest groups of equal documents with their sources."""
    counters = lineage.ingest.counters
    counts = {
        n.removeprefix("dropped."): c for n, c in counters.items() if n.startswith("dropped.") and "duplicate" in n
    }
    read = lineage.before.get("read")
    groups: list[dict[str, Any]] = []
    if read is not None and counts.get("duplicate"):
        source = pl.struct("source_file", "source_row")
        candidates = pl.scan_parquet([file.verified() for file in read.files("documents")])
        groups = (
            candidates.group_by("doc_id")
            .agg(pl.len().alias("copies"), source.head(5).alias("sources"))
            .filter(pl.col("copies") > 1)
            .sort("copies", "doc_id", descending=[True, False])
            .head(ROWS_SHOWN)
            .collect(engine="streaming")
            .to_dicts()
        )
    return {"counts": counts, "groups": groups}


def matches(lineage: Lineage) -> dict[str, Any]:
    """Return the matches of dropped documents with near-duplicates or an evaluation set."""
    sought = any(lineage.ingest.config.get(rule) for rule in ("near_duplicates", "decontaminate"))
    assigned = lineage.before.get("assign")
    tables = [read_table(file) for file in assigned.files("matches")] if assigned else []
    table = pa.concat_tables(tables) if tables else pa.table({})
    return {
        "sought": sought,
        "columns": table.column_names,
        "total": table.num_rows,
        "rows": table.slice(0, ROWS_SHOWN).to_pylist(),
    }
