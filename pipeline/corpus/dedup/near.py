"""Near-duplicates: documents that share most of their word n-grams with another one.

MinHash signatures in bands (datasketch; Broder 1997; Leskovec et al., Mining of Massive Datasets, ch. 3) propose pairs,
and the true Jaccard similarity of the two documents' shingle sets decides, so that no document is lost to a false
positive. Which documents stay depends only on their texts, not on their order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.config.corpus import NearDuplicatesConfig
from pipeline.corpus.dedup.words import ngrams_of_all

UInt64 = NDArray[np.uint64]

PERMUTATIONS = 128

_RECALL = 0.999
"""Least probability with which a pair exactly at the threshold is proposed; more similar pairs have a higher one."""

AT_ONCE = 1 << 17
"""Characters of the texts whose band keys are computed together, about; it changes no result."""

_BLOCK = 1 << 15
"""Shingles that are permuted at a time: 256 kB of values, which stay in a core's cache. It changes no result."""

_MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)
_MOST = np.uint64(2**64 - 1)


@lru_cache(1)
def _permutations() -> tuple[UInt64, UInt64]:
    """Return factors and summands [PERMUTATIONS, 1] of the permutations of datasketch's `affine64`."""
    from datasketch import MinHash  # imports SciPy, which an up-to-date corpus does not need

    factor_P, summand_P = MinHash(PERMUTATIONS, seed=1, scheme="affine64").permutations
    return factor_P[:, None], summand_P[:, None]


def signatures(hashes_S: UInt64, count_D: NDArray[np.int64]) -> UInt64:
    """Return the MinHash signatures [PERMUTATIONS, D] of texts, of which each has at least one hash.

    They are what datasketch computes, which loops over integers of Python and takes more than twice the time.

    Args:
        hashes_S: 64-bit hashes of all texts, one text after the other; a repeated one changes nothing.
        count_D: how many hashes each text has.
    """
    least_PD = np.full((PERMUTATIONS, len(count_D)), _MOST)
    end_D = np.cumsum(count_D)
    for begin in range(0, len(hashes_S), _BLOCK):
        mixed_B = _mixed(hashes_S[begin : begin + _BLOCK])
        # Texts that have hashes in this block, of which the first one and the last one may have others elsewhere.
        first, last = np.searchsorted(end_D, [begin, begin + len(mixed_B) - 1], "right").tolist()
        of = slice(first, last + 1)
        first_T = np.maximum(end_D[of] - count_D[of] - begin, 0)
        value_B = np.empty_like(mixed_B)
        for factor_1, summand_1, least_D in zip(*_permutations(), least_PD, strict=True):
            np.multiply(mixed_B, factor_1, out=value_B)
            np.add(value_B, summand_1, out=value_B)
            np.minimum(least_D[of], np.minimum.reduceat(value_B, first_T), out=least_D[of])
    return least_PD


def _mixed(hashes_S: UInt64) -> UInt64:
    """Return hashes whose bits are mixed by the finalizer of MurmurHash3, a bijection."""
    mixed_S = hashes_S ^ (hashes_S >> np.uint64(33))
    for factor in (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)):
        mixed_S *= factor
        mixed_S ^= mixed_S >> np.uint64(33)
    return mixed_S


class Near(NamedTuple):
    """Document `row` nearly duplicates `other`, with this Jaccard similarity."""

    row: int
    other: int
    similarity: float


