"""Matches: training documents that nearly duplicate another document, or overlap with an evaluation set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config.corpus import CorpusConfig, NearDuplicatesConfig
from pipeline.core.artifact import InputFile
from pipeline.core.parquet import read_table
from pipeline.corpus.near import near_duplicates
from pipeline.corpus.words import shingles, words

OVERLAPS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("file_row", pa.int64(), nullable=False),
        pa.field("ngram", pa.string(), nullable=False),
    ]
)
"""Documents, by their row in a table of candidates, that share an n-gram with a record of an evaluation set."""

BANDS = pa.schema([pa.field("bands", pa.list_(pa.uint64()), nullable=False)])
"""The band keys of every candidate document; an empty list if it has no words."""

MATCHES = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("source_file", pa.string(), nullable=False),
        pa.field("source_row", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("matched_doc_id", pa.string()),
        pa.field("matched_file", pa.string(), nullable=False),
        pa.field("matched_row", pa.int64(), nullable=False),
        pa.field("similarity", pa.float64()),
        pa.field("ngram", pa.string()),
    ]
)
"""A document that left training, why, and its match: another document (Jaccard `similarity` of their shingles) or
a record of an evaluation set (the first `ngram` of words that both have)."""


def read_candidates(documents: Sequence[InputFile]) -> pl.DataFrame:
    """Read `doc_id`, `held_out` and origin of every candidate, with the number of its `table`."""
    tables = [read_table(file, ["doc_id", "source_file", "source_row", "held_out"]) for file in documents]
    numbers = np.repeat(np.arange(len(tables)), [table.num_rows for table in tables])
    return pl.DataFrame(pl.from_arrow(pa.concat_tables(tables))).with_columns(table=pl.Series(numbers, dtype=pl.Int64))


def find_matches(
    config: CorpusConfig,
    candidates: pl.DataFrame,
    split: pl.Series,
    bands: Sequence[pa.Table],
    overlaps: Sequence[pa.Table],
    documents: Sequence[InputFile],
) -> pl.DataFrame:
    """Return the training documents that leave: the contaminated ones, and the near-duplicates among the others.

    Args:
        config: the rules for near-duplicates and contamination.
        candidates: result of `read_candidates`.
        split: split of each candidate, null for exact duplicates.
        bands: `BANDS` of every table of candidates; empty if the rules do not need them.
        overlaps: `OVERLAPS` of every table of candidates; empty if the rules do not need them.
        documents: the tables of candidates, for the texts of the documents that may be near-duplicates.

    Returns:
        The columns of `MATCHES`, and `row`: the candidate's number. At most one row per candidate.
    """
    found = [pl.DataFrame(pl.from_arrow(MATCHES.empty_table())).with_columns(row=pl.Series([], dtype=pl.Int64))]
    if config.decontaminate:
        found.append(_contaminated(candidates, split, overlaps))
        split, _ = drop_matched(split, found[-1])
    if config.near_duplicates:
        found.append(_nearly_duplicate(candidates, split, bands, documents, config.near_duplicates))
    return pl.concat(found, how="diagonal").sort("row")


def drop_matched(split: pl.Series, found: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
    """Return the split of each candidate, null where it left; and the reason, null where it stays."""
    reason = np.full(len(split), None, dtype=object)
    reason[split.is_null().to_numpy()] = "duplicate"
    reason[found["row"].to_numpy()] = found["reason"].to_numpy()
    dropped = pl.Series("dropped", reason.tolist(), pl.String)
    stays = pl.when(dropped.is_null()).then(split)
    return pl.select(stays).to_series().rename("split"), dropped


def _contaminated(candidates: pl.DataFrame, split: pl.Series, overlaps: Sequence[pa.Table]) -> pl.DataFrame:
    """Return the training documents that overlap with an evaluation set: `row`, and the columns of `MATCHES`.

    Args:
        candidates: `doc_id`, `source_file`, `source_row`, and `table`, the number of its table of candidates.
        split: split of each, null if it has left already.
        overlaps: `OVERLAPS` of every table of candidates.
    """
    begins = np.searchsorted(candidates["table"].to_numpy(), np.arange(len(overlaps)))
    frames = [
        pl.DataFrame(pl.from_arrow(table)).with_columns(pl.col("row") + int(begin))
        for table, begin in zip(overlaps, begins, strict=True)
    ]
    rows = candidates.with_row_index("row").with_columns(split, pl.col("row").cast(pl.Int64)).filter(split == "train")
    found = pl.concat(frames).unique("row", keep="first", maintain_order=True).join(rows, on="row").sort("row")
    return found.select(
        "row",
        "doc_id",
        "source_file",
        "source_row",
        reason=pl.lit("contaminated"),
        matched_doc_id=pl.lit(None, pl.String),
        matched_file="file",
        matched_row="file_row",
        similarity=pl.lit(None, pl.Float64),
        ngram="ngram",
    )


def _nearly_duplicate(
    candidates: pl.DataFrame,
    split: pl.Series,
    bands: Sequence[pa.Table],
    documents: Sequence[InputFile],
    rule: NearDuplicatesConfig,
) -> pl.DataFrame:
    """Return the training documents that nearly duplicate another one: `row`, and the columns of `MATCHES`.

    Args:
        candidates: `doc_id`, `source_file`, `source_row`, and `table`, the number of its table of candidates.
        split: split of each, null if it has left already.
        bands: `BANDS` of every table of candidates.
        documents: the tables of candidates; only texts of documents that may be near-duplicates are kept in memory.
        rule: threshold, n, and whether training documents are compared with one another.
    """
    column = pa.chunked_array([chunk for table in bands for chunk in table["bands"].chunks], BANDS.field(0).type)
    has_words = column.combine_chunks().value_lengths().to_numpy() > 0
    row_N = np.flatnonzero(has_words & split.is_not_null().to_numpy())
    keys = column.take(pa.array(row_N)).combine_chunks().flatten().to_numpy()
    keys_NB = keys.reshape(len(row_N), -1) if len(row_N) else keys.reshape(0, 1)
    taken = candidates.select("doc_id", "source_file", "source_row", "table").with_columns(split)[row_N]
    held_out_N = (taken["split"] == "validation").to_numpy()
    # By doc_id, a hash of the text: which of two near-duplicates stays does not depend on their order in the source.
    order = taken.with_row_index("n").filter(~pl.Series(held_out_N)).sort("doc_id")["n"].to_list()
    first_T = np.searchsorted(candidates["table"].to_numpy(), np.arange(len(documents)))
    table_N = taken["table"].to_numpy()

    def shingles_of(numbers: Sequence[int]) -> Mapping[int, NDArray[np.uint64]]:
        sets: dict[int, NDArray[np.uint64]] = {}
        for table in np.unique(table_N[numbers]):
            here = [n for n in numbers if table_N[n] == table]
            texts = read_table(documents[table], ["text"]).take(pa.array(row_N[here] - first_T[table]))["text"]
            sets |= {n: shingles(words(text.as_py()), rule.words) for n, text in zip(here, texts, strict=True)}
        return sets

    found = near_duplicates(keys_NB, held_out_N, order, rule, shingles_of)
    one, other = taken[[near.row for near in found]], taken[[near.other for near in found]]
    return one.select(
        pl.Series("row", row_N[[near.row for near in found]], pl.Int64),
        "doc_id",
        "source_file",
        "source_row",
        pl.Series("reason", [near_reason(bool(held_out_N[near.other])) for near in found], pl.String),
        other["doc_id"].alias("matched_doc_id"),
        other["source_file"].alias("matched_file"),
        other["source_row"].alias("matched_row"),
        pl.Series("similarity", [near.similarity for near in found], pl.Float64),
        pl.lit(None, pl.String).alias("ngram"),
    ).sort("row")


def near_reason(of_validation: bool) -> str:
    """Return the reason for which a near-duplicate leaves."""
    return "near_duplicate_of_validation" if of_validation else "near_duplicate"


def reasons(config: CorpusConfig) -> list[str]:
    """Return the reasons that this configuration can give, which are counted even if zero."""
    near = config.near_duplicates
    looked_for = {
        "duplicate": True,
        "contaminated": bool(config.decontaminate),
        near_reason(True): near is not None,
        near_reason(False): near is not None and near.within_training,
    }
    return [reason for reason, enabled in looked_for.items() if enabled]
