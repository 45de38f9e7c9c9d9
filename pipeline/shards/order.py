"""The order in which steps take the rows of shards: a pure function of (seed, epoch, step), in bounded memory.

Rows stay sorted on disk, where neighbours share their contexts. Only indices are shuffled, so a resumed run, or a run
on another number of ranks, takes the same rows in the same steps. Shape names: P places, B bins of keys.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.core.random_keys import random_key, random_keys

PART = 1 << 20
"""Places of an order that are computed at once; memory holds two such parts, however many rows there are."""

_BITS = 16
"""Leading bits of a key that name its bin."""

_AT_ONCE = 1 << 18
"""Rows whose keys are computed at once; their keys fit a processor's cache."""


def permutation(n: int, seed: int, epoch: int, start: int = 0, stop: int | None = None) -> NDArray[np.int64]:
    """Return the rows [P] at the places [start, stop) of an epoch's order of the rows 0…n−1: by their random keys.

    Memory is that of the places that are asked for, and of two parts of `PART` places. A part of an order of more rows
    than that takes one pass over the keys of all rows, the first one two: about 15 s each for 10⁹ rows. Read-only.

    Args:
        n: number of rows.
        seed: seed of the run.
        epoch: epoch, from 0.
        start: first place.
        stop: place after the last one; None: `n`.

    Example:
        >>> permutation(6, seed=0, epoch=0).tolist(), permutation(6, seed=0, epoch=1).tolist()
        ([3, 5, 2, 4, 0, 1], [5, 2, 3, 0, 4, 1])
        >>> permutation(6, seed=0, epoch=0, start=1, stop=3).tolist()
        [5, 2]
    """
    stop = n if stop is None else min(n, stop)
    base = random_key("epoch", seed, epoch)
    parts = [
        _part(n, base, part)[max(0, start - part * PART) : stop - part * PART]
        for part in range(start // PART, -(-stop // PART))
    ]
    rows_P = parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, np.int64), *parts])
    rows_P.setflags(write=False)
    return rows_P


def sites_of_step(reader_len: int, seed: int, step: int, per_step: int) -> NDArray[np.int64]:
    """Return the rows [per_step] that step `step` (from 0) takes, on all ranks together.

    Steps go through the permutations of epochs 0, 1, … one after another. An epoch takes every row once, and a step may
    end one epoch and begin the next.

    Example:
        >>> steps = [sites_of_step(6, seed=0, step=step, per_step=4) for step in range(3)]
        >>> np.concatenate(steps).tolist() == [*permutation(6, 0, 0).tolist(), *permutation(6, 0, 1).tolist()]
        True
    """
    begin, end = step * per_step, (step + 1) * per_step
    epochs = range(begin // reader_len, -(-end // reader_len))
    first = [epoch * reader_len for epoch in epochs]
    return np.concatenate(
        [
            permutation(reader_len, seed, epoch, max(0, begin - at), min(reader_len, end - at))
            for epoch, at in zip(epochs, first, strict=True)
        ]
    )


@lru_cache(maxsize=2)
def _part(n: int, base: int, part: int) -> NDArray[np.int64]:
    """Return the rows [P] at the places [part × PART, (part + 1) × PART) of the order by `random_keys(base, row)`."""
    first, last = part * PART, min(n, (part + 1) * PART)
    # No two rows share a key, so the rows of a bin of keys have consecutive places, which the counts of the bins give.
    below_B = _below(n, base)
    low = int(np.searchsorted(below_B, first, side="right")) - 1
    high = int(np.searchsorted(below_B, last, side="left"))
    rows, keys = [], []
    for begin in range(0, n, _AT_ONCE):
        key_P = _keys(n, base, begin)
        bin_P = _bins(key_P)
        here = np.flatnonzero((bin_P >= low) & (bin_P < high))
        rows.append(here + begin)
        keys.append(key_P[here])
    order = np.argsort(np.concatenate(keys), kind="stable")
    found_P = np.concatenate(rows)[order][first - below_B[low] : last - below_B[low]].copy()
    found_P.setflags(write=False)
    return found_P


@lru_cache(maxsize=2)
def _below(n: int, base: int) -> NDArray[np.int64]:
    """Return the number [B + 1] of rows whose key is in an earlier bin."""
    count_B = np.zeros(1 << _BITS, np.int64)
    for begin in range(0, n, _AT_ONCE):
        count_B += np.bincount(_bins(_keys(n, base, begin)), minlength=1 << _BITS)
    return np.concatenate([[0], np.cumsum(count_B)])


def _keys(n: int, base: int, begin: int) -> NDArray[np.uint64]:
    return random_keys(base, np.arange(begin, min(n, begin + _AT_ONCE)))


def _bins(key_P: NDArray[np.uint64]) -> NDArray[np.int64]:
    return (key_P >> np.uint64(64 - _BITS)).astype(np.int64)
