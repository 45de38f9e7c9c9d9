"""Comparison of two rules over the whole corpus, counted by cell, band and document.

Positions that cell and entropy decide are looked up immediately. The others are read shard by shard in random order;
until the last shard is read, those read so far give estimates with intervals (`Count`).

Shape names: R rows of the index (`ColumnIndex`), C cells, G segments of entropy (`rules.segments`), D documents, S
shards, P pieces, N positions.
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
from pipeline.audit.browse.index import GRID
from pipeline.audit.browse.rules import ASK, YES, Rule, segments, stretches
from pipeline.config.errors import UserError
from pipeline.config.selection import BandsConfig
from pipeline.core.random_keys import random_keys
from pipeline.selection.sites import BANDS

BATCH_ROWS = 1 << 18
"""Positions that a thread reads at once; it changes memory use, not results."""

MIN_SHARDS = 8
"""Minimum number of shards behind an estimate, because intervals from fewer are too wide."""

Z95 = 1.96

TIME_LIMIT = 120.0
"""Seconds after which a count is aborted."""

FIRST_ANSWER = 1.0
"""Seconds to wait for `MIN_SHARDS` shards; after that, fewer give an estimate with wider intervals."""

LOST, GAINED, BOTH = 1, 2, 3
OUTCOMES = {"both": BOTH, "gained": GAINED, "lost": LOST}
"""Outcome of a position: a bit for the first rule and a bit for the second; 0 if neither keeps it."""

LEVELS = ("none", *BANDS)

STEP = 5
"""Grid steps of the index per bar of the chart: 0.05 nats."""

BAR_EDGES: NDArray[np.float32] = GRID[::STEP]
"""Entropies (nats) between which positions are counted for the chart: bar b is above edge b and at most edge b + 1; the
first has everything at or below, the last everything above."""


@dataclass(frozen=True)
class Comparison:
    """Positions of one split kept by both rules, only by the second (gained), or only by the first (lost)."""

    counts: pl.DataFrame
    """One row per (field, token_class, band, bar) with kept positions; columns `both`, `gained`, `lost`."""
    gained_D: NDArray[np.int64]
    lost_D: NDArray[np.int64]
    """Number of positions lost by document, in the shards that were read; likewise `gained_D`."""
    documents_changed: int
    """Documents with a position gained or lost."""
    read: int
    """Number of positions that were read; the others were looked up."""
    shards_read: int
    shards: int
    """Number of shards that must be read."""
    margins: Mapping[str, int]
    """Half widths of the 95 % intervals of `before`, `after`, `gained`, `lost`, `documents`; empty if exact."""

    @property
    def exact(self) -> bool:
        """Return True if all shards were read."""
        return self.shards_read == self.shards

    def total(self, outcome: str) -> int:
        """Return the number of positions with an outcome."""
        return int(self.counts[outcome].sum())

    @property
    def before(self) -> int:
        """Return the number of positions that the first rule keeps."""
        return self.total("both") + self.total("lost")

    @property
    def after(self) -> int:
        """Return the number of positions that the second rule keeps."""
        return self.total("both") + self.total("gained")

    @property
    def kept_B(self) -> NDArray[np.int64]:
        """Return the number of positions that the second rule keeps in each bar (`BAR_EDGES`)."""
        kept_B = np.zeros(len(BAR_EDGES), dtype=np.int64)
        np.add.at(kept_B, self.counts["bar"].to_numpy(), (self.counts["both"] + self.counts["gained"]).to_numpy())
        return kept_B

    def by(self, column: str) -> pl.DataFrame:
        """Return `both`, `gained`, `lost` by one column, most kept first; bands in order of their thresholds."""
        sums = self.counts.group_by(column).agg(pl.col(list(OUTCOMES)).sum())
        if column == "band":
            return sums.sort(pl.col(column).cast(pl.Enum(LEVELS)))
        return sums.sort(pl.sum_horizontal(list(OUTCOMES)), column, descending=[True, False])


def compare(store: ColumnIndex, first: Rule, second: Rule, split: str, bands: BandsConfig) -> Comparison:
    """Compare two rules exactly on one split.

    Raises:
        UserError: A rule cannot be computed on this corpus.
    """
    count = Count(store, first, second, split, bands)
    count.run()
    return count.result()


class Count:
    """Comparison in progress: call `run`, possibly in a thread, and `result` at any time."""

    def __init__(self, store: ColumnIndex, first: Rule, second: Rule, split: str, bands: BandsConfig) -> None:
        """Look up what cell and entropy decide, and collect what must be read."""
        self._store, self._first, self._second = store, first, second
        self._lock = threading.Lock()
        self._enough, self._finished, self._stopped = threading.Event(), threading.Event(), threading.Event()
        self._error: BaseException | None = None
        limits = [getattr(bands, band) for band in BANDS]
        # Limits of bands and bars are cuts too, so each segment belongs to one band and one bar: its group.
        cut_B, entropy_G = segments([*first.cuts, *second.cuts, *limits, *BAR_EDGES.tolist()])
        band_G = np.sum([entropy_G > np.float32(limit) for limit in limits], axis=0)
        bar_G = np.maximum(np.searchsorted(BAR_EDGES, entropy_G, side="left") - 1, 0)
        self._groups, group_G = np.unique(np.stack([band_G, bar_G]), axis=1, return_inverse=True)
        groups = self._groups.shape[1]
        cells = store.cells.filter(pl.col("split") == split)
        self._decided = np.zeros((store.cells.height, groups, 4), dtype=np.int64)
        changed: dict[int, list[Slices]] = {GAINED: [], LOST: []}
        queried: dict[tuple[int, int, int], list[tuple[Slices, int]]] = {}
        # Unless a rule needs the cell, positions of all cells are read together, which makes fewer and longer reads.
        mixed = -1 if not (first.asks_cell or second.asks_cell) else None
        for cell, g, (a, b), runs in stretches(store, (first, second), cells, cut_B, entropy_G):
            if ASK in (a, b):
                kind = (cell if mixed is None else mixed, a, b)
                queried.setdefault(kind, []).append((runs, cell * groups + int(group_G[g])))
                continue
            outcome = (LOST if a == YES else 0) | (GAINED if b == YES else 0)
            self._decided[cell, group_G[g], outcome] += runs.rows
            if outcome != BOTH:
                changed[outcome].append(runs)
        parts: dict[int, _Part] = {}
        for (cell, a, b), pieces in queried.items():
            together, group_P = _sort_pieces(pieces)
            for shard, which in _split(together):
                question = _Question(
                    store.cells.row(max(cell, 0), named=True), a, b, together.take(which), group_P[which]
                )
                parts.setdefault(shard, _Part(shard)).questions.append(question)
        for outcome, found in changed.items():
            runs = Slices.join(found)
            for shard, which in _split(runs):
                parts.setdefault(shard, _Part(shard)).changed.append((outcome, runs.take(which)))
        # In random order, any prefix of the parts is a random sample of the shards. Those read so far are none: small
        # shards are read faster than large ones.
        key_S = random_keys(0, np.array(list(parts), dtype=np.int64))
        self._parts = [parts[shard] for _, shard in sorted(zip(key_S.tolist(), parts, strict=True))]
        self._queried = np.zeros_like(self._decided)
        self._by_document = np.zeros((4, store.documents.height), dtype=np.int64)
        self._done: list[_Done] = []
        """Results of the first parts, without a gap."""
        self._ahead: dict[int, tuple[_Done, NDArray[np.int64], slice, NDArray[np.int64]]] = {}
        """Results and counts of parts behind one that is still being read, by their place in `_parts`."""

    def run(self) -> None:
        """Read everything that must be read, or until `stop`; `result` raises any error."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            answers = [pool.submit(self._read, place) for place in range(len(self._parts))]
            try:
                for answer in as_completed(answers, timeout=TIME_LIMIT):
                    if error := answer.exception():
                        self._error = error
                        self.stop()
            except TimeoutError:
                what = f"counting was aborted after {TIME_LIMIT:.0f} s"
                self._error = UserError(what, hint="use fewer text functions or a narrower range of entropy")
                self.stop()
        self._enough.set()
        self._finished.set()

    def stop(self) -> None:
        """Stop before the next shard."""
        self._stopped.set()

    def wait(self, seconds: float) -> bool:
        """Wait until everything is read, at most `seconds` plus the time needed for an estimate.

        Returns:
            True if everything is read.
        """
        self._finished.wait(seconds)
        self._enough.wait(FIRST_ANSWER)
        return self._finished.is_set()

    def result(self) -> Comparison:
        """Return the comparison so far: exact figures, or estimates with intervals.

        Raises:
            UserError: A rule cannot be computed on this corpus.
        """
        if self._error is not None:
            raise self._error
        with self._lock:
            done, queried, by_document = list(self._done), self._queried.copy(), self._by_document.copy()
        # Totals of positions are scaled by positions queried, documents by positions read.
        seen, everything = sum(of.queried for of in done), sum(part.queried for part in self._parts)
        count = self._decided + np.rint(queried * (everything / seen if seen else 1)).astype(np.int64)
        read, rows = sum(of.rows for of in done), sum(part.rows for part in self._parts)
        documents = round(sum(of.documents for of in done) * (rows / read if read else 1))
        return Comparison(
            counts=_table(self._store, count, self._groups),
            gained_D=by_document[GAINED],
            lost_D=by_document[LOST],
            documents_changed=documents,
            read=read,
            shards_read=len(done),
            shards=len(self._parts),
            margins=self._margins(done) if len(done) < len(self._parts) else {},
        )

    def _margins(self, done: list[_Done]) -> dict[str, int]:
        """Return margins of ratio estimates from `done`, a random sample of shards.

        Source: Cochran, Sampling Techniques, 3rd ed., equation 6.13.
        """
        if len(done) < 2:  # the variance cannot be estimated, so the margin is everything
            positions = sum(part.queried for part in self._parts)
            return dict.fromkeys(("before", "after", "gained", "lost"), positions) | {
                "documents": self._store.documents.height
            }
        both, gained, lost = (np.array([of.outcomes[i] for of in done]) for i in OUTCOMES.values())
        queried_S, rows_S = np.array([of.queried for of in done]), np.array([of.rows for of in done])
        of_positions = {"before": both + lost, "after": both + gained, "gained": gained, "lost": lost}
        margins = {name: _margin(y_S, queried_S, len(self._parts)) for name, y_S in of_positions.items()}
        return margins | {"documents": _margin(np.array([of.documents for of in done]), rows_S, len(self._parts))}

    def _read(self, place: int) -> None:
        """Read the part at a place: decide its open positions, and count the changed positions of its documents."""
        if self._stopped.is_set():
            return
        store, part = self._store, self._parts[place]
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
            done = _Done(part.queried, part.rows, count.sum(axis=1).tolist(), changed)
            self._ahead[place] = done, count, slice(first, past), count_D
            while len(self._done) in self._ahead:
                done, count, documents, count_D = self._ahead.pop(len(self._done))
                self._queried += count.T.reshape(self._queried.shape)
                self._by_document[:, documents] += count_D
                self._done.append(done)
            if len(self._done) >= min(MIN_SHARDS, len(self._parts)):
                self._enough.set()


