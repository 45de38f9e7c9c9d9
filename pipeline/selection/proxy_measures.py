"""Measures a proxy from its scores: its calibration, and its bits per byte beside what it must beat.

Both are sums over shards that do not depend on how the corpus is cut: sums of nats are kept as integers, and a document
is in the sample by a hash of its id. Shape names: P positions, B bins, T tokens of the sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.core.artifact import InputFile
from pipeline.core.parquet import read_table
from pipeline.core.random_keys import random_key
from pipeline.scoring.baselines import bigram_nats, unigram_nats, zlib_bits_per_byte

EDGES: NDArray[np.float64] = np.linspace(0, 2.6, 14).round(10)
"""Left edges of the bins of entropy, in nats; the last bin is open."""
UNIT = 2**20
"""Parts of a nat in which sums are kept: sums of integers do not depend on their order."""

CALIBRATION_SCORES = ["entropy", "entropy_partial", "nll"]
CALIBRATION = pa.schema([pa.field(name, pa.int64(), nullable=False) for name in ("positions", *CALIBRATION_SCORES)])
"""One row per bin of `EDGES`: its scored positions, and the sums of their scores in nats / `UNIT`."""

SAMPLE_SCORES = ["doc_id", "token_ids", "token_ends", *CALIBRATION_SCORES]
SAMPLE = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("scored", pa.list_(pa.bool_()), nullable=False),
        pa.field("nll", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
    ]
)
"""One row per document on which bits per byte are compared: which tokens have scores, the sum of their losses in nats /
`UNIT`, and their bytes."""


def calibration(scores: pa.Table) -> pa.Table:
    """Return the sums of a shard's scored positions by bin of entropy (`CALIBRATION`)."""
    entropy_P, partial_P, nll_P = (_flat(scores, name) for name in CALIBRATION_SCORES)
    scored_P = np.isfinite(entropy_P) & np.isfinite(nll_P)
    bin_P = np.clip(np.searchsorted(EDGES, entropy_P[scored_P], side="right") - 1, 0, None)
    columns = {"positions": np.bincount(bin_P, minlength=len(EDGES))}
    for name, values_P in zip(CALIBRATION_SCORES, (entropy_P, partial_P, nll_P), strict=True):
        sums_B = np.zeros(len(EDGES), dtype=np.int64)
        np.add.at(sums_B, bin_P, _units(values_P[scored_P]))
        columns[name] = sums_B
    return pa.table(columns, schema=CALIBRATION)


def add_calibrations(tables: Sequence[pa.Table]) -> pa.Table:
    """Return the sum of the tables of all shards."""
    columns = {name: sum(table[name].to_numpy() for table in tables) for name in CALIBRATION.names}
    return pa.table(columns, schema=CALIBRATION)


def sample(documents: pa.Table, scores: pa.Table, share: float) -> pa.Table:
    """Return the documents of a shard that are in the sample (`SAMPLE`).

    Args:
        documents: columns `doc_id` and `text` of the shard.
        scores: `SAMPLE_SCORES` of the same shard.
        share: the share of all documents to draw.
    """
    drawn = [random_key("certificate", doc_id) < share * 2**64 for doc_id in scores["doc_id"].to_pylist()]
    chosen = scores.filter(pa.array(drawn, pa.bool_()))
    frame = pl.DataFrame(pl.from_arrow(chosen.select(["doc_id", "token_ids"])), schema_overrides={"doc_id": pl.String})
    ends_P = _flat(chosen, "token_ends").astype(np.int64)
    sizes_D = frame["token_ids"].list.len().to_numpy().astype(np.int64)
    document_P = np.repeat(np.arange(len(sizes_D)), sizes_D)
    first_P = np.concatenate([[True], document_P[1:] != document_P[:-1]])[: len(document_P)]
    bytes_P = ends_P - np.where(first_P, 0, np.concatenate([[0], ends_P])[:-1])
    nll_P = _flat(chosen, "nll")
    scored_P = np.isfinite(_flat(chosen, "entropy")) & np.isfinite(nll_P)
    per_document = [np.zeros(len(sizes_D), dtype=np.int64) for _ in range(2)]
    for total_D, values_P in zip(per_document, (_units(np.where(scored_P, nll_P, 0)), bytes_P * scored_P), strict=True):
        np.add.at(total_D, document_P, values_P)
    starts = np.concatenate([[0], np.cumsum(sizes_D)])
    scored = pa.ListArray.from_arrays(pa.array(starts, pa.int32()), pa.array(scored_P, pa.bool_()))
    texts = pl.DataFrame(pl.from_arrow(documents.select(["doc_id", "text"])))
    found = frame.with_columns(scored=pl.Series(pl.from_arrow(scored)), nll=per_document[0], bytes=per_document[1])
    return (
        found.join(texts, on="doc_id", how="left", maintain_order="left").select(SAMPLE.names).to_arrow().cast(SAMPLE)
    )


