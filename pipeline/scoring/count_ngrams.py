"""Counts the n-grams of a corpus into the tables that `count_tables.py` describes.

Memory does not grow with the corpus, nor does the time of a token. Occurrences are spread over buckets by ranges of
keys, each bucket is sorted alone, and every file is written and read from its beginning to its end. The tables depend
on the documents' tokens only, not on their order.

Shape names: E entries of an order, C contexts of it (the entries of the order below), N tokens, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.scoring import count_columns
from pipeline.scoring.count_columns import Growing, Spread, by_bucket, chunks, new_column
from pipeline.scoring.count_tables import ABOUT, LISTED, discounted, discounts

BUCKET = 1 << 20
"""Occurrences that are sorted at once: they and their order fit into a cache."""
CELLS = 1 << 16
"""Ranges of keys of which a bucket consists."""
NONE = np.uint32(0xFFFFFFFF)
"""In the stream of entries: there is no n-gram of this length here, the document begins too late."""

Array = NDArray[Any]


def count(streams: Sequence[Path], vocab_size: int, orders: int, folder: Path, scratch: Path) -> None:
    """Count the n-grams of all lengths up to `orders` into `folder`, from which `open_tables` reads them.

    Args:
        streams: `.npy` files of int32: documents one after the other, each as V and its token ids.
        vocab_size: V.
        orders: the greatest length.
        folder: an existing folder.
        scratch: an existing empty folder, for what is needed meanwhile: about 45 bytes a token.
    """
    width, sizes = vocab_size + 1, [vocab_size]
    stream = _joined(streams, scratch / "stream.npy")
    entries = stream
    for k in range(2, orders + 1):
        occurrences = Occurrences.of(stream, entries, width if k == 2 else sizes[-1], width)
        size, numbers = _count_order(occurrences, k, folder, scratch)
        sizes.append(size)
        if k < orders:
            entries = _entries(occurrences, numbers, scratch / f"entries-{k}.npy")
    _kneser_ney_counts(sizes, folder, scratch)
    np.save(folder / "keys-1.npy", np.arange(vocab_size))
    np.save(folder / "suffix-1.npy", np.zeros(vocab_size, np.uint32))
    of_counts = np.zeros((orders, 4), np.int64)
    for k in range(1, orders + 1):
        for part in chunks(_table(folder, "counts", k)):
            of_counts[k - 1] += np.bincount(np.minimum(part, 5), minlength=6)[1:5]
        _context_tables(k, {1: 1, 2: width}.get(k) or max(1, sizes[k - 2]), width, folder)
    _sort_by_probability(width, sizes, discounts(of_counts), folder)
    _sort_by_unigrams(width, folder)
    documents = sum(int((part == vocab_size).sum()) for part in chunks(stream))
    about: dict[str, Any] = {
        "vocab_size": vocab_size,
        "orders": orders,
        "documents": documents,
        "tokens": len(stream) - documents,
    }
    about |= {"count_of_counts": of_counts.tolist(), "entries": sizes}
    (folder / ABOUT).write_text(json.dumps(about, indent=1))


def _table(folder: Path, name: str, k: int) -> Array:
    return np.asarray(np.load(folder / f"{name}-{k}.npy", mmap_mode="r"))


def _joined(streams: Sequence[Path], path: Path) -> Array:
    out = Growing(path, np.int32)
    for stream in streams:
        out.append(np.load(stream))
    return out.close()


# ------------------------------------------------------------------------------------------------- the n-grams


@dataclass(frozen=True)
class Occurrences:
    """The n-grams of one order as they occur, with the buckets that they are sorted in."""

    stream: Array
    below: Array
    """[N] entry of the order below that ends at each position, or `NONE`."""
    width: int
    shift: int
    """Keys that differ only in so many last bits are in one bucket."""
    bucket_of: Array
    """[`CELLS`] buckets, rising with the keys."""

    @staticmethod
    def of(stream: Array, below: Array, contexts: int, width: int) -> Occurrences:
        """Return them with buckets of about `BUCKET` keys."""
        shift = max(0, (contexts * width).bit_length() - (CELLS.bit_length() - 1))
        found, times = Occurrences(stream, below, width, shift, np.zeros(CELLS, np.int64)), np.zeros(CELLS, np.int64)
        for _, _, keys in found:
            times += np.bincount(keys >> shift, minlength=CELLS)
        full = (np.cumsum(times) - times) // BUCKET
        return Occurrences(stream, below, width, shift, np.unique(full, return_inverse=True)[1])

    def __iter__(self) -> Iterator[tuple[int, Array, Array]]:
        """Yield chunks of the stream: end, and of its n-grams the last positions and the keys."""
        for begin in range(1, len(self.stream), count_columns.CHUNK):
            end = min(begin + count_columns.CHUNK, len(self.stream))
            last, context = self.stream[begin:end], self.below[begin - 1 : end - 1]
            there = np.flatnonzero((last != self.width - 1) & (context != NONE))
            yield end, begin + there, context[there].astype(np.int64) * self.width + last[there]

    def bucket(self, keys: Array) -> Array:
        """Return the bucket of each key."""
        return self.bucket_of[keys >> self.shift]


def _count_order(occurrences: Occurrences, k: int, folder: Path, scratch: Path) -> tuple[int, Array]:
    """Write keys, occurrences and suffixes of order k.

    Returns:
        The number of entries, and of each occurrence its entry, in the order of a `Spread`.
    """
    spread = Spread(scratch, int(occurrences.bucket_of[-1]) + 1, {"keys": np.int64, "suffix": np.uint32})
    for _, at, keys in occurrences:
        spread.add(occurrences.bucket(keys), {"keys": keys, "suffix": occurrences.below[at]})
    spread.close()
    numbers = new_column(scratch / "numbers.npy", np.uint32, len(spread))
    made = {name: Growing(folder / f"{name}-{k}.npy", t) for name, t in (("keys", np.int64), ("suffix", np.uint32))}
    made["raw"] = Growing(scratch / f"raw-{k}.npy", np.uint32)
    done = 0
    for bucket in range(spread.buckets):
        keys, suffix = spread.column("keys", bucket), spread.column("suffix", bucket)
        order = np.argsort(keys)  # equal keys have one suffix: any of them comes first
        keys = keys[order]
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        times = np.diff(first, append=len(keys))
        number = np.empty(len(keys), np.int64)
        number[order] = np.repeat(np.arange(done, done + len(first)), times)
        for name, values in (("keys", keys[first]), ("suffix", suffix[order[first]]), ("raw", times)):
            made[name].append(values)
        spread.write(numbers, bucket, number)
        done += len(first)
    if done >= NONE:
        raise OverflowError(f"more than {NONE} different n-grams")
    for table in made.values():
        table.close()
    spread.unlink()
    return done, numbers


def _entries(occurrences: Occurrences, numbers: Array, path: Path) -> Array:
    """Return the entry [N] that ends at each position, given those of all occurrences in the order of a `Spread`."""
    entries, begin, read = Growing(path, np.uint32), 0, 0
    for end, at, keys in occurrences:
        some = np.full(end - begin, NONE)
        some[at[by_bucket(occurrences.bucket(keys))] - begin] = numbers[read : read + len(at)]
        entries.append(some)
        begin, read = end, read + len(at)
    if begin < len(occurrences.stream):  # a stream of a single token has no n-gram
        entries.append(np.full(len(occurrences.stream) - begin, NONE))
    return entries.close()


# ------------------------------------------------------------------------------------------ what follows from them


def _kneser_ney_counts(sizes: Sequence[int], folder: Path, scratch: Path) -> None:
    """Write the counts of all orders, given `sizes`, the numbers of entries.

    An n-gram that no longer one ends with stands at the start of a document: its occurrences count.
    """
    for k, size in enumerate(sizes, 1):
        counts = new_column(folder / f"counts-{k}.npy", np.uint32, size)
        if k < len(sizes):
            _count_values(_table(folder, "suffix", k + 1), counts, scratch)
        if k > 1:
            raw = np.load(scratch / f"raw-{k}.npy", mmap_mode="r")
            for into, of in zip(chunks(counts), chunks(raw), strict=True):
                into[:] = np.where(into == 0, of, into)


def _count_values(values: Array, counts: Array, scratch: Path) -> None:
    """Add to `counts` how often each number is among the values."""
    span = max(BUCKET, -(-len(counts) // CELLS))
    spread = Spread(scratch, max(1, -(-len(counts) // span)), {"values": np.uint32})
    for some in chunks(values):
        spread.add(some // span, {"values": some})
    spread.close()
    for bucket in range(spread.buckets):
        mine = counts[bucket * span : (bucket + 1) * span]
        some = spread.column("values", bucket) - np.uint32(bucket * span)
        mine += np.bincount(some, minlength=len(mine)).astype(np.uint32)
    spread.unlink()


def _context_tables(k: int, contexts: int, width: int, folder: Path) -> None:
    """Write the first entry, the sum of counts, and the kinds of counts of every context of order k."""
    counts = _table(folder, "counts", k)
    start = new_column(folder / f"start-{k}.npy", np.int64, contexts + 1)
    for keys in chunks(_table(folder, "keys", k)):
        context = keys // width
        begins = np.flatnonzero(np.diff(context, prepend=-1))
        start[context[begins] + 1] += np.diff(begins, append=len(context))
    before = 0
    for some in chunks(start):
        some[:] = before + np.cumsum(some)
        before = some[-1]
    total = new_column(folder / f"total-{k}.npy", np.int64, contexts)
    kinds = new_column(folder / f"kinds-{k}.npy", np.uint32, contexts, 3)
    for first, last, context in _by_contexts(start):
        mine = counts[start[first] : start[last]]
        total[first:last] = np.bincount(context, weights=mine, minlength=last - first)
        for b in (1, 2, 3):
            kinds[first:last, b - 1] = np.bincount(context[np.minimum(mine, 3) == b], minlength=last - first)


def _by_contexts(start: Array) -> Iterator[tuple[int, int, Array]]:
    """Yield ranges of contexts with about `CHUNK` entries or contexts, and each entry's context within the range."""
    first, contexts, size = 0, len(start) - 1, count_columns.CHUNK
    while first < contexts:
        last = int(np.searchsorted(start, start[first] + size, side="right")) - 1
        last = min(max(last, first + 1), first + size, contexts)
        yield first, last, np.repeat(np.arange(last - first), np.diff(start[first : last + 1]))
        first = last


