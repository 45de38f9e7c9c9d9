"""Counts the n-grams of a corpus into sorted tables on disk, for interpolated modified Kneser-Ney smoothing.

An n-gram of length k is an *entry* of order k: a number in the order of (context, last token), where the context is the
entry of order k−1 that precedes the last token. Its *suffix* is the entry of order k−1 without the first token. Counts
are those of Kneser and Ney: of the longest n-grams, and of those at the start of a document, their occurrences; of
others, the number of different tokens that precede them.

Memory does not grow with the corpus: occurrences are spread over files of `BUCKET` keys by ranges of keys, each file is
sorted alone, and the tables are memory maps. They depend on the documents' tokens only, not on their order.

Shape names: E entries of an order, C contexts of it (the entries of the order below), N tokens, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

BUCKET = 1 << 23
"""Occurrences that are sorted at once; they take about 500 MB."""
CHUNK = 1 << 21
"""Entries or tokens that are computed at once."""
NONE = np.uint32(0xFFFFFFFF)
"""In the stream of entries: there is no n-gram of this length here, the document begins too late."""
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


# --------------------------------------------------------------------------------------------------- count


def count(streams: Sequence[Path], vocab_size: int, orders: int, folder: Path, scratch: Path) -> None:
    """Count the n-grams of all lengths up to `orders` into `folder`, from which `open_tables` reads them.

    Args:
        streams: `.npy` files of int32: documents one after the other, each as V and its token ids.
        vocab_size: V.
        orders: the greatest length.
        folder: an existing folder.
        scratch: an existing empty folder, for what is needed meanwhile: about 30 bytes a token.
    """
    width, sizes = vocab_size + 1, [vocab_size]
    stream = _joined(streams, scratch / "stream.npy")
    entries: Array = stream
    for k in range(2, orders + 1):
        entries = _count_order(stream, entries, width, k, folder, scratch)
        sizes.append(len(np.load(folder / f"keys-{k}.npy", mmap_mode="r")))
    _kneser_ney_counts(sizes, folder, scratch)
    np.save(folder / "keys-1.npy", np.arange(vocab_size))
    np.save(folder / "suffix-1.npy", np.zeros(vocab_size, np.uint32))
    of_counts = np.zeros((orders, 4), np.int64)
    for k in range(1, orders + 1):
        for part in _chunks(np.load(folder / f"counts-{k}.npy", mmap_mode="r")):
            of_counts[k - 1] += np.bincount(np.minimum(part, 5), minlength=6)[1:5]
        _context_tables(k, {1: 1, 2: width}.get(k) or max(1, sizes[k - 2]), width, folder)
    _sort_by_probability(vocab_size, sizes, discounts(of_counts), folder, scratch)
    documents = sum(int((part == vocab_size).sum()) for part in _chunks(stream))
    about: dict[str, Any] = {
        "vocab_size": vocab_size,
        "orders": orders,
        "documents": documents,
        "tokens": len(stream) - documents,
    }
    about |= {"count_of_counts": of_counts.tolist(), "entries": sizes}
    (folder / ABOUT).write_text(json.dumps(about, indent=1))


def open_tables(folder: Path) -> CountTables:
    """Return the tables in a folder, as memory maps."""
    about = json.loads((folder / ABOUT).read_text())
    names = ("keys", "counts", "suffix", "best", "place", "start", "total", "kinds")
    orders = [
        Order(*(np.asarray(np.load(folder / f"{name}-{k}.npy", mmap_mode="r")) for name in names))
        for k in range(1, about["orders"] + 1)
    ]
    return CountTables(about["vocab_size"], tuple(orders), np.array(about["count_of_counts"]))


def is_counted(folder: Path | str) -> bool:
    """Return whether a proxy's folder holds count tables."""
    return (Path(folder) / ABOUT).is_file()


