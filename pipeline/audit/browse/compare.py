"""What one rule keeps and another does not: counted over the whole corpus, by cell, band and document.

Shape names: R rows of the index (`Store`), C cells, G segments of entropy (`rules.segments`), D documents.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.audit.browse.rules import ASK, NO, YES, Rule, segments
from pipeline.audit.browse.store import Slices, Store
from pipeline.core.config import BandsConfig
from pipeline.selection.sites import BANDS

AT_ONCE = 1 << 18
"""Positions read at once by a thread (memory, not results)."""

LOST, GAINED, BOTH = 1, 2, 3
OUTCOMES = {"both": BOTH, "gained": GAINED, "lost": LOST}
"""What becomes of a position: a bit for the first rule, a bit for the second; 0 if neither keeps it."""

DIFFICULTIES = ("none", *BANDS)


@dataclass(frozen=True)
class Comparison:
    """Positions of one split that both rules keep, that only the second keeps (gained), only the first (lost)."""

    counts: pl.DataFrame
    """A row a (field, token_class, difficulty) that any rule keeps positions of: `both`, `gained`, `lost`."""
    gained_D: NDArray[np.int64]
    lost_D: NDArray[np.int64]
    """By document."""
    read: int
    """Positions that had to be read; the others were looked up."""

    def total(self, outcome: str) -> int:
        return int(self.counts[outcome].sum())

    @property
    def before(self) -> int:
        """Positions that the first rule keeps."""
        return self.total("both") + self.total("lost")

    @property
    def after(self) -> int:
        """Positions that the second rule keeps."""
        return self.total("both") + self.total("gained")

    @property
    def documents_changed(self) -> int:
        """Documents with a position gained or lost."""
        return int(((self.gained_D > 0) | (self.lost_D > 0)).sum())

    def by(self, column: str) -> pl.DataFrame:
        """`both`, `gained`, `lost` by one column, most kept first; difficulties by difficulty."""
        sums = self.counts.group_by(column).agg(pl.col(list(OUTCOMES)).sum())
        if column == "difficulty":
            return sums.sort(pl.col(column).cast(pl.Enum(DIFFICULTIES)))
        return sums.sort(pl.sum_horizontal(list(OUTCOMES)), column, descending=[True, False])


def compare(store: Store, first: Rule, second: Rule, split: str, bands: BandsConfig) -> Comparison:
    """Compare two rules on one split. Exact: what cell and entropy do not decide is read, and nothing else is.

    Raises:
        UserError: a rule cannot be computed on this corpus.
    """
    limits = [getattr(bands, band) for band in BANDS]
    cut_B, entropy_G = segments([*first.cuts, *second.cuts, *limits])
    edge_RG = _edges(store, cut_B)
    difficulty_G = np.sum([entropy_G > np.float32(limit) for limit in limits], axis=0)
    cells = store.cells.filter(pl.col("split") == split)
    first_CG, second_CG = first.decide(cells, entropy_G), second.decide(cells, entropy_G)
    count = np.zeros((store.cells.height, len(DIFFICULTIES), 4), dtype=np.int64)
    by_document = np.zeros((4, store.documents.height), dtype=np.int64)

    changed: dict[int, list[Slices]] = {GAINED: [], LOST: []}
    asked: dict[tuple[int, int, int], list[tuple[Slices, int]]] = {}
    mixed = -1 if not (first.asks_cell or second.asks_cell) else None
    for cell, states_G in zip(cells["cell"], np.stack([first_CG, second_CG], axis=-1), strict=True):
        rows = np.flatnonzero(store.cell_R == cell)
        for g, (a, b) in enumerate(states_G.tolist()):
            runs = store.runs(rows, edge_RG[rows, g], edge_RG[rows, g + 1])
            if not runs.rows or a == b == NO:
                continue
            if ASK in (a, b):
                kind = (cell if mixed is None else mixed, a, b)
                asked.setdefault(kind, []).append((runs, cell * len(DIFFICULTIES) + int(difficulty_G[g])))
                continue
            outcome = (LOST if a == YES else 0) | (GAINED if b == YES else 0)
            count[cell, difficulty_G[g], outcome] += runs.rows
            if outcome != BOTH:
                changed[outcome].append(runs)

    questions = [
        _Question(store.cells.row(max(cell, 0), named=True), a, b, part, group)
        for (cell, a, b), pieces in asked.items()
        for part, group in _pieces(pieces)
    ]
    looked_at = [(outcome, part) for outcome, runs in changed.items() for part in _parts(Slices.join(runs))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for question, answer in zip(
            questions, pool.map(lambda q: _answer(store, first, second, q), questions), strict=True
        ):
            for outcome, (count_P, document_N) in answer.items():
                np.add.at(count[:, :, outcome], np.divmod(question.group_P, len(DIFFICULTIES)), count_P)
                _count_documents(by_document[outcome], document_N)
        for (outcome, _), document_N in zip(
            looked_at, pool.map(lambda item: store.read("document", item[1]), looked_at), strict=True
        ):
            _count_documents(by_document[outcome], document_N)
    read = sum(question.runs.rows for question in questions) + sum(part.rows for _, part in looked_at)
    return Comparison(_table(store, count), by_document[GAINED], by_document[LOST], read)


@dataclass(frozen=True)
class _Question:
    """Positions on which each rule has one answer, and at least one has to read. Shape: P pieces, N positions."""

    cell: Mapping[str, Any]
    """Theirs, if a rule asks for it; else any."""
    first: int
    second: int
    pieces: Slices
    """In the order of the index; neighbours may be of different groups."""
    group_P: NDArray[np.int64]
    """Of every piece: cell · difficulties + difficulty."""

    @cached_property
    def runs(self) -> Slices:
        """The pieces, neighbours made one."""
        return Slices.join([self.pieces])


def _pieces(pieces: list[tuple[Slices, int]]) -> Iterator[tuple[Slices, NDArray[np.int64]]]:
    """Pieces of all groups in the order of the index, in parts of about `AT_ONCE` rows."""
    shard, begin, end = (
        np.concatenate([getattr(runs, name) for runs, _ in pieces]) for name in ("shard_N", "begin_N", "end_N")
    )
    group = np.concatenate([np.full(len(runs.begin_N), group) for runs, group in pieces])
    order = np.lexsort((begin, shard))
    together = Slices(shard[order], begin[order], end[order])
    part_P = (np.cumsum(together.end_N - together.begin_N) - 1) // AT_ONCE
    for part in np.unique(part_P):
        yield together.take(part_P == part), group[order][part_P == part]


def _answer(
    store: Store, first: Rule, second: Rule, question: _Question
) -> dict[int, tuple[NDArray[np.int64], NDArray[np.uint32]]]:
    """By outcome: positions of every piece [P] that have it, and (for changes) the documents they are of."""
    runs = question.runs
    in_first, in_second = (
        rule.ask(store, runs, question.cell) if state == ASK else np.full(runs.rows, state == YES)
        for rule, state in ((first, question.first), (second, question.second))
    )
    end_P = np.cumsum(question.pieces.end_N - question.pieces.begin_N).tolist()
    pieces = list(zip([0, *end_P], end_P, strict=False))
    document_N = None
    answer = {}
    for outcome, has_N in (
        (BOTH, in_first & in_second),
        (GAINED, in_second & ~in_first),
        (LOST, in_first & ~in_second),
    ):
        count_P = np.array([np.count_nonzero(has_N[begin:end]) for begin, end in pieces])
        of = np.zeros(0, dtype=np.uint32)
        if outcome != BOTH and count_P.any():
            document_N = store.read("document", runs) if document_N is None else document_N
            of = document_N[has_N]
        answer[outcome] = count_P, of
    return answer


def _count_documents(count_D: NDArray[np.int64], document_N: NDArray[np.uint32]) -> None:
    if len(document_N):
        counted = np.bincount(document_N)
        count_D[: len(counted)] += counted


def _edges(store: Store, cut_B: NDArray[np.float32]) -> NDArray[np.int64]:
    """[R, G + 1]: segment g of an index row is its rows edge[g]:edge[g + 1]."""
    cuts = [edge for cut in cut_B for edge in (store.cut(cut, "left"), store.cut(cut, "right"))]
    return np.stack([np.zeros_like(store.begin_R), *cuts, store.end_R - store.begin_R], axis=1)


def _parts(runs: Slices) -> Iterator[Slices]:
    """Runs in parts of about `AT_ONCE` rows; a longer run is a part of its own."""
    if not len(runs.begin_N):
        return
    part_N = (np.cumsum(runs.end_N - runs.begin_N) - 1) // AT_ONCE
    for part in np.unique(part_N):
        yield runs.take(part_N == part)


def _table(store: Store, count: NDArray[np.int64]) -> pl.DataFrame:
    """`Comparison.counts` of counts by (cell, difficulty, outcome)."""
    cell, difficulty = np.nonzero(count[:, :, 1:].sum(axis=2))
    names = store.cells[cell].select("field", "token_class")
    counts = {name: count[cell, difficulty, outcome] for name, outcome in OUTCOMES.items()}
    difficulties = pl.Series("difficulty", [DIFFICULTIES[d] for d in difficulty], dtype=pl.String)
    return names.with_columns(difficulties, **{name: pl.Series(values) for name, values in counts.items()})
