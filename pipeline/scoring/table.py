"""The scores table: one row per document, with lists over its positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.scoring.entropy import PositionScores

_POSITIONS = {
    "token_ids": pa.int32(),
    "token_ends": pa.int32(),
    "field": pa.string(),
    "entropy": pa.float32(),
    "entropy_partial": pa.float32(),
    "nll": pa.float32(),
    "rank": pa.int32(),
    "reference_nll": pa.float32(),
}
SCORES = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        *(pa.field(name, pa.list_(kind), nullable=False) for name, kind in _POSITIONS.items()),
    ]
)
SCORES_WITH_TOP = SCORES.append(pa.field("top_ids", pa.list_(pa.int32()), nullable=False)).append(
    pa.field("top_logprobs", pa.list_(pa.float32()), nullable=False)
)
"""`SCORES` with the top-k of every position, T·K values per document; null if the position has no scores."""

ROW_GROUP = 128
"""Documents per row group, which a reader of one document has to decode."""


@dataclass(frozen=True)
class ScoredDocument:
    """A document's tokens [T] and the scores of its positions 1 … T−1."""

    doc_id: str
    split: str
    token_ids: NDArray[np.int32]
    token_ends: NDArray[np.int64]
    fields: Sequence[Mapping[str, Any]]
    """The documents table's `fields`: byte spans of the template's columns."""
    scores: PositionScores
    reference: PositionScores | None = None
    """Scores of the same positions by the reference model; only `nll` is stored."""


def scores_table(documents: Sequence[ScoredDocument], *, min_context_tokens: int, with_top: bool) -> pa.Table:
    """Return rows of the scores table; positions with fewer than `min_context_tokens` tokens before them are null."""
    sizes = [len(d.token_ids) for d in documents]
    # Row t of a document's scores belongs to position t+1, because position 0 has no scores.
    null = _concatenate([np.arange(n) < min_context_tokens for n in sizes], bool)

    def positions(name: str) -> NDArray[Any]:
        parts = [np.concatenate([np.zeros(min(1, n)), _array(d, name)]) for d, n in zip(documents, sizes, strict=True)]
        return _concatenate(parts, np.float64)

    columns: dict[str, pa.Array] = {
        "token_ids": pa.array(_concatenate([d.token_ids for d in documents], np.int32)),
        "token_ends": pa.array(_concatenate([d.token_ends for d in documents], np.int32)),
        "field": pa.array([name for d in documents for name in token_fields(d.token_ends, d.fields)], pa.string()),
    }
    for name in ("entropy", "entropy_partial", "nll", "rank"):
        kind = _POSITIONS[name]
        columns[name] = pa.array(positions(name).astype(kind.to_pandas_dtype()), kind, mask=null)
    columns["reference_nll"] = _reference_nll(documents, null)
    lists = {name: _lists(values, sizes) for name, values in columns.items()}
    schema = SCORES
    if with_top:
        schema = SCORES_WITH_TOP
        K = next((d.scores.top_ids.shape[1] for d in documents), 0)
        for name in ("top_ids", "top_logprobs"):
            kind = schema.field(name).type.value_type
            values = _concatenate(
                [_with_first(d, name, n, K) for d, n in zip(documents, sizes, strict=True)], np.float64
            )
            flat = pa.array(values.astype(kind.to_pandas_dtype()), kind, mask=np.repeat(null, K))
            lists[name] = _lists(flat, [n * K for n in sizes])
    ids = [pa.array([d.doc_id for d in documents]), pa.array([d.split for d in documents])]
    return pa.Table.from_arrays([*ids, *lists.values()], schema=schema)


def _reference_nll(documents: Sequence[ScoredDocument], null: NDArray[np.bool_]) -> pa.Array:
    """Return the reference model's nll of every position; all null without a reference model."""
    if any(d.reference is None for d in documents):
        return pa.nulls(len(null), pa.float32())
    parts = [
        np.concatenate([np.zeros(min(1, len(d.token_ids))), d.reference.nll.numpy()]) for d in documents if d.reference
    ]
    return pa.array(_concatenate(parts, np.float32), mask=null)


def token_fields(ends_T: NDArray[np.int64], fields: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return for every token the column that its first byte lies in; "" for the template's own text.

    Example:
        >>> token_fields(np.array([3, 5, 9]), [{"name": "problem", "start": 3, "end": 5}])
        ['', 'problem', '']
    """
    spans = sorted((f["start"], f["end"], f["name"]) for f in fields if f["start"] < f["end"])
    starts_T = np.concatenate([[0], ends_T])[:-1]
    names = np.array(["", *(name for _, _, name in spans)], dtype=object)
    span_T = np.searchsorted([start for start, _, _ in spans], starts_T, side="right")
    span_ends = np.array([0, *(end for _, end, _ in spans)])
    return list(names[np.where(starts_T < span_ends[span_T], span_T, 0)])


def _array(document: ScoredDocument, name: str) -> NDArray[Any]:
    return getattr(document.scores, name).numpy()


def _with_first(document: ScoredDocument, name: str, tokens: int, K: int) -> NDArray[Any]:
    """Return the top-k values [T·K] of positions 0 … T−1; those of position 0 are zeros."""
    return np.concatenate([np.zeros(min(1, tokens) * K), _array(document, name).reshape(-1)])


def _concatenate(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate(parts).astype(dtype) if parts else np.empty(0, dtype)


def _lists(values: pa.Array, sizes: Sequence[int]) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32()), values)
