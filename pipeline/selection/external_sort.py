"""Sorts more rows than memory should hold: first in runs, which lie in files, then all runs together, part by part.

Shape names: N all rows, M rows of one part or run, R runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus.dedup.candidates import mapped, spans

AT_ONCE = 1 << 22
"""Rows that are in memory at once; it changes memory and speed, not the result."""


class Rows(NamedTuple):
    """Some rows: what they are sorted by, first `major`, then `minor`, then their own numbers."""

    major: NDArray[np.uint64]
    minor: NDArray[np.uint64]
    row: NDArray[np.int64]

    def at(self, which: slice | NDArray[np.int64]) -> Rows:
        """Return some of these rows."""
        return Rows(self.major[which], self.minor[which], self.row[which])


def in_order(rows: Iterable[Rows], count: int, scratch: Path, at_once: int = AT_ONCE) -> Iterator[Rows]:
    """Yield rows in the order of (major, minor, row), in consecutive parts of at most `at_once`.

    All of `rows` are read before the first part is yielded. A file holds 24 bytes a row meanwhile. Parts end at
    splitters, which are regular samples of the sorted runs, so no part can be larger, however the values are spread
    (Shi, Schaeffer: "Parallel sorting by regular sampling", 1992).

    Args:
        rows: the rows, in parts of any size, ordered by `row`.
        count: the number of all rows.
        scratch: a folder on a disk that has room for them.
        at_once: most rows of a run and of a part.
    """
    if count == 0:
        return
    with TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as folder:
        runs = _sorted_runs(rows, count, Path(folder), at_once)
        done_R = [0] * len(runs)
        for splitter in (*_splitters(runs, at_once), None):
            end_R = [_end(run, done, splitter) for run, done in zip(runs, done_R, strict=True)]
            part = _joined([run.at(slice(a, b)) for run, a, b in zip(runs, done_R, end_R, strict=True)])
            done_R = end_R
            if len(part.row):
                yield part.at(_order(part))


def _sorted_runs(rows: Iterable[Rows], count: int, folder: Path, at_once: int) -> list[Rows]:
    """Return the rows in runs of `at_once`, each sorted, in files."""
    kinds = {"major": np.uint64, "minor": np.uint64, "row": np.int64}
    whole = Rows(*(np.asarray(mapped(folder / name, kind, count)) for name, kind in kinds.items()))
    runs = [whole.at(span) for span in spans(count, at_once)]
    begin = 0
    for part in rows:
        for span in spans(len(part.row), at_once):
            piece = part.at(span)
            for column, values in zip(whole, piece, strict=True):
                column[begin : begin + len(values)] = values
            begin += len(piece.row)
    if begin != count:
        raise AssertionError(f"{begin} rows instead of {count}")
    for run in runs:
        order = _order(run)
        for column in run:
            column[:] = column[order]
    return runs


def _splitters(runs: list[Rows], at_once: int) -> list[tuple[np.uint64, np.uint64, np.int64]]:
    """Return rows, in order, that no more than `at_once` rows are between.

    Every `step`-th row of every run is a sample. Between two splitters with `among` samples, a run has `step` rows per
    sample, and fewer than `step` after the last one.
    """
    step = max(1, at_once // (2 * len(runs)))
    among = max(1, (at_once - len(runs) * (step - 1)) // step)
    samples = _joined([run.at(slice(step - 1, None, step)) for run in runs])
    chosen = samples.at(_order(samples)).at(slice(among - 1, None, among))
    return list(zip(*chosen, strict=True))


def _end(run: Rows, begin: int, splitter: tuple[np.uint64, np.uint64, np.int64] | None) -> int:
    """Return where the rows of a sorted run end that come up to a splitter, of those from `begin` on."""
    end = len(run.row)
    if splitter is None:
        return end
    *before, last = zip(run, splitter, strict=True)
    for column, value in before:
        equal = column[begin:end]
        begin, end = (begin + int(np.searchsorted(equal, value, side)) for side in ("left", "right"))
    column, value = last
    return begin + int(np.searchsorted(column[begin:end], value, "right"))


def _order(rows: Rows) -> NDArray[np.int64]:
    """Return the order by (major, minor). It is stable, and rows come by their number where these are equal."""
    return np.lexsort((rows.minor, rows.major))


def _joined(parts: list[Rows]) -> Rows:
    return Rows(*(np.concatenate(column) for column in zip(*parts, strict=True)))
