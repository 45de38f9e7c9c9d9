"""Every position of a corpus with the decision about it, as input of distributions, examples and comparisons."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from pipeline.audit.damage import DAMAGED
from pipeline.audit.lineage import Lineage
from pipeline.core.artifact import InputFile, Record
from pipeline.core.parquet import read_table
from pipeline.selection.metadata import referenced_metadata, with_metadata
from pipeline.selection.positions import SCORE_TABLE_COLUMNS, SELECTABLE, positions
from pipeline.selection.sites import REASONS, band_of, rule_expression
from pipeline.selection.where import filter_rows

ORIGIN = ["source_file", "source_row", "meta"]
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class AuditedShard:
    """Tables of a shard, checked against their hashes."""

    index: int
    documents: pa.Table
    scores: pa.Table
    sites: pl.DataFrame


def shards(lineage: Lineage, only: Collection[int] | None = None) -> Iterator[AuditedShard]:
    """Yield the shards of a selection, or some of them, one in memory at a time."""
    for shard in lineage.select.shards if only is None else sorted(only):
        yield AuditedShard(
            shard,
            read_table(_file(lineage.ingest, "documents", shard), ["doc_id", "text", *ORIGIN]),
            read_table(_file(lineage.score, "scores", shard), [*SCORE_TABLE_COLUMNS, "token_ids"]),
            pl.DataFrame(pl.from_arrow(read_table(_file(lineage.select, "sites", shard)))),
        )


def decisions(lineage: Lineage, shard: AuditedShard) -> Iterator[pl.DataFrame]:
    """Yield the positions of a shard, in frames of whole documents.

    Yields:
        Frames with the columns of `SCORE_COLUMNS`, `inside_character`, `token_id`, `byte_end` (null: end of the text),
        the metadata that the rule names, and `kept`: is a site; `selectable`: has scores and begins a character, so
        that a rule can keep it; `passes`: `where` holds; `decision`: `kept`, or the first reason of `REASONS` that
        applies; `band`: the hardest of its bands.
    """
    expression = rule_expression(lineage.rule)
    site = shard.sites.select("doc_id", "position", kept=pl.lit(True))
    token_ids = pl.Series(pl.from_arrow(shard.scores["token_ids"].combine_chunks().flatten()))
    named = referenced_metadata(expression, lineage.rule.metadata)
    scores = with_metadata(shard.scores.drop_columns(["token_ids"]), shard.documents, named)
    begin = 0
    for frame in positions(shard.documents, scores):
        ids = token_ids[begin : begin + frame.height]
        begin += frame.height
        marked = frame.with_columns(
            token_id=ids,
            byte_end=pl.col("byte_offset").shift(-1).over("doc_id"),
            selectable=SELECTABLE,
            band=band_of(lineage.rule.bands),
        ).join(site, on=["doc_id", "position"], how="left", maintain_order="left")
        passing = filter_rows(marked.with_row_index("row"), expression, "`select.where`").select("row", passes=True)
        yield (
            marked.with_row_index("row")
            .join(passing, on="row", how="left", maintain_order="left")
            .with_columns(kept=pl.col("kept").fill_null(False), passes=pl.col("passes").fill_null(False))
            .with_columns(
                decision=_decision(later_reason(lineage.select)),
                token_class=pl.col("token_class").cast(pl.String),  # after the rule, which compares classes by place
            )
            .drop("row")
        )


def damaged_texts(shard: AuditedShard) -> dict[str, bytes]:
    """Return the texts of the documents that hold a control character or U+FFFD, by document id."""
    documents = pl.DataFrame(pl.from_arrow(shard.documents.select(["doc_id", "text"])))
    damaged = documents.filter(pl.col("text").str.contains(DAMAGED))
    return {doc_id: text.encode() for doc_id, text in damaged.iter_rows()}


def later_reason(select: Record) -> str:
    """Return the reasons after `where` that dropped positions, joined by "or"."""
    later = REASONS[REASONS.index("where") + 1 :]
    return " or ".join(name for name in later if select.counters.get(f"dropped.{name}")) or "not selected"


def _decision(later: str) -> pl.Expr:
    return (
        pl.when("kept")
        .then(pl.lit("kept"))
        .when(~pl.col("entropy").is_finite().fill_null(False))
        .then(pl.lit("not_scorable"))
        .when("inside_character")
        .then(pl.lit("inside_character"))
        .when(~pl.col("passes"))
        .then(pl.lit("where"))
        .otherwise(pl.lit(later))
    )


def _file(record: Record, table: str, shard: int) -> InputFile:
    file = record.file(table, shard)
    assert file is not None, f"{record.directory}: shard {shard} has no {table}"
    return file
