"""What one rule keeps and another does not: counted over the whole corpus, by cell, band and document.

What cell and entropy decide is looked up at once. What must be read is read shard by shard, in an order drawn at
random: until the last one is done, what was read stands for the rest, with an interval (`Count`).
Shape names: R rows of the index (`Store`), C cells, G segments of entropy (`rules.segments`), D documents, S shards.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.audit.browse.column_index import ColumnIndex, Slices
from pipeline.audit.browse.rules import ASK, NO, YES, Rule, segments
from pipeline.config.errors import UserError
from pipeline.config.selection import BandsConfig
from pipeline.core.random_keys import random_keys
from pipeline.selection.sites import BANDS

AT_ONCE = 1 << 18
"""Positions read at once by a thread (memory, not results)."""

FEWEST = 8
"""Shards that an estimate stands on at least: an interval from fewer would say little."""

Z95 = 1.96

TIME_LIMIT = 120.0
"""Seconds after which a count is ended."""

FIRST_ANSWER = 1.0
"""Seconds that are waited for `FEWEST` shards; after that even less makes an answer, with intervals as wide as it is
little."""

LOST, GAINED, BOTH = 1, 2, 3
OUTCOMES = {"both": BOTH, "gained": GAINED, "lost": LOST}
"""What becomes of a position: a bit for the first rule, a bit for the second; 0 if neither keeps it."""

LEVELS = ("none", *BANDS)


@dataclass(frozen=True)
class Comparison:
    """Positions of one split that both rules keep, that only the second keeps (gained), only the first (lost)."""

    counts: pl.DataFrame
    """A row a (field, token_class, band) that any rule keeps positions of: `both`, `gained`, `lost`."""
    gained_D: NDArray[np.int64]
    lost_D: NDArray[np.int64]
    """By document, of the shards that were read."""
    documents_changed: int
    """Documents with a position gained or lost."""
    read: int
    """Positions that were read; the others were looked up."""
    shards_read: int
    shards: int
    """All that must be read."""
    margins: Mapping[str, int]
    """While these are estimates, half widths of 95 % intervals of `before`, `after`, `gained`, `lost`, `documents`."""

    @property
    def exact(self) -> bool:
        return self.shards_read == self.shards

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

    def by(self, column: str) -> pl.DataFrame:
        """`both`, `gained`, `lost` by one column, most kept first; bands by their thresholds."""
        sums = self.counts.group_by(column).agg(pl.col(list(OUTCOMES)).sum())
        if column == "band":
            return sums.sort(pl.col(column).cast(pl.Enum(LEVELS)))
        return sums.sort(pl.sum_horizontal(list(OUTCOMES)), column, descending=[True, False])


def compare(store: ColumnIndex, first: Rule, second: Rule, split: str, bands: BandsConfig) -> Comparison:
    """Compare two rules on one split, exactly.

    Raises:
        UserError: a rule cannot be computed on this corpus.
    """
    count = Count(store, first, second, split, bands)
    count.run()
    return count.result()


class Count:
    """A comparison under way: `run` it, in a thread if you like, and ask for its `result` whenever you like."""

    def __init__(self, store: ColumnIndex, first: Rule, second: Rule, split: str, bands: BandsConfig) -> None:
        """Look up what cell and entropy decide, and find out what must be read."""
        self._store, self._first, self._second = store, first, second
        self._lock = threading.Lock()
        self._enough, self._finished, self._stopped = threading.Event(), threading.Event(), threading.Event()
        self._error: BaseException | None = None
        limits = [getattr(bands, band) for band in BANDS]
        cut_B, entropy_G = segments([*first.cuts, *second.cuts, *limits])
        edge_RG = _edges(store, cut_B)
        band_G = np.sum([entropy_G > np.float32(limit) for limit in limits], axis=0)
        cells = store.cells.filter(pl.col("split") == split)
        states_CG = np.stack([rule.decide(cells, entropy_G) for rule in (first, second)], axis=-1)
        self._decided = np.zeros((store.cells.height, len(LEVELS), 4), dtype=np.int64)
        changed: dict[int, list[Slices]] = {GAINED: [], LOST: []}
        asked: dict[tuple[int, int, int], list[tuple[Slices, int]]] = {}
        mixed = -1 if not (first.asks_cell or second.asks_cell) else None
        for cell, states_G in zip(cells["cell"], states_CG, strict=True):
            rows = np.flatnonzero(store.cell_R == cell)
            for g, (a, b) in enumerate(states_G.tolist()):
                runs = store.runs(rows, edge_RG[rows, g], edge_RG[rows, g + 1])
                if not runs.rows or a == b == NO:
                    continue
                if ASK in (a, b):
                    kind = (cell if mixed is None else mixed, a, b)
                    asked.setdefault(kind, []).append((runs, cell * len(LEVELS) + int(band_G[g])))
                    continue
                outcome = (LOST if a == YES else 0) | (GAINED if b == YES else 0)
                self._decided[cell, band_G[g], outcome] += runs.rows
                if outcome != BOTH:
                    changed[outcome].append(runs)
        parts: dict[int, _Part] = {}
        for (cell, a, b), pieces in asked.items():
            together, group_P = _together(pieces)
            for shard, which in _split(together):
                question = _Question(
                    store.cells.row(max(cell, 0), named=True), a, b, together.take(which), group_P[which]
                )
                parts.setdefault(shard, _Part(shard)).questions.append(question)
        for outcome, found in changed.items():
            runs = Slices.join(found)
            for shard, which in _split(runs):
                parts.setdefault(shard, _Part(shard)).changed.append((outcome, runs.take(which)))
        key_S = random_keys(0, np.array(list(parts), dtype=np.int64))
        self._parts = [parts[shard] for _, shard in sorted(zip(key_S.tolist(), parts, strict=True))]
        self._asked = np.zeros_like(self._decided)
        self._by_document = np.zeros((4, store.documents.height), dtype=np.int64)
        self._done: list[_Done] = []

    def run(self) -> None:
        """Read all that must be read, or until `stop`. What goes wrong is `result`'s to raise."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            answers = [pool.submit(self._read, part) for part in self._parts]
            try:
                for answer in as_completed(answers, timeout=TIME_LIMIT):
                    if error := answer.exception():
                        self._error = error
                        self.stop()
            except TimeoutError:
                what = f"counting was ended after {TIME_LIMIT:.0f} s"
                self._error = UserError(what, hint="ask for less: fewer functions of text, a narrower entropy")
                self.stop()
        self._enough.set()
        self._finished.set()

    def stop(self) -> None:
        """Read no further shard."""
        self._stopped.set()

    def wait(self, seconds: float) -> bool:
        """Until all is read, or so long; a little longer while too little is read for an estimate. Whether all is."""
        self._finished.wait(seconds)
        self._enough.wait(FIRST_ANSWER)
        return self._finished.is_set()

    def result(self) -> Comparison:
        """What is known by now: exact figures, or estimates with intervals.

        Raises:
            UserError: a rule cannot be computed on this corpus.
        """
        if self._error is not None:
            raise self._error
        with self._lock:
            done, asked, by_document = list(self._done), self._asked.copy(), self._by_document.copy()
        seen, everything = sum(of.asked for of in done), sum(part.asked for part in self._parts)
        count = self._decided + np.rint(asked * (everything / seen if seen else 1)).astype(np.int64)
        read, rows = sum(of.rows for of in done), sum(part.rows for part in self._parts)
        documents = round(sum(of.documents for of in done) * (rows / read if read else 1))
        return Comparison(
            counts=_table(self._store, count),
            gained_D=by_document[GAINED],
            lost_D=by_document[LOST],
            documents_changed=documents,
            read=read,
            shards_read=len(done),
            shards=len(self._parts),
            margins=self._margins(done) if len(done) < len(self._parts) else {},
        )

    def _margins(self, done: list[_Done]) -> dict[str, int]:
        """Of ratio estimates from `done` shards drawn at random (Cochran, Sampling Techniques, 3rd ed., eq. 6.13)."""
        if len(done) < 2:  # nothing to tell a spread by: it may be all of them
            positions = sum(part.asked for part in self._parts)
            return dict.fromkeys(("before", "after", "gained", "lost"), positions) | {
                "documents": self._store.documents.height
            }
        both, gained, lost = (np.array([of.outcomes[i] for of in done]) for i in OUTCOMES.values())
        asked_S, rows_S = np.array([of.asked for of in done]), np.array([of.rows for of in done])
        of_positions = {"before": both + lost, "after": both + gained, "gained": gained, "lost": lost}
        margins = {name: _margin(y_S, asked_S, len(self._parts)) for name, y_S in of_positions.items()}
        return margins | {"documents": _margin(np.array([of.documents for of in done]), rows_S, len(self._parts))}

    def _read(self, part: _Part) -> None:
        """One shard: what is asked there is answered, and the documents of what changes are counted."""
        if self._stopped.is_set():
            return
        store = self._store
        first, past = store.first_document_S[part.shard : part.shard + 2].tolist()
        count = np.zeros((4, self._decided[:, :, 0].size), dtype=np.int64)
        count_D = np.zeros((4, past - first), dtype=np.int64)
        for question in part.questions:
            for outcome, (count_P, document_N) in _answer(store, self._first, self._second, question).items():
                np.add.at(count[outcome], question.group_P, count_P)
                count_D[outcome] += np.bincount(document_N - np.uint32(first), minlength=past - first)
        for outcome, runs in part.changed:
            count_D[outcome] += np.bincount(store.read("document", runs) - np.uint32(first), minlength=past - first)
        changed = int(np.count_nonzero(count_D[GAINED] | count_D[LOST]))
        with self._lock:
            self._asked += count.T.reshape(self._asked.shape)
            self._by_document[:, first:past] += count_D
            self._done.append(_Done(part.asked, part.rows, count.sum(axis=1).tolist(), changed))
            if len(self._done) >= min(FEWEST, len(self._parts)):
                self._enough.set()


