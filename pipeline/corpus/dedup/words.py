"""Words of a text and hashes of their n-grams, for near-duplicates and contamination.

A word is a run of letters and digits with the marks on them (vowel signs, accents, points), without case and in NFKC,
so that full-width letters and ligatures are the letters they stand for. Soft hyphens, zero-width characters and other
characters that Unicode lets a renderer ignore are removed before words are split. In scripts without spaces between
words (Han, kana, Thai, Lao, Burmese, Khmer, …) every character with its marks is a word, and so is every emoji.
Spaces, punctuation and markup do not count.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain
from unicodedata import category, normalize

import numpy as np
import regex
from numpy.typing import NDArray

_EMOJI = r"\p{Emoji_Presentation}\U0001F000-\U0001FAFF"
_CJK = r"\p{Han}\p{Hiragana}\p{Katakana}ー"
_SOUTH_EAST_ASIAN = r"\p{Line_Break=Complex_Context}"
"""Scripts that UAX 14 breaks by dictionary: Thai, Lao, Khmer, Burmese, Tai Le, Tai Tham, and others."""

_IGNORABLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")
_RUN = regex.compile(rf"[\p{{L}}\p{{N}}][\p{{L}}\p{{N}}\p{{M}}]*|[{_EMOJI}]")
_UNSPACED = regex.compile(f"[{_CJK}{_SOUTH_EAST_ASIAN}]")
_CJK_RUN = regex.compile(f"[{_CJK}]+")
_PART = regex.compile(rf"[{_CJK}{_SOUTH_EAST_ASIAN}]\p{{M}}*|(?:[^{_CJK}{_SOUTH_EAST_ASIAN}]|\p{{M}})+")
_ASCII = "".join(chr(code).lower() if chr(code).isalnum() else " " for code in range(128))

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def words(text: str) -> list[str]:
    r"""Return the words of a text, in order.

    Example:
        >>> words("Find $x_1 + 12$: 数学!")
        ['find', 'x', '1', '12', '数', '学']
        >>> words("हिन्दी भाषा, ﬁne co\u00adop")
        ['हिन्दी', 'भाषा', 'fine', 'coop']
    """
    if not text.isascii():
        for character in filter(
            _is_separator, set(text)
        ):  # much English text has no other non-ASCII than “quotes” and dashes
            text = text.replace(character, " ")
    if text.isascii():
        return text.translate(_ASCII).split()
    text = _folded(text)
    runs: list[str] = _RUN.findall(text)
    if not _UNSPACED.search(text):
        return runs
    found: list[str] = []
    for run in runs:
        found += run if _CJK_RUN.fullmatch(run) else _PART.findall(run)
    return found


def _folded(text: str) -> str:
    """Return a text in which characters that Unicode treats as equal are equal (NFKC_Casefold)."""
    return normalize("NFKC", normalize("NFKC", _IGNORABLE.sub("", text)).casefold())


@lru_cache(1 << 12)
def _is_separator(character: str) -> bool:
    """Return whether a non-ASCII character separates words in any context."""
    if character.isascii() or category(character)[0] not in "PSZ":
        return False
    folded = _folded(character)
    return bool(folded) and all(category(part)[0] in "PSZ" for part in folded) and not _RUN.search(folded)


class _WordHashes(dict[str, bytes]):
    """The 64-bit hash of every word that was asked for, as bytes of this machine's order: joined, they are an array."""

    def __missing__(self, word: str) -> bytes:
        value = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
        found = value.to_bytes(8, sys.byteorder)
        if len(self) >= _KNOWN_WORDS:
            self.clear()
        if len(word) <= _LONGEST:
            self[word] = found
        return found


_KNOWN_WORDS, _LONGEST = 1 << 18, 64
"""Words that are remembered, and characters of the longest of them, which bound memory."""
_hash_of = _WordHashes()


def _hashes(words: Iterable[str]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(map(_hash_of.__getitem__, words)), np.uint64)


def ngrams(words: Sequence[str], n: int) -> NDArray[np.uint64]:
    """Return a 64-bit hash of every n consecutive words, [len(words) − n + 1]; empty for fewer words.

    It is a polynomial of the words' own hashes, so two different n-grams collide with a probability of about 2^-60.
    """
    return _rolled(_hashes(words), n)


def _rolled(hashes_W: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    size = max(0, len(hashes_W) - n + 1)
    total = np.zeros(size, np.uint64)
    # Horner's rule for all n-grams at once, modulo 2^64: n passes over the array instead of one per n-gram.
    for i in range(n if size else 0):
        total *= _MULTIPLIER
        total += hashes_W[i : i + size]
    return total


def ngrams_of_all(documents: Sequence[Sequence[str]], n: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the n-grams of several texts one after the other [S], and how many each has [D].

    As in `shingles`, a text of fewer words has one n-gram and a text without words none, but n-grams may repeat.

    Example:
        >>> ngrams_of_all([["a", "b", "a", "b"], [], ["a"]], 2)[1].tolist()
        [3, 0, 1]
    """
    size_D = np.fromiter(map(len, documents), np.int64, len(documents))
    rolled_R = _rolled(_hashes(chain.from_iterable(documents)), n)  # some of them across two texts
    count_D = np.where(size_D < n, np.minimum(size_D, 1), size_D - n + 1)
    first_D, place_D = (np.cumsum(sizes) - sizes for sizes in (size_D, count_D))
    at_S = np.repeat(first_D - place_D, count_D) + np.arange(int(count_D.sum()))
    short_D = np.flatnonzero((size_D < n) & (size_D > 0))
    ngrams_S = rolled_R[np.minimum(at_S, len(rolled_R) - 1)] if len(rolled_R) else np.zeros(len(at_S), np.uint64)
    for d in short_D.tolist():
        ngrams_S[place_D[d]] = ngrams(documents[d], len(documents[d]))[0]
    return ngrams_S, count_D


def shingles(words: Sequence[str], n: int) -> NDArray[np.uint64]:
    """Return the sorted set of a text's n-grams; a text of fewer words has one n-gram, a text without words none."""
    hashes_S = np.sort(ngrams(words, min(n, max(len(words), 1))))
    new_S = np.ones(len(hashes_S), bool)
    new_S[1:] = hashes_S[1:] != hashes_S[:-1]
    return hashes_S[new_S]  # as `np.unique`, in half of its time
