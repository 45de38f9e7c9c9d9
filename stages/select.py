"""Select: which scored positions become sites.

Input:   `documents` (text, to see where characters begin) and `scores`, shard by shard.
Output:  `sites`, a row a selected position, in the same shards and the same document order.
Command: rpt select data_manifests/<name>.yaml [--set select.where="entropy > 1.5"]    (nothing is scored again)

Every scored position is kept or counted under exactly one `dropped.<reason>`. `max_sites` needs to know all the
corpus' candidates before it can keep the right ones: a first pass (`select_cap`) lists their random keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.core.artifact import Counters, InputFile, Record, Shard
from pipeline.core.config import Manifest, SelectConfig
from pipeline.core.errors import UserError
from pipeline.core.executor import Executor
from pipeline.core.parquet import parquet_writer, read_table
from pipeline.core.stage import Stage, run_stage
from pipeline.selection.positions import DOCUMENT_COLUMNS, SCORE_TABLE_COLUMNS
from pipeline.selection.sites import SITES, select_sites, wanted

VERSION = 2
CANDIDATES = pa.schema([pa.field("key", pa.uint64(), nullable=False)])


def run(config: SelectConfig, shard: Shard, out: Path) -> Counters:
    """One shard: its documents and scores in, its sites out."""
    sites, counters = select_sites(config, *_tables(shard), largest_key=shard.details["largest_key"])
    with parquet_writer(out / "sites.parquet", SITES) as writer:
        writer.write_table(sites.select(SITES.names).to_arrow().cast(SITES))
    return counters


def run_cap(config: SelectConfig, shard: Shard, out: Path) -> Counters:
    """One shard's training candidates before `max_sites`: their keys, no more of them than could be kept."""
    sites, counters = select_sites(config, *_tables(shard))
    keys = np.sort(sites.filter(pl.col("split") == "train")["key"].to_numpy())[: config.max_sites]
    with parquet_writer(out / "candidates.parquet", CANDIDATES) as writer:
        writer.write_table(pa.table({"key": keys}, schema=CANDIDATES))
    return {"tokens": counters["tokens"], "candidates": counters["kept.train"]}


SELECT = Stage("select", VERSION, run, unit="tokens")
CAP = Stage("select_cap", VERSION, run_cap, unit="tokens")


def select(manifest: Manifest, documents: Record, scores: Record, *, work: Path, executor: Executor) -> Record:
    """Bring the sites up to date.

    Raises:
        UserError: `where` is not an expression of a position (before anything runs), or selects no training site.
    """
    config = manifest.select
    wanted(config)
    inputs = {"documents": documents.content, "scores": scores.content}
    files = [_files(documents, scores, done.shard) for done in scores.completions]
    largest_key = None
    if config.max_sites is not None:
        candidates = run_stage(CAP, config, _plan(files, {}), inputs, work, executor)
        largest_key = _largest_key(candidates, config.max_sites)
    record = run_stage(SELECT, config, _plan(files, {"largest_key": largest_key}), inputs, work, executor)
    if not record.counters["kept.train"]:
        raise _nothing_selected(config, scores)
    return record


def _plan(files: Sequence[dict[str, InputFile]], details: dict[str, int | None]) -> list[Shard]:
    return [Shard(index, tables, details) for index, tables in enumerate(files)]


def _files(documents: Record, scores: Record, shard: int) -> dict[str, InputFile]:
    tables = {"documents": documents.file("documents", shard), "scores": scores.file("scores", shard)}
    return {name: file for name, file in tables.items() if file is not None}


def _tables(shard: Shard) -> tuple[pa.Table, pa.Table]:
    documents = read_table(shard.files["documents"], DOCUMENT_COLUMNS)
    return documents, read_table(shard.files["scores"], SCORE_TABLE_COLUMNS)


def _largest_key(candidates: Record, most: int) -> int | None:
    """The largest key that is kept, so that exactly `most` are; None if there are no more than that."""
    if candidates.counters["candidates"] <= most:
        return None
    keys = np.concatenate([read_table(file)["key"].to_numpy() for file in candidates.files("candidates")])
    return int(np.partition(keys, most - 1)[most - 1])


def _nothing_selected(config: SelectConfig, scores: Record) -> UserError:
    """Says what there is to select from: the spread of entropy, and the fields."""
    tables = [read_table(file, ["split", "field", "entropy"]) for file in scores.files("scores")]
    lists = pl.DataFrame(pl.from_arrow(pa.concat_tables(tables))).filter(pl.col("split") == "train")
    scored = lists.explode("field", "entropy").drop_nulls("entropy")
    exceeded = [f"{name} {scored['entropy'].quantile(q) or 0:.2f}" for name, q in _QUANTILES.items()]
    fields = ", ".join(repr(name) for name in sorted(scored["field"].unique()))
    return UserError(
        "`select.where` selects no training position",
        where=config.where,
        mend=f"of {scored.height:,} scored ones, entropy exceeds {', '.join(exceeded)}; fields: {fields}",
    )


_QUANTILES = {"in half": 0.5, "in 1 of 10": 0.9, "in 1 of 100": 0.99}
