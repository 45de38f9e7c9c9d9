"""Which scored positions become sites, and why the others do not."""

from __future__ import annotations

from collections import Counter

import polars as pl
import pyarrow as pa

from pipeline.core.artifact import Counters
from pipeline.core.config import BandsConfig, SelectConfig
from pipeline.selection.keys import key_of, keys
from pipeline.selection.positions import positions
from pipeline.selection.where import SCORE_COLUMNS, filter_rows, row_filter

SITES = pa.schema(
    [
        pa.field("site_id", pa.string(), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),
        pa.field("byte_offset", pa.int32(), nullable=False),
        pa.field("field", pa.string(), nullable=False),
        pa.field("entropy", pa.float32(), nullable=False),
        pa.field("nll", pa.float32(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("token_class", pa.string(), nullable=False),
        pa.field("difficulty", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
    ]
)
"""A row is a selected position; rows are in document order, then by position."""

REASONS = ("not_scorable", "inside_character", "where", "document_cap", "corpus_cap")
"""Why a position is no site, in the order in which they are asked: the first that applies is the one counted."""

BANDS = ("easy", "medium", "hard")


def wanted(config: SelectConfig) -> pl.Expr:
    """The boolean expression of one position that `where` and `validation_where` make together.

    Raises:
        UserError: one of them is no such expression (`row_filter`).
    """
    train = row_filter(config.where, SCORE_COLUMNS, "select.where")
    validation = row_filter(config.validation_where, SCORE_COLUMNS, "select.validation_where")
    return pl.when(pl.col("split") == "train").then(train).otherwise(validation)


def select_sites(
    config: SelectConfig, documents: pa.Table, scores: pa.Table, largest_key: int | None = None
) -> tuple[pl.DataFrame, Counters]:
    """Select the sites of a shard.

    A document's sites depend on that document alone (and on `largest_key`), so that it does not matter how a corpus
    is cut into shards.

    Args:
        config: what to keep.
        documents: the shard's documents (`DOCUMENT_COLUMNS`).
        scores: their scores (`SCORE_TABLE_COLUMNS`).
        largest_key: training sites with a larger key are over `max_sites` (`cap_key`); None: there is no such cap.

    Returns:
        A frame with the columns of `SITES` and `key`, a site's random number in [0, 2⁶⁴); and the counts:
        `documents`, `tokens` = the sum of `dropped.<reason>` and `kept.<split>`, and `band.<name>`, nested, over
        all that is kept.
    """
    expression = wanted(config)
    counters: Counter[str] = Counter({"documents": scores.num_rows, "tokens": 0})
    counters.update({f"dropped.{reason}": 0 for reason in REASONS})
    kept = [_select(config, expression, frame, largest_key, counters) for frame in positions(documents, scores)]
    sites = pl.concat([_NOTHING, *kept])
    for split in ("train", "validation"):
        counters[f"kept.{split}"] = int((sites["split"] == split).sum())
    for band in BANDS:
        counters[f"band.{band}"] = int((sites["entropy"] > getattr(config.bands, band)).sum())
    return sites, dict(counters)


def _select(
    config: SelectConfig, expression: pl.Expr, frame: pl.DataFrame, largest_key: int | None, counters: Counter[str]
) -> pl.DataFrame:
    """The sites of some whole documents; what is dropped is added to `counters`."""

    def drop(reason: str, kept: pl.DataFrame, before: pl.DataFrame) -> pl.DataFrame:
        counters[f"dropped.{reason}"] += before.height - kept.height
        return kept

    counters["tokens"] += frame.height
    frame = drop("not_scorable", frame.filter(pl.col("entropy").is_finite()), frame)
    frame = drop("inside_character", frame.filter(~pl.col("inside_character")), frame)
    frame = drop("where", filter_rows(frame, expression, "`select.where` or `select.validation_where`"), frame)
    frame = drop("document_cap", _cap_documents(frame, config.max_per_document), frame)
    frame = _with_key(frame, config.seed)
    if largest_key is not None:
        allowed = (pl.col("split") != "train") | (pl.col("key") <= pl.lit(largest_key, dtype=pl.UInt64))
        frame = drop("corpus_cap", frame.filter(allowed), frame)
    named = frame.with_columns(
        site_id=pl.format("{}-{}", "doc_id", "position"),
        token_class=pl.col("token_class").cast(pl.String),
        difficulty=difficulty(config.bands),
    )
    return named.select(*SITES.names, "key")


def _cap_documents(frame: pl.DataFrame, most: int | None) -> pl.DataFrame:
    """Keep each document's `most` positions of highest entropy; among equals the first ones."""
    if most is None:
        return frame
    order = pl.col("entropy").rank("ordinal", descending=True).over("doc_id")
    return frame.filter(order <= most)


def _with_key(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    ids = frame["doc_id"].unique(maintain_order=True)
    base = pl.Series([key_of("site", seed, doc_id) for doc_id in ids], dtype=pl.UInt64)
    base_of_site = frame["doc_id"].replace_strict(ids, base, return_dtype=pl.UInt64).to_numpy()
    return frame.with_columns(key=pl.Series(keys(base_of_site, frame["position"].to_numpy()), dtype=pl.UInt64))


def difficulty(bands: BandsConfig) -> pl.Expr:
    """The hardest band whose threshold the entropy exceeds, or `none`."""
    entropy = pl.col("entropy")
    return (
        pl.when(entropy > bands.hard)
        .then(pl.lit("hard"))
        .when(entropy > bands.medium)
        .then(pl.lit("medium"))
        .when(entropy > bands.easy)
        .then(pl.lit("easy"))
        .otherwise(pl.lit("none"))
    )


_NOTHING = pl.DataFrame(pl.from_arrow(SITES.empty_table())).with_columns(key=pl.lit(None, dtype=pl.UInt64))
