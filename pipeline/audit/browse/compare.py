"""What one rule keeps and another does not: counted over the whole corpus, by cell, band and document.

Shape names: R rows of the index (`Store`), C cells, G segments of entropy (`rules.segments`), D documents.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.audit.browse.rules import ASK, NO, YES, Rule, segments
from pipeline.audit.browse.store import Slices, Store
from pipeline.core.config import BandsConfig
from pipeline.selection.sites import BANDS

AT_ONCE = 1_000_000
"""Positions read at once by a thread (memory, not results)."""

BOTH, GAINED, LOST = 0, 1, 2
OUTCOMES = ("both", "gained", "lost")
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
        sums = self.counts.group_by(column).agg(pl.col(OUTCOMES).sum())
        if column == "difficulty":
            return sums.sort(pl.col(column).cast(pl.Enum(DIFFICULTIES)))
        return sums.sort(pl.sum_horizontal(OUTCOMES), column, descending=[True, False])


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
    count = np.zeros((store.cells.height, len(DIFFICULTIES), len(OUTCOMES)), dtype=np.int64)
    by_document = np.zeros((len(OUTCOMES), store.documents.height), dtype=np.int64)

    changed: dict[int, list[Slices]] = {GAINED: [], LOST: []}
    asked: list[_Question] = []
    for cell, states_G in zip(cells.iter_rows(named=True), np.stack([first_CG, second_CG], axis=-1), strict=True):
        rows = np.flatnonzero(store.cell_R == cell["cell"])
        for g, (a, b) in enumerate(states_G.tolist()):
            runs = store.runs(rows, edge_RG[rows, g], edge_RG[rows, g + 1])
            if not runs.rows or a == b == NO:
                continue
            if ASK in (a, b):
                asked += [_Question(cell, int(difficulty_G[g]), a, b, part) for part in _parts(runs)]
                continue
            outcome = BOTH if a == b else GAINED if b == YES else LOST
            count[cell["cell"], difficulty_G[g], outcome] += runs.rows
            if outcome != BOTH:
                changed[outcome].append(runs)

    looked_at = [(outcome, part) for outcome, runs in changed.items() for part in _parts(Slices.join(runs))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for question, outcome_N, document_N in pool.map(lambda q: _answer(store, first, second, q), asked):
            kept = np.bincount(outcome_N, minlength=len(OUTCOMES) + 1)[: len(OUTCOMES)]
            count[question.cell["cell"], question.difficulty] += kept
            for outcome in (GAINED, LOST):
                _count_documents(by_document[outcome], document_N[outcome_N == outcome])
        for (outcome, _), document_N in zip(
            looked_at, pool.map(lambda item: store.read("document", item[1]), looked_at), strict=True
        ):
            _count_documents(by_document[outcome], document_N)
    read = sum(question.runs.rows for question in asked) + sum(part.rows for _, part in looked_at)
    return Comparison(_table(store, count), by_document[GAINED], by_document[LOST], read)


@dataclass(frozen=True)
class _Question:
    """Positions of one cell and difficulty that at least one rule has to read."""

    cell: Mapping[str, Any]
    difficulty: int
    first: int
    second: int
    runs: Slices


NEITHER = len(OUTCOMES)


def _answer(
    store: Store, first: Rule, second: Rule, question: _Question
) -> tuple[_Question, NDArray[np.int8], NDArray[np.uint32]]:
    """The outcome and the document of every position of a question."""
    in_first, in_second = (
        rule.ask(store, question.runs, question.cell) if state == ASK else np.full(question.runs.rows, state == YES)
        for rule, state in ((first, question.first), (second, question.second))
    )
    outcome_N = np.full(question.runs.rows, NEITHER, dtype=np.int8)
    outcome_N[in_first & in_second] = BOTH
    outcome_N[~in_first & in_second] = GAINED
    outcome_N[in_first & ~in_second] = LOST
    return question, outcome_N, store.read("document", question.runs)


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
    cell, difficulty = np.nonzero(count.sum(axis=2))
    names = store.cells[cell].select("field", "token_class")
    counts = {name: count[cell, difficulty, outcome] for outcome, name in enumerate(OUTCOMES)}
    difficulties = pl.Series("difficulty", [DIFFICULTIES[d] for d in difficulty], dtype=pl.String)
    return names.with_columns(difficulties, **{name: pl.Series(values) for name, values in counts.items()})
