"""A stratified sample of documents, each as a token heat map (assets/heatmap.js)."""

from __future__ import annotations

import heapq
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from pipeline.audit.characters import whole_pieces
from pipeline.audit.decisions import AuditedShard
from pipeline.audit.lineage import Lineage
from pipeline.audit.minimap import hardest, minimap
from pipeline.audit.why_not import later_columns, part_columns
from pipeline.core.random_keys import random_key
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.selection.metadata import rule_columns

SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)
"""Upper limits of the strata: share of selectable positions that is kept, none to more than 40 %."""
TOKENS_SHOWN = 2000


@dataclass(frozen=True, order=True)
class Example:
    """Document of the sample."""

    key: int
    """Random number; the documents with the smallest ones in a stratum are taken."""
    shard: int
    doc_id: str
    split: str
    stratum: int
    tokens: int
    selectable: int
    kept: int


class Sample:
    """Sample of at most `count` documents, spread evenly over the (split, share kept) strata."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self._count, self._seed = count, seed
        self._strata: dict[tuple[str, int], list[tuple[int, Example]]] = defaultdict(list)

    def add(self, shard: int, frame: pl.DataFrame) -> None:
        """Consider the documents of a frame of `decisions` for the sample."""
        counted = frame.group_by("doc_id", "split", maintain_order=True).agg(
            pl.len(), pl.col("selectable").sum(), pl.col("kept").sum()
        )
        for doc_id, split, tokens, selectable, kept in counted.iter_rows():
            stratum = int(np.searchsorted(SHARES, kept / max(selectable, 1), side="left"))
            key = random_key("audit", self._seed, doc_id)
            example = Example(key, shard, doc_id, split, stratum, tokens, selectable, kept)
            heap = self._strata[split, stratum]
            heapq.heappush(heap, (-key, example))
            if len(heap) > self._count:
                heapq.heappop(heap)

    def chosen(self) -> list[Example]:
        """Return the sample, taking from each stratum in turn."""
        queues = [sorted((e for _, e in heap), reverse=True) for _, heap in sorted(self._strata.items())]
        chosen: list[Example] = []
        while any(queues) and len(chosen) < self._count:
            for queue in queues:
                if queue and len(chosen) < self._count:
                    chosen.append(queue.pop())
        return chosen


def heat_maps(
    lineage: Lineage, shard: AuditedShard, frame: pl.DataFrame, doc_ids: set[str], tops: TopTokens | None
) -> dict[str, dict[str, Any]]:
    """Return heat maps for `RptHeatmap.mount`, by document; long documents are truncated to `TOKENS_SHOWN`."""
    documents = {row["doc_id"]: row for row in shard.documents.to_pylist() if row["doc_id"] in doc_ids}
    made: dict[str, dict[str, Any]] = {}
    for (doc_id,), positions in frame.filter(pl.col("doc_id").is_in(list(doc_ids))).group_by(
        ["doc_id"], maintain_order=True
    ):
        document = documents[str(doc_id)]
        made[document["doc_id"]] = _heat_map(lineage, document, positions, tops)
    return made


def _heat_map(
    lineage: Lineage, document: dict[str, Any], positions: pl.DataFrame, tops: TopTokens | None
) -> dict[str, Any]:
    text = document["text"].encode()
    shown, rule = positions.head(TOKENS_SHOWN), lineage.rule
    where = rule.where if shown["split"][0] == "train" else rule.validation_where
    pieces = [text[begin:end] for begin, end in shown.select("byte_offset", "byte_end").iter_rows()]
    shown_bytes = sum(map(len, pieces))
    tokens = whole_pieces(pieces, text[shown_bytes : shown_bytes + 3])
    reasons = [name for name in shown["decision"].unique(maintain_order=True) if name != "kept"]
    state = {"kept": 0} | {name: i for i, name in enumerate(reasons, 1)}
    return {
        "doc_id": document["doc_id"],
        "split": shown["split"][0],
        **{name: document[name] for name in ("source_file", "source_row")},
        "total": positions.height,
        "tokens": tokens,
        "raw": {i: p.hex() for i, (p, t) in enumerate(zip(pieces, tokens, strict=True)) if t.encode() != p},
        **{n: [_short(v) for v in shown[n]] for n in ("entropy", "nll", "rank", "entropy_partial")},
        **{name: _dictionary_encode(shown[name]) for name in ("field", "token_class")},
        "state": [state[name] for name in shown["decision"]],
        "reasons": reasons,
        "parts": [
            *part_columns(where, rule_columns(rule.metadata), shown),
            *later_columns(lineage.select, positions, slice(TOKENS_SHOWN)),
        ],
        "top": tops.of(document["doc_id"], shown) if tops else None,
        "map": minimap(positions, positions["kept"].to_numpy()),
        "hardest": hardest(shown),
    }


@dataclass(frozen=True)
class TopTokens:
    """The proxy's most likely tokens in some documents. Shape: T positions, K tokens per position."""

    tokenizer: CorpusTokenizer
    ids: dict[str, list[int | None]]
    logprobs: dict[str, list[float | None]]
    """Log-probabilities by document, flattened to T·K."""

    def of(self, doc_id: str, shown: pl.DataFrame) -> list[list[list[Any]] | None]:
        """Return (text, log-probability) pairs of the kept positions; those of all would not fit into one page."""
        ids, logprobs = self.ids[doc_id], self.logprobs[doc_id]
        K = len(ids) // shown["tokens"][0]
        return [
            [[self._text(ids[t * K + k]), _short(logprobs[t * K + k])] for k in range(K)] if kept else None
            for t, kept in enumerate(shown["kept"])
        ]

    def _text(self, token: int | None) -> str:
        return self.tokenizer.token_bytes[token or 0].decode("utf-8", errors="backslashreplace")


def _short(value: float | int | None) -> float | int | None:
    """Return a number rounded to the three decimals that a page shows."""
    return round(value, 3) if isinstance(value, float) else value


def _dictionary_encode(column: pl.Series) -> dict[str, list[Any]]:
    """Return the distinct names, and the index of each token's name."""
    names = column.unique(maintain_order=True)
    return {"names": names.to_list(), "of": column.replace_strict(names, range(len(names))).to_list()}
