"""Positions that a rule keeps, or that change between two rules, narrowed by what they are: rows of the index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.audit.browse.column_index import ColumnIndex, Slices
from pipeline.audit.browse.rules import ASK, NO, YES, Rule, segments, stretches
from pipeline.config.selection import BandsConfig
from pipeline.core.random_keys import random_keys
from pipeline.selection.sites import BANDS

KEPT, GAINED, LOST = "kept", "gained", "lost"
OUTCOMES = (KEPT, GAINED, LOST)
"""Positions that the second of two rules keeps, that only the second keeps, that only the first keeps."""

TEMPLATE = "(template)"
"""Name in URLs and tables of the field of a template's own text, whose name is empty."""

_COLUMNS = ("position", "byte_offset", "byte_end", "entropy", "nll")


@dataclass(frozen=True)
class Narrowed:
    """Which positions of a split are listed; empty strings match everything."""

    split: str
    outcome: str = KEPT
    field: str = ""
    token_class: str = ""
    band: str = ""
    low: float | None = None
    """Entropies (nats) above this, likewise at most `high`."""
    high: float | None = None
    token: str = ""
    """Text of the token, up to the end of its last character."""
    text: str = ""
    """Text of any length, ignoring case; positions whose token has the beginning of an occurrence are listed."""
    doc_id: str = ""

    def parameters(self, **changed: Any) -> dict[str, Any]:
        """Return the query parameters of this list; empty ones are left out of a URL."""
        return vars(replace(self, **changed))

    @property
    def given(self) -> dict[str, str]:
        """Return what narrows the list, in words, by the names of the fields to reset."""
        words = {name: str(getattr(self, name)) for name in ("field", "token_class", "band", "doc_id")}
        words = {name: f"{name.replace('_', ' ')} {word.replace('_', ' ')}" for name, word in words.items() if word}
        if self.text:
            words["text"] = f"text “{self.text}”"
        if self.low is not None:
            words["low"] = f"entropy > {self.low:g}"
        if self.high is not None:
            words["high"] = f"entropy ≤ {self.high:g}"
        return words

    def limits(self, bands: BandsConfig) -> tuple[float, float]:
        """Return (low, high) such that positions with low < entropy ≤ high are listed.

        Example:
            >>> Narrowed("train", band="easy").limits(BandsConfig()), Narrowed("train", low=2.0).limits(BandsConfig())
            ((0.5, 1.0), (2.0, inf))
        """
        edges = [-np.inf, *(getattr(bands, band) for band in BANDS), np.inf]
        levels = ("none", *BANDS)
        n = levels.index(self.band) if self.band in levels else None
        low, high = (edges[n], edges[n + 1]) if n is not None else (-np.inf, np.inf)
        return (
            low if self.low is None else max(low, self.low),
            high if self.high is None else min(high, self.high),
        )


@dataclass(frozen=True)
class Found:
    """Positions of whole shards, which are all shards unless there are too many positions."""

    frame: pl.DataFrame
    """Columns `document`, `position`, `byte_offset`, `byte_end`, `entropy`, `nll`, `token`, `field`, `token_class`."""
    shards_read: int
    shards: int

    @property
    def complete(self) -> bool:
        """Return True if no shard was left out."""
        return self.shards_read == self.shards

    def by_token(self) -> pl.DataFrame:
        """Return one row per token: `token`, number of `positions`, mean `entropy` and `nll`; most frequent first."""
        grouped = self.frame.group_by("token").agg(
            pl.len().alias("positions"), pl.col("entropy").mean(), pl.col("nll").mean()
        )
        return grouped.sort("positions", "token", descending=[True, False])


def find(store: ColumnIndex, rules: tuple[Rule, Rule], narrowed: Narrowed, bands: BandsConfig, most: int) -> Found:
    """Return the positions that `narrowed` describes.

    Args:
        store: The index.
        rules: Two rules: the first keeps `lost` positions, the second `gained` and `kept` ones.
        narrowed: Which positions are wanted.
        bands: Thresholds of the bands.
        most: Number of positions after which no further shard is read; shards are read in random order.

    Raises:
        UserError: A rule cannot be computed on this corpus.
    """
    low, high = narrowed.limits(bands)
    cuts = [*rules[0].cuts, *rules[1].cuts, *(limit for limit in (low, high) if np.isfinite(limit))]
    cut_B, entropy_G = segments(cuts)
    inside_G = (entropy_G > np.float32(low)) & (entropy_G <= np.float32(high))
    pieces: dict[tuple[int, int, int], list[Slices]] = {}
    cells = _cells(store, narrowed)
    for cell, g, (a, b), runs in stretches(store, rules, cells, cut_B, entropy_G):
        if inside_G[g] and _possible(narrowed.outcome, a, b):
            pieces.setdefault((cell, a, b), []).append(runs)
    joined = {kind: Slices.join(runs) for kind, runs in pieces.items()}
    shards = np.unique(np.concatenate([np.zeros(0, np.int64), *(runs.shard_N for runs in joined.values())]))
    frames, read, count = [_empty()], 0, 0
    for _, shard in sorted(zip(random_keys(0, shards).tolist(), shards.tolist(), strict=True)):
        begins_N = _begins(store, shard, narrowed.text)
        wanted = joined if begins_N is None or len(begins_N) else {}
        for (cell, a, b), runs in wanted.items():
            here = runs.take(runs.shard_N == shard)
            if here.rows:
                of_cell = store.cells.row(cell, named=True)
                frames.append(_read(store, rules, (a, b), of_cell, here, narrowed, begins_N))
                count += frames[-1].height
        read += 1
        if count >= most:
            break
    return Found(pl.concat(frames), read, len(shards))