@dataclass
class _Part:
    """What must be read of one shard."""

    shard: int
    questions: list[_Question] = field(default_factory=list)
    changed: list[tuple[int, Slices]] = field(default_factory=list)
    """Positions of one outcome whose documents are not known."""

    @cached_property
    def asked(self) -> int:
        """Positions whose outcome is not known."""
        return sum(question.pieces.rows for question in self.questions)

    @cached_property
    def rows(self) -> int:
        """Positions that are read."""
        return self.asked + sum(runs.rows for _, runs in self.changed)


@dataclass(frozen=True)
class _Done:
    """What a shard has come to."""

    asked: int
    rows: int
    outcomes: list[int]
    """[4]: by outcome, of the positions that were asked about."""
    documents: int
    """That change."""


def _margin(y_S: NDArray[np.int64], x_S: NDArray[np.int64], shards: int) -> int:
    """Half width of the 95 % interval of the total of y over all shards, estimated from some by its ratio to x.

    Example:
        >>> _margin(np.array([5, 10]), np.array([50, 100]), 4), _margin(np.array([4, 6]), np.array([10, 10]), 4)
        (0, 6)
    """
    n = len(y_S)
    residual_S = y_S - x_S * (y_S.sum() / max(x_S.sum(), 1))
    variance = shards**2 * (1 - n / shards) / n * (residual_S**2).sum() / (n - 1)
    return round(Z95 * float(np.sqrt(variance)))