class _Growing:
    """A one-dimensional `.npy` file that is written piece by piece."""

    def __init__(self, path: Path, dtype: Any) -> None:
        self._file: BinaryIO = path.open("wb")
        self._dtype, self._length = np.dtype(dtype), 0
        self._header()

    def append(self, values: Array) -> None:
        self._file.write(np.ascontiguousarray(values, self._dtype).data)
        self._length += len(values)

    def close(self) -> int:
        """Write the length into the header, which leaves room for it, and return it."""
        self._file.seek(0)
        self._header()
        self._file.close()
        return self._length

    def _header(self) -> None:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._length,)}
        np.lib.format.write_array_header_1_0(self._file, header)


def _chunks(values: Array, size: int = CHUNK) -> Iterator[Array]:
    return (values[begin : begin + size] for begin in range(0, len(values), size))


def _new(path: Path, dtype: Any, length: int) -> Array:
    """Return a new memory map of zeros."""
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(length,))


def _joined(streams: Sequence[Path], path: Path) -> Array:
    out = _Growing(path, np.int32)
    for stream in streams:
        out.append(np.load(stream))
    out.close()
    return np.load(path, mmap_mode="r")


def _occurrences(stream: Array, below: Array, width: int, size: int) -> Iterator[tuple[Array, Array]]:
    """Yield keys and positions of one order's n-grams, given the entries of the order below at every position."""
    for begin in range(1, len(stream), size):
        end = min(begin + size, len(stream))
        last, context = stream[begin:end], below[begin - 1 : end - 1]
        there = np.flatnonzero((last != width - 1) & (context != NONE))
        yield context[there].astype(np.int64) * width + last[there], begin + there


