"""Summary statistics of a selection: funnel, bands, quantiles of the entropy, token classes, sizes."""

from __future__ import annotations

from typing import Any

import polars as pl

from pipeline.audit.decisions import SPLITS
from pipeline.audit.funnel import funnel
from pipeline.audit.lineage import Lineage
from pipeline.core.marks import read_certificate
from pipeline.corpus.documents import CORPUS
from pipeline.selection.sites import BANDS

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def stats(lineage: Lineage) -> dict[str, Any]:
    """Return summary statistics of a selection; only `sites` and two columns of `scores` are read.

    Returns:
        `funnel`, `certificate` (None if there is none), `sites` (by split), `bands`, `token_classes` and, for several
        sources, `corpora` (by name, then split; a site counts in the hardest of its bands), `entropy` (by split, of all
        `scored` positions and of `sites`: count, mean, quantiles; nats), `sizes` (by stage: shards, files, rows,
        bytes), `bytes_per_site` of the shards.
    """
    sites = pl.scan_parquet([file.verified() for file in lineage.select.files("sites")])
    scored = pl.scan_parquet([file.verified() for file in lineage.score.files("scores")])
    scored = scored.select("split", pl.col("entropy")).explode("entropy").filter(pl.col("entropy").is_finite())
    entropy = {"scored": _quantiles(scored), "sites": _quantiles(sites)}
    sizes = {stage: record.summary.sizes for stage, record in lineage.records.items()}
    shards = sizes.get("materialize", {"rows": 0, "bytes": 0})
    return {
        "manifest": lineage.name,
        "selection": lineage.select.fingerprint,
        "rule": dict(lineage.select.config),
        "funnel": [vars(step) for step in funnel(lineage.records)],
        "certificate": read_certificate(lineage.select),
        "sites": {split: lineage.select.counters[f"kept.{split}"] for split in SPLITS},
        "bands": _counts(sites, "band", ("none", *BANDS)),
        "token_classes": _counts(sites, "token_class"),
        "corpora": _counts(sites, CORPUS) if CORPUS in sites.collect_schema() else {},
        "entropy": {split: {of: entropy[of].get(split) for of in entropy} for split in SPLITS},
        "sizes": sizes,
        "bytes_per_site": shards["bytes"] / shards["rows"] if shards["rows"] else None,
    }


def _quantiles(rows: pl.LazyFrame) -> dict[str, dict[str, Any]]:
    """Return count, mean and quantiles of the entropy by split."""
    column = pl.col("entropy")
    named = [column.quantile(q, "linear").alias(f"{q:g}") for q in QUANTILES]
    counted = rows.group_by("split").agg(pl.len().alias("count"), column.cast(pl.Float64).mean().alias("mean"), *named)
    return {row.pop("split"): row for row in counted.collect(engine="streaming").to_dicts()}


def _counts(sites: pl.LazyFrame, column: str, order: tuple[str, ...] = ()) -> dict[str, dict[str, int]]:
    """Return sites by value and split, in the given order or with most sites first."""
    counted = sites.group_by(column, "split").len().collect(engine="streaming")
    by = {(value, split): count for value, split, count in counted.iter_rows()}
    values = {value for value, _ in by}
    total = {value: sum(by.get((value, split), 0) for split in SPLITS) for value in values}
    named = [v for v in order if v in values] if order else sorted(values, key=lambda v: (-total[v], v))
    return {value: {split: by.get((value, split), 0) for split in SPLITS} for value in named}