def band_rows(threshold: float) -> int:
    """Return the most signature values per band that keep the recall; more values give fewer false candidates.

    Example:
        >>> band_rows(0.8), band_rows(0.5)
        (5, 2)
    """
    rows = [r for r in range(1, PERMUTATIONS) if 1 - (1 - threshold**r) ** (PERMUTATIONS // r) >= _RECALL]
    return max(rows, default=1)


def bands(documents: Sequence[Sequence[str]], n: int, rows: int) -> list[UInt64]:
    """Return the band keys of each text [PERMUTATIONS // rows]; texts that share one are candidates.

    A text without words has no keys.

    Args:
        documents: the words of each text.
        n: words of a shingle.
        rows: signature values of a band.
    """
    hashes_S, count_D = ngrams_of_all(documents, n)
    value_PK = signatures(hashes_S, count_D[count_D > 0])
    # A band's key is a hash of its `rows` values: two documents share it (collisions aside) if all of them agree. It is
    # a polynomial of the band's number and these values, modulo 2^64.
    count, texts = PERMUTATIONS // rows, value_PK.shape[1]
    key_BK = np.repeat(np.arange(count, dtype=np.uint64)[:, None], texts, axis=1)
    for value_BK in value_PK[: count * rows].reshape(count, rows, texts).swapaxes(0, 1):
        key_BK *= _MULTIPLIER
        key_BK += value_BK
    found = iter(np.ascontiguousarray(key_BK.T))
    return [next(found) if has_words else np.zeros(0, np.uint64) for has_words in (count_D > 0).tolist()]


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield texts in batches of about `AT_ONCE` characters."""
    batch, size = list[str](), 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def similarity(a: UInt64, b: UInt64) -> float:
    """Return the Jaccard similarity of two shingle sets.

    Example:
        >>> similarity(np.array([1, 2, 3], np.uint64), np.array([2, 3, 4], np.uint64))
        0.5
    """
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def near_duplicates(
    keys_NB: UInt64,
    held_out_N: NDArray[np.bool_],
    order: Sequence[int],
    rule: NearDuplicatesConfig,
    shingles_of: Callable[[int], UInt64],
) -> list[Near]:
    """Return the training documents that nearly duplicate a validation document or, by `within_training`, one another.

    Args:
        keys_NB: band keys of N documents.
        held_out_N: whether each is a validation document, which always stays.
        order: the training documents' numbers; of near-duplicates the first in this order stays.
        rule: threshold, and whether training documents are compared with one another.
        shingles_of: function that returns the shingle set of the document with a number.

    Returns:
        Those that leave, in the given order, each with the most similar validation document, or else the most similar
        one that stays.
    """
    index: defaultdict[int, list[int]] = defaultdict(list)

    def insert(row: int) -> None:
        for key in keys_NB[row].tolist():
            index[key].append(row)

    for row in np.flatnonzero(held_out_N).tolist():
        insert(row)
    # Greedy, so that a training document is compared only with those that stay: a chain of near-duplicates, each like
    # the one before it, does not leave as a whole.
    found = []
    for row in order:
        candidates = dict.fromkeys(other for key in keys_NB[row].tolist() for other in index.get(key, ()))
        own = shingles_of(row) if candidates else np.zeros(0, np.uint64)
        nears = [Near(row, other, similarity(own, shingles_of(other))) for other in candidates]
        nears = [near for near in nears if near.similarity >= rule.threshold]
        if nears:
            found.append(max(nears, key=lambda near: (bool(held_out_N[near.other]), near.similarity)))
        elif rule.within_training:
            insert(row)
    return found


def linked(
    key_P: UInt64, held_out_P: NDArray[np.bool_], within_training: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return pairs (first, other) of documents that join those of one band key which are to be compared.

    Args:
        key_P: keys of one band, of P documents that include all with the same key.
        held_out_P: whether each is a validation document.
        within_training: whether training documents are compared with one another; else only keys count that a
            validation and a training document share.

    Example:
        >>> linked(np.array([7, 8, 7, 7], np.uint64), np.array([False] * 4), True)
        (array([0, 0]), array([2, 3]))
    """
    order = np.argsort(key_P, kind="stable")
    key = key_P[order]
    begin = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else np.zeros(0, np.int64)
    size = np.diff([*begin, len(key)])
    wanted = size > 1
    if not within_training and len(key):
        held_out = np.add.reduceat(held_out_P[order].astype(np.int64), begin)
        wanted &= (held_out > 0) & (held_out < size)
    first = np.repeat(order[begin], size)
    joins = np.repeat(wanted, size)
    joins[begin] = False  # a document is not joined with itself
    return first[joins], order[joins]