@dataclass
class _Part:
    """Everything that must be read from one shard."""

    shard: int
    questions: list[_Question] = field(default_factory=list)
    changed: list[tuple[int, Slices]] = field(default_factory=list)
    """Positions with a known outcome but unknown documents."""

    @cached_property
    def queried(self) -> int:
        """Return the number of positions with an unknown outcome."""
        return sum(question.pieces.rows for question in self.questions)

    @cached_property
    def rows(self) -> int:
        """Return the number of positions to read."""
        return self.queried + sum(runs.rows for _, runs in self.changed)


@dataclass(frozen=True)
class _Done:
    """Result of reading one shard."""

    queried: int
    rows: int
    outcomes: list[int]
    """Number of positions by outcome [4], of those queried."""
    documents: int
    """Number of documents with a position gained or lost."""


def _margin(y_S: NDArray[np.int64], x_S: NDArray[np.int64], shards: int) -> int:
    """Return the half width of the 95 % interval of a ratio estimate: the total of y over all shards, given x.

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
    """Positions of one shard for which each rule has the same state, and at least one rule must read."""

    cell: Mapping[str, Any]
    """Cell of the positions, if a rule needs it; otherwise arbitrary."""
    first: int
    second: int
    pieces: Slices
    """Runs of positions in the order of the index; adjacent ones may be of different groups."""
    group_P: NDArray[np.int64]
    """Group of every piece: cell · groups + group of its segment."""

    @cached_property
    def runs(self) -> Slices:
        """Return the pieces with adjacent ones merged."""
        return Slices.join([self.pieces])


def _sort_pieces(pieces: list[tuple[Slices, int]]) -> tuple[Slices, NDArray[np.int64]]:
    """Return the pieces of all groups in the order of the index, and the group of each."""
    shard, begin, end = (
        np.concatenate([getattr(runs, name) for runs, _ in pieces]) for name in ("shard_N", "begin_N", "end_N")
    )
    group = np.concatenate([np.full(len(runs.begin_N), group) for runs, group in pieces])
    order = np.lexsort((begin, shard))
    return Slices(shard[order], begin[order], end[order]), group[order]


def _split(runs: Slices) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield (shard, runs to read together): about `BATCH_ROWS` rows of one shard; a longer run stays whole."""
    shards, first = np.unique(runs.shard_N, return_index=True)
    for shard, begin, end in zip(shards.tolist(), first, np.append(first, len(runs.shard_N))[1:], strict=True):
        part_N = (np.cumsum(runs.end_N[begin:end] - runs.begin_N[begin:end]) - 1) // BATCH_ROWS
        for part in np.unique(part_N):
            yield shard, begin + np.flatnonzero(part_N == part)


