"""Sorted tables of n-gram counts on disk, for interpolated modified Kneser-Ney smoothing.

An n-gram of length k is an *entry* of order k: a number in the order of (context, last token), where the context is the
entry of order k−1 that precedes the last token. Its *suffix* is the entry of order k−1 without the first token. Counts
are those of Kneser and Ney: of the longest n-grams, and of those at the start of a document, their occurrences; of
others, the number of different tokens that precede them.

`count_ngrams.py` makes them. They are opened as memory maps.

Shape names: E entries of an order, C contexts of it (the entries of the order below), V vocabulary.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LISTED = 32
"""Continuations of a context that are tried first; contexts with more have theirs sorted by probability."""
ABOUT = "counts.json"

Array = NDArray[Any]


@dataclass(frozen=True)
class Order:
    """The n-grams of one length."""

    keys: NDArray[np.int64]
    """[E] context · (V + 1) + last token, rising."""
    counts: NDArray[np.uint32]
    """[E] Kneser-Ney counts."""
    suffix: NDArray[np.uint32]
    """[E] the entry of the order below, without the first token."""
    best: NDArray[np.uint32]
    """[E] entries, context by context, the most probable continuation first."""
    place: NDArray[np.uint16]
    """[E] place of an entry within its context in `best`, at most 65,535."""
    start: NDArray[np.int64]
    """[C + 1] first entry of each context."""
    total: NDArray[np.int64]
    """[C] sum of counts."""
    kinds: NDArray[np.uint32]
    """[C, 3] number of entries with counts 1, 2, and 3 or more."""


@dataclass(frozen=True)
class CountTables:
    """All orders: `orders[0]` are single tokens, one context; token V stands for the start of a document."""

    vocab_size: int
    orders: tuple[Order, ...]
    count_of_counts: NDArray[np.int64]
    """[orders, 4] number of entries with counts 1 to 4."""
    bigram_ranks: NDArray[np.int64]
    """[E] of order 2: context · (V + 1) + number of tokens that come before the last one by unigrams, rising."""

    @property
    def width(self) -> int:
        """Return V + 1, the number of tokens with the start of a document."""
        return self.vocab_size + 1

    @cached_property
    def unigram_ranks(self) -> NDArray[np.int64]:
        """[V] `rank_keys` of all tokens, rising."""
        return np.sort(self.rank_keys(self.orders[0].counts.astype(np.int64), np.arange(self.vocab_size)))

    @cached_property
    def rank_size(self) -> int:
        """Return a number above all `rank_keys`."""
        return (int(self.orders[0].counts.max(initial=0)) + 2) * self.width

    def rank_keys(self, counts: Array, tokens: Array) -> NDArray[np.int64]:
        """Return numbers that rise in the order of ranks by unigrams: falling count, then rising id."""
        return self.rank_size - (counts + 2) * self.width + tokens


def discounts(count_of_counts: Array) -> NDArray[np.float64]:
    """Return the discounts [..., 3] of counts 1, 2 and ≥ 3 from numbers of entries with counts 1 to 4 [..., 4].

    Chen and Goodman 1998, equation 26. They are kept within bounds where the estimate is none, so that a discounted
    count is positive and rises with the count.

    Example:
        >>> discounts(np.array([8, 4, 2, 1])).round(3).tolist()
        [0.5, 1.25, 2.0]
    """
    n = np.maximum(np.asarray(count_of_counts, np.float64), 0.0)
    share = n[..., 0] / np.maximum(n[..., 0] + 2 * n[..., 1], 1.0)
    rising = [b - (b + 1) * share * n[..., b] / np.maximum(n[..., b - 1], 1.0) for b in (1, 2, 3)]
    first = np.clip(rising[0], 0.1, 0.95)
    second = np.clip(rising[1], first, first + 0.9)
    return np.stack([first, second, np.clip(rising[2], second, second + 0.9)], -1)


def discounted(counts: Array, discount: Array) -> NDArray[np.float64]:
    """Return counts less their discount, given the discounts [3] of counts 1, 2 and ≥ 3; 0 for a count of 0."""
    return counts - np.concatenate([[0.0], discount])[np.minimum(counts, 3)]


def open_tables(folder: Path) -> CountTables:
    """Return the tables in a folder, as memory maps."""
    about = json.loads((folder / ABOUT).read_text())
    names = ("keys", "counts", "suffix", "best", "place", "start", "total", "kinds")
    orders = [
        Order(*(np.asarray(np.load(folder / f"{name}-{k}.npy", mmap_mode="r")) for name in names))
        for k in range(1, about["orders"] + 1)
    ]
    ranks = np.asarray(np.load(folder / "bigram-ranks.npy", mmap_mode="r"))
    return CountTables(about["vocab_size"], tuple(orders), np.array(about["count_of_counts"]), ranks)


def is_counted(folder: Path | str) -> bool:
    """Return whether a proxy's folder holds count tables."""
    return (Path(folder) / ABOUT).is_file()