def _count_order(stream: Array, below: Array, width: int, k: int, folder: Path, scratch: Path) -> Array:
    """Write keys, occurrences and suffixes of order k, and return the entry [N] that ends at each position."""
    samples = [keys[::61] for keys, _ in _occurrences(stream, below, width, CHUNK)]
    sample = np.sort(np.concatenate([np.empty(0, np.int64), *samples]))
    files = -(-len(stream) // BUCKET)
    bounds = np.unique(sample[[len(sample) * i // files for i in range(1, files)]]) if len(sample) else sample
    names = [[scratch / f"{what}-{i}.npy" for what in ("key", "at")] for i in range(len(bounds) + 1)]
    buckets = [[_Growing(path, np.int64) for path in pair] for pair in names]
    for keys, at in _occurrences(stream, below, width, CHUNK):
        where = np.searchsorted(bounds, keys, side="right")
        for i, pair in enumerate(buckets):
            for file, values in zip(pair, (keys, at), strict=True):
                file.append(values[where == i])
    entries = _new(scratch / f"entries-{k}.npy", np.uint32, len(stream))
    for begin in range(0, len(entries), CHUNK):
        entries[begin : begin + CHUNK] = NONE
    made = {name: _Growing(folder / f"{name}-{k}.npy", t) for name, t in (("keys", np.int64), ("suffix", np.uint32))}
    made["raw"] = _Growing(scratch / f"raw-{k}.npy", np.uint32)
    done = 0
    for paths, pair in zip(names, buckets, strict=True):
        for file in pair:
            file.close()
        keys, at = map(np.load, paths)
        for path in paths:
            path.unlink()
        found, first, inverse, raw = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        entries[at] = done + inverse
        for name, values in (("keys", found), ("suffix", below[at[first]]), ("raw", raw)):
            made[name].append(values)
        done += len(found)
    if done >= NONE:
        raise OverflowError(f"more than {NONE} different n-grams")
    for table in made.values():
        table.close()
    return entries


def _kneser_ney_counts(sizes: Sequence[int], folder: Path, scratch: Path) -> None:
    """Write the counts of all orders, given `sizes`, the numbers of entries.

    An n-gram that no longer one ends with stands at the start of a document: its occurrences count.
    """
    for k, size in enumerate(sizes, 1):
        counts = _new(folder / f"counts-{k}.npy", np.uint32, size)
        if k < len(sizes):
            for suffixes in _chunks(np.load(folder / f"suffix-{k + 1}.npy", mmap_mode="r")):
                found, times = np.unique(suffixes, return_counts=True)
                counts[found] += times.astype(np.uint32)
        if k > 1:
            raw = np.load(scratch / f"raw-{k}.npy", mmap_mode="r")
            for into, of in zip(_chunks(counts), _chunks(raw), strict=True):
                into[:] = np.where(into == 0, of, into)


def _context_tables(k: int, contexts: int, width: int, folder: Path) -> None:
    """Write the first entry, the sum of counts, and the kinds of counts of every context of order k."""
    keys, counts = (np.load(folder / f"{name}-{k}.npy", mmap_mode="r") for name in ("keys", "counts"))
    start = _new(folder / f"start-{k}.npy", np.int64, contexts + 1)
    for begin in range(0, contexts + 1, CHUNK):
        some = np.arange(begin, min(begin + CHUNK, contexts + 1))
        start[some] = np.searchsorted(keys, some * width)
    total = _new(folder / f"total-{k}.npy", np.int64, contexts)
    kinds = np.lib.format.open_memmap(folder / f"kinds-{k}.npy", mode="w+", dtype=np.uint32, shape=(contexts, 3))
    for first, last, context in _by_contexts(start):
        mine = counts[start[first] : start[last]]
        total[first:last] = np.bincount(context, weights=mine, minlength=last - first)
        for b in (1, 2, 3):
            kinds[first:last, b - 1] = np.bincount(context[np.minimum(mine, 3) == b], minlength=last - first)


def _by_contexts(start: Array) -> Iterator[tuple[int, int, Array]]:
    """Yield ranges of contexts with about `CHUNK` entries or contexts, and each entry's context within the range."""
    first, contexts = 0, len(start) - 1
    while first < contexts:
        last = int(np.searchsorted(start, start[first] + CHUNK, side="right")) - 1
        last = min(max(last, first + 1), first + CHUNK, contexts)
        yield first, last, np.repeat(np.arange(last - first), np.diff(start[first : last + 1]))
        first = last


def _sort_by_probability(V: int, sizes: Sequence[int], discount: Array, folder: Path, scratch: Path) -> None:
    """Write, for every order, the entries of each context with the most probable first, and their places.

    Contexts of at most `LISTED` entries are always read whole, and keep the order of their tokens.
    """
    below: Array = np.full(1, 1 / V)  # of order 0: every token
    for k, size in enumerate(sizes, 1):
        load = {name: np.load(folder / f"{name}-{k}.npy", mmap_mode="r") for name in ("counts", "suffix", "start")}
        total, kinds = (np.load(folder / f"{name}-{k}.npy", mmap_mode="r") for name in ("total", "kinds"))
        best, place = (_new(folder / f"{n}-{k}.npy", t, size) for n, t in (("best", np.uint32), ("place", np.uint16)))
        chances = _new(scratch / f"chances-{k}.npy", np.float64, size)
        for first, last, context in _by_contexts(load["start"]):
            begin, end = load["start"][[first, last]]
            sums = np.maximum(total[first:last], 1)
            left = kinds[first:last] @ discount[k - 1] / sums
            mine = discounted(load["counts"][begin:end], discount[k - 1])
            p = mine / sums[context] + left[context] * below[load["suffix"][begin:end]]
            chances[begin:end] = p
            begins = (load["start"][first:last] - begin)[context]
            best[begin:end] = np.arange(begin, end)
            place[begin:end] = np.minimum(np.arange(end - begin) - begins, 0xFFFF)
            long = np.flatnonzero((np.diff(load["start"][first : last + 1]) > LISTED)[context])
            falling = long[np.lexsort((-p[long], context[long]))]
            best[begin + long] = begin + falling
            place[begin + falling] = np.minimum(long - begins[long], 0xFFFF)
        below = chances


def discounted(counts: Array, discount: Array) -> NDArray[np.float64]:
    """Return counts less their discount, given the discounts [3] of counts 1, 2 and ≥ 3; 0 for a count of 0."""
    return counts - np.concatenate([[0.0], discount])[np.minimum(counts, 3)]
