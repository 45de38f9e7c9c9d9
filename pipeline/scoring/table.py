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
    """Return rows of the scores table; positions with fewer than `min_context_tokens` tokens before them are null.

    Columns are made of all documents at once: a short document costs microseconds, not a numpy call per column.
    """
    size_D = np.array([len(document.token_ids) for document in documents], np.int64)
    place_P = np.arange(size_D.sum()) - np.repeat(np.cumsum(size_D) - size_D, size_D)
    null_P, scored_P = place_P < min_context_tokens, place_P > 0

    def column(name: str, of: Sequence[PositionScores], per_position: int = 1) -> pa.Array:
        """Return a score of all positions; those at place 0 have none, which is null."""
        kind = _kind(name)
        values_PK = np.zeros((len(place_P), per_position), kind.to_pandas_dtype())
        if of:
            values_PK[scored_P] = np.concatenate([getattr(s, name).numpy().reshape(-1, per_position) for s in of])
        return pa.array(values_PK.ravel(), kind, mask=np.repeat(null_P, per_position))

    own = [document.scores for document in documents]
    ends_D, fields_D = [document.token_ends for document in documents], [document.fields for document in documents]
    columns = {
        "token_ids": pa.array(_concatenate([document.token_ids for document in documents], np.int32)),
        "token_ends": pa.array(_concatenate(ends_D, np.int32)),
        "field": token_fields(ends_D, fields_D),
        **{name: column(name, own) for name in ("entropy", "entropy_partial", "nll", "rank")},
        "reference_nll": pa.nulls(len(place_P), pa.float32()),
    }
    reference = [document.reference for document in documents if document.reference is not None]
    if len(reference) == len(documents):
        columns["reference_nll"] = column("nll", reference)
    lists = {name: _lists(values, size_D) for name, values in columns.items()}
    if with_top:
        K = next((scores.top_ids.shape[1] for scores in own), 0)
        lists |= {name: _lists(column(name, own, K), size_D * K) for name in ("top_ids", "top_logprobs")}
    ids = [pa.array([d.doc_id for d in documents]), pa.array([d.split for d in documents])]
    return pa.Table.from_arrays([*ids, *lists.values()], schema=SCORES_WITH_TOP if with_top else SCORES)


def token_fields(ends_D: Sequence[NDArray[np.integer]], fields_D: Sequence[Sequence[Mapping[str, Any]]]) -> pa.Array:
    """Return for every token of all documents the column that its first byte lies in; "" for the template's own text.

    Args:
        ends_D: each document's token ends, in bytes.
        fields_D: the documents table's `fields` of each.

    Example:
        >>> token_fields([np.array([3, 5, 9])], [[{"name": "problem", "start": 3, "end": 5}]]).to_pylist()
        ['', 'problem', '']
    """
    size_D = np.array([len(ends) for ends in ends_D], np.int64)
    first_D = np.cumsum(size_D) - size_D
    end_P = _concatenate(ends_D, np.int64)
    start_P = np.concatenate([[0], end_P])[:-1]
    start_P[first_D[size_D > 0]] = 0
    # The documents' bytes lie end to end, each at its `base`, so that one search finds the spans of all tokens.
    last_D = np.where(size_D > 0, np.append(end_P, 0)[first_D + size_D - 1], 0)
    base_D = np.cumsum(last_D) - last_D
    spans = sorted(
        (base + field["start"], base + field["end"], field["name"], base + last)
        for base, last, fields in zip(base_D.tolist(), last_D.tolist(), fields_D, strict=True)
        for field in fields
        if field["start"] < min(field["end"], last)
    )
    names = ["", *dict.fromkeys(name for _, _, name, _ in spans)]
    number = {name: n for n, name in enumerate(names)}
    span_start_S = np.array([start for start, _, _, _ in spans], np.int64)
    span_end_S = np.array([0, *(min(end, last) for _, end, _, last in spans)], np.int64)
    name_S = np.array([0, *(number[name] for _, _, name, _ in spans)], np.int64)
    start_P = start_P + np.repeat(base_D, size_D)
    span_P = np.searchsorted(span_start_S, start_P, side="right")
    return pa.array(names, pa.string()).take(pa.array(np.where(start_P < span_end_S[span_P], name_S[span_P], 0)))


def _kind(name: str) -> pa.DataType:
    kind: pa.DataType = SCORES_WITH_TOP.field(name).type.value_type
    return kind


def _concatenate(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate(parts).astype(dtype) if parts else np.empty(0, dtype)


def _lists(values: pa.Array, size_D: NDArray[np.int64]) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(size_D)]), pa.int32()), values)
