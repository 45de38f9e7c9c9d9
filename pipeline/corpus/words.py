"""Words of a text and hashes of their n-grams: what near-duplicates and contamination are found by.

A word is a run of letters and digits, without case. In scripts that put no spaces between words (Han, kana, Thai, Lao,
Burmese, Khmer) every character is one, and so is every emoji. Spaces, punctuation and markup do not count.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_ALONE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U0001f000-\U0003ffff"
)
_WORD = re.compile(f"[{_ALONE}]|[^\\W_{_ALONE}]+")

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def words(text: str) -> list[str]:
    """The words of a text, in order.

    Example:
        >>> words("Find $x_1 + 12$: 数学!")
        ['find', 'x', '1', '12', '数', '学']
    """
    return _WORD.findall(text.casefold())


@lru_cache(1 << 18)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")


def ngrams(words: Sequence[str], n: int) -> NDArray[np.uint64]:
    """A 64-bit hash of every n words that follow one another, [len(words) − n + 1]; of fewer words there are none.

    It is a polynomial of the words' own hashes, so two n-grams that differ collide about once in 2^60.
    """
    hashes_W = np.fromiter(map(_word_hash, words), np.uint64, len(words))
    size = max(0, len(words) - n + 1)
    total = np.zeros(size, np.uint64)
    for i in range(n if size else 0):
        total = total * _MULTIPLIER + hashes_W[i : i + size]
    return total


def shingles(words: Sequence[str], n: int) -> NDArray[np.uint64]:
    """The set of a text's n-grams, sorted; a text of fewer words is one n-gram, one without words has none."""
    return np.unique(ngrams(words, min(n, max(len(words), 1))))