def _sort_by_probability(width: int, sizes: Sequence[int], discount: Array, folder: Path) -> None:
    """Write, for every order, the entries of each context with the most probable first, and their places.

    Contexts of at most `LISTED` entries are always read whole, and keep the order of their tokens.
    """
    lower = list[dict[str, Array]]()
    for k, size in enumerate(sizes, 1):
        lower.append({name: _table(folder, name, k) for name in ("keys", "counts", "suffix", "total", "kinds")})
        start = _table(folder, "start", k)
        best = new_column(folder / f"best-{k}.npy", np.uint32, size)
        place = new_column(folder / f"place-{k}.npy", np.uint16, size)
        for first, last, context in _by_contexts(start):
            begin, end = start[[first, last]]
            best[begin:end] = np.arange(begin, end)
            begins = (start[first:last] - begin)[context]
            place[begin:end] = np.minimum(np.arange(end - begin) - begins, 0xFFFF)
            long = np.flatnonzero((np.diff(start[first : last + 1]) > LISTED)[context])
            falling = long[np.lexsort((-_chances(lower, begin + long, width, discount), context[long]))]
            best[begin + long] = begin + falling
            place[begin + falling] = np.minimum(long - begins[long], 0xFFFF)


def _sort_by_unigrams(width: int, folder: Path) -> None:
    """Write, for every bigram, its context with the rank of its last token by unigrams, those of a context rising."""
    counts, keys = _table(folder, "counts", 1), _table(folder, "keys", 2)
    rank = np.empty(width - 1, np.int64)
    rank[np.argsort(-counts.astype(np.int64), kind="stable")] = np.arange(width - 1)
    made = Growing(folder / "bigram-ranks.npy", np.int64)
    for first, last, _ in _by_contexts(start := _table(folder, "start", 2)):
        context, token = np.divmod(keys[start[first] : start[last]], width)
        made.append(np.sort(context * width + rank[token]))
    made.close()


def _chances(tables: Sequence[dict[str, Array]], entry: Array, width: int, discount: Array) -> Array:
    """Return the probabilities of entries of the last of some orders, given the discounts [orders, 3]."""
    chain = [entry]
    for table in tables[:0:-1]:
        chain.append(table["suffix"][chain[-1]])
    p = np.full(len(entry), 1 / (width - 1))
    for table, entries, mine in zip(tables, chain[::-1], discount, strict=False):
        context = table["keys"][entries] // width if table is not tables[0] else np.zeros(len(entry), np.int64)
        sums, kinds = np.maximum(table["total"][context], 1), table["kinds"][context]
        left = (kinds[:, 0] * mine[0] + kinds[:, 1] * mine[1] + kinds[:, 2] * mine[2]) / sums
        p = discounted(table["counts"][entries], mine) / sums + left * p
    return p