def bits_per_byte(sampled: pa.Table) -> dict[str, Any]:
    """Return the bits per byte of the proxy and of what it must beat, on the sampled documents of all shards.

    All but zlib price the tokens that have scores, and none has seen the document that it prices: `unigram` and
    `bigram` count the sample's other documents, zlib reads whole documents one after the other.

    Returns:
        `documents`, `tokens` and `bytes` that are priced, and bits per byte of `proxy`, `unigram`, `bigram` and `zlib`
        (None without any scored token).
    """
    frame = pl.DataFrame(pl.from_arrow(sampled), schema_overrides={"doc_id": pl.String})
    order = pl.Series([random_key("certificate", doc_id) for doc_id in frame["doc_id"]], dtype=pl.UInt64)
    frame = frame.with_columns(order=order).sort("order", "doc_id")
    ids_T = frame["token_ids"].explode().drop_nulls().to_numpy().astype(np.int64)
    scored_T = frame["scored"].explode().drop_nulls().to_numpy().astype(bool)
    document_T = np.repeat(np.arange(frame.height), frame["token_ids"].list.len().to_numpy())
    size = int(frame["bytes"].sum())
    found: dict[str, Any] = {"documents": frame.height, "tokens": int(scored_T.sum()), "bytes": size}
    if not size:
        return found | dict.fromkeys(("proxy", "unigram", "bigram", "zlib"))
    vocabulary = int(ids_T.max()) + 1
    nats = {
        "proxy": int(frame["nll"].sum()) / UNIT,
        "unigram": float(unigram_nats(ids_T, document_T, vocabulary)[scored_T].sum()),
        "bigram": float(bigram_nats(ids_T, document_T, vocabulary)[scored_T].sum()),
    }
    bits = {name: round(value / math.log(2) / size, 4) for name, value in nats.items()}
    return found | bits | {"zlib": round(zlib_bits_per_byte(frame["text"].to_list()), 4)}


def entropy_spread(files: Sequence[InputFile]) -> tuple[NDArray[np.int64], set[str]]:
    """Return the scored training positions by hundredths of a nat of entropy [H], and the fields that they are in.

    Memory holds one file at a time.

    Args:
        files: tables of scores.
    """
    count_H, fields = np.zeros(1, np.int64), set[str]()
    for file in files:
        lists = pl.DataFrame(pl.from_arrow(read_table(file, ["split", "field", "entropy"])))
        scored = lists.filter(pl.col("split") == "train").explode("field", "entropy").drop_nulls("entropy")
        entropy_P = scored["entropy"].to_numpy().astype(np.float64)
        here_H = np.bincount(np.rint(100 * entropy_P[np.isfinite(entropy_P)]).astype(np.int64), minlength=len(count_H))
        here_H[: len(count_H)] += count_H
        count_H = here_H
        fields.update(scored["field"].unique().to_list())
    return count_H, fields


def quantile(count_H: NDArray[np.int64], share: float) -> float:
    """Return the entropy, to a hundredth of a nat, that `share` of the positions do not exceed; 0 if there are none.

    Example:
        >>> quantile(np.array([0, 5, 0, 4, 1]), 0.5), quantile(np.array([0, 5, 0, 4, 1]), 0.9)
        (0.01, 0.03)
    """
    return float(np.searchsorted(np.cumsum(count_H), share * count_H.sum())) / 100


def _flat(scores: pa.Table, column: str) -> NDArray[np.float64]:
    """Return the values of a list column end to end, NaN where there is none."""
    values = pl.Series(pl.from_arrow(scores[column].combine_chunks().flatten()))
    return values.cast(pl.Float64).fill_null(math.nan).to_numpy()


def _units(nats: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(nats * UNIT).astype(np.int64)