def _cells(store: ColumnIndex, narrowed: Narrowed) -> pl.DataFrame:
    """Return the cells of `narrowed`."""
    field = "" if narrowed.field == TEMPLATE else narrowed.field
    cells = store.cells.filter(pl.col("split") == narrowed.split)
    cells = cells.filter(pl.col("field") == field) if narrowed.field else cells
    return cells.filter(pl.col("token_class") == narrowed.token_class) if narrowed.token_class else cells


def _possible(outcome: str, a: int, b: int) -> bool:
    """Return True if positions with these states may have an outcome."""
    if outcome == KEPT:
        return b != NO
    keeps, keeps_not = (b, a) if outcome == GAINED else (a, b)
    return keeps != NO and keeps_not != YES


def _read(
    store: ColumnIndex, rules: tuple[Rule, Rule], states: tuple[int, int], cell: Mapping[str, Any], runs: Slices,
    narrowed: Narrowed, begins_N: NDArray[np.int64] | None,
) -> pl.DataFrame:  # fmt: skip
    """Return the rows of `Found.frame` in runs of one shard and cell.

    Args:
        store: The index.
        rules: The two rules.
        states: Their states on the runs.
        cell: The cell of the runs.
        runs: Runs of one shard.
        narrowed: Which positions are wanted.
        begins_N: The result of `_begins`.
    """

    def kept(which: int) -> NDArray[np.bool_]:
        known = np.full(runs.rows, states[which] == YES)
        return rules[which].ask(store, runs, cell) if states[which] == ASK else known

    if narrowed.outcome == KEPT:
        has_N = kept(1)
    else:
        has_N = kept(1) & ~kept(0) if narrowed.outcome == GAINED else kept(0) & ~kept(1)
    document_N = store.read("document", runs).astype(np.int64)
    if narrowed.doc_id:
        has_N = has_N & (document_N == store.document_of.get(narrowed.doc_id, -1))
    if begins_N is not None:
        has_N = has_N & _covers(begins_N, document_N, store.read("byte_offset", runs), store.read("byte_end", runs))
    values: dict[str, NDArray[Any]] = {name: store.read(name, runs)[has_N] for name in _COLUMNS}
    document_N = document_N[has_N]
    token = store.tokens(int(runs.shard_N[0]), document_N, values["byte_offset"], values["byte_end"])
    frame = pl.DataFrame({"document": document_N, **values}).with_columns(
        token, field=pl.lit(cell["field"]), token_class=pl.lit(cell["token_class"])
    )
    return frame.filter(pl.col("token") == narrowed.token) if narrowed.token else frame


_BYTES = 1 << 32
"""More than the bytes of any document."""


def _begins(store: ColumnIndex, shard: int, text: str) -> NDArray[np.int64] | None:
    """Return document · 2³² + byte of every occurrence of a text, in ascending order; None if no text is wanted."""
    if not text:
        return None
    document_N, byte_N = store.occurrences(shard, text)
    return document_N * _BYTES + byte_N


def _covers(
    begins_N: NDArray[np.int64], document_P: NDArray[np.int64], begin_P: NDArray[Any], end_P: NDArray[Any]
) -> NDArray[np.bool_]:
    """Return whether an occurrence begins in the bytes begin:end of each position [P]."""
    first_P = np.searchsorted(begins_N, document_P * _BYTES + begin_P)
    return first_P < np.searchsorted(begins_N, document_P * _BYTES + end_P)


def _empty() -> pl.DataFrame:
    """Return `Found.frame` without rows."""
    numbers = dict.fromkeys(("position", "byte_offset", "byte_end"), pl.Int32)
    scores = dict.fromkeys(("entropy", "nll"), pl.Float32)
    texts = dict.fromkeys(("token", "field", "token_class"), pl.String)
    return pl.DataFrame(schema={"document": pl.Int64, **numbers, **scores, **texts})