def _answer(
    store: ColumnIndex, first: Rule, second: Rule, question: _Question
) -> dict[int, tuple[NDArray[np.int64], NDArray[np.uint32]]]:
    """Return, by outcome, the number of positions in each piece [P], and the documents of changed positions [N]."""
    runs = question.runs
    in_first, in_second = (
        rule.ask(store, runs, question.cell) if state == ASK else np.full(runs.rows, state == YES)
        for rule, state in ((first, question.first), (second, question.second))
    )
    end_P = np.cumsum(question.pieces.end_N - question.pieces.begin_N)
    document_N = None
    answer = {}
    for outcome, has_N in (
        (BOTH, in_first & in_second),
        (GAINED, in_second & ~in_first),
        (LOST, in_first & ~in_second),
    ):
        count_P = np.diff(np.concatenate([[0], np.cumsum(has_N)])[end_P], prepend=0)
        of = np.zeros(0, dtype=np.uint32)
        if outcome != BOTH and count_P.any():
            document_N = store.read("document", runs) if document_N is None else document_N
            of = document_N[has_N]
        answer[outcome] = count_P, of
    return answer


def _table(store: ColumnIndex, count: NDArray[np.int64], groups: NDArray[np.int64]) -> pl.DataFrame:
    """Return `Comparison.counts` from counts by (cell, group, outcome), and the (band, bar) of each group."""
    cell, group = np.nonzero(count[:, :, 1:].sum(axis=2))
    names = store.cells[cell].select("field", "token_class")
    counts = {name: count[cell, group, outcome] for name, outcome in OUTCOMES.items()}
    bands = pl.Series("band", [LEVELS[n] for n in groups[0, group]], dtype=pl.String)
    return names.with_columns(
        bands, pl.Series("bar", groups[1, group]), **{name: pl.Series(values) for name, values in counts.items()}
    )