@dataclass(frozen=True)
class _Question:
    """Positions of one shard on which each rule has one answer, and at least one has to read. Shape: P pieces, N
    positions."""

    cell: Mapping[str, Any]
    """Theirs, if a rule asks for it; else any."""
    first: int
    second: int
    pieces: Slices
    """In the order of the index; neighbours may be of different groups."""
    group_P: NDArray[np.int64]
    """Of every piece: cell · levels + level."""

    @cached_property
    def runs(self) -> Slices:
        """The pieces, neighbours made one."""
        return Slices.join([self.pieces])


def _together(pieces: list[tuple[Slices, int]]) -> tuple[Slices, NDArray[np.int64]]:
    """Pieces of all groups in the order of the index, and the group of each."""
    shard, begin, end = (
        np.concatenate([getattr(runs, name) for runs, _ in pieces]) for name in ("shard_N", "begin_N", "end_N")
    )
    group = np.concatenate([np.full(len(runs.begin_N), group) for runs, group in pieces])
    order = np.lexsort((begin, shard))
    return Slices(shard[order], begin[order], end[order]), group[order]


def _split(runs: Slices) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Which of the runs (ordered by shard) are read at once: of one shard, about `AT_ONCE` rows; a longer run alone."""
    shards, first = np.unique(runs.shard_N, return_index=True)
    for shard, begin, end in zip(shards.tolist(), first, np.append(first, len(runs.shard_N))[1:], strict=True):
        part_N = (np.cumsum(runs.end_N[begin:end] - runs.begin_N[begin:end]) - 1) // AT_ONCE
        for part in np.unique(part_N):
            yield shard, begin + np.flatnonzero(part_N == part)


def _answer(
    store: ColumnIndex, first: Rule, second: Rule, question: _Question
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


def _edges(store: ColumnIndex, cut_B: NDArray[np.float32]) -> NDArray[np.int64]:
    """[R, G + 1]: segment g of an index row is its rows edge[g]:edge[g + 1]."""
    cuts = [edge for cut in cut_B for edge in (store.cut(cut, "left"), store.cut(cut, "right"))]
    return np.stack([np.zeros_like(store.begin_R), *cuts, store.end_R - store.begin_R], axis=1)


def _table(store: ColumnIndex, count: NDArray[np.int64]) -> pl.DataFrame:
    """`Comparison.counts` of counts by (cell, level, outcome)."""
    cell, level = np.nonzero(count[:, :, 1:].sum(axis=2))
    names = store.cells[cell].select("field", "token_class")
    counts = {name: count[cell, level, outcome] for name, outcome in OUTCOMES.items()}
    bands = pl.Series("band", [LEVELS[n] for n in level], dtype=pl.String)
    return names.with_columns(bands, **{name: pl.Series(values) for name, values in counts.items()})
