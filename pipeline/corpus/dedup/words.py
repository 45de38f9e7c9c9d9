"""Words of a text and hashes of their n-grams, for near-duplicates and contamination.

A word is a run of letters and digits with the marks on them (vowel signs, accents, points), without case and in NFKC,
so that full-width letters and ligatures are the letters they stand for. Soft hyphens, zero-width characters and other
characters that Unicode lets a renderer ignore are removed before words are split. In scripts without spaces between
words (Han, kana, Thai, Lao, Burmese, Khmer, …) every character with its marks is a word, and so is every emoji.
Spaces, punctuation and markup do not count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
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


@lru_cache(1 << 18)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")


def ngrams(words: Sequence[str], n: int) -> NDArray[np.uint64]:
    """Return a 64-bit hash of every n consecutive words, [len(words) − n + 1]; empty for fewer words.

    It is a polynomial of the words' own hashes, so two different n-grams collide with a probability of about 2^-60.
    """
    hashes_W = np.fromiter(map(_word_hash, words), np.uint64, len(words))
    size = max(0, len(words) - n + 1)
    total = np.zeros(size, np.uint64)
    # Horner's rule for all n-grams at once, modulo 2^64: n passes over the array instead of one per n-gram.
    for i in range(n if size else 0):
        total = total * _MULTIPLIER + hashes_W[i : i + size]
    return total


def shingles(words: Sequence[str], n: int) -> NDArray[np.uint64]:
    """Return the sorted set of a text's n-grams; a text of fewer words has one n-gram, a text without words none."""
    hashes_S = np.sort(ngrams(words, min(n, max(len(words), 1))))
    new_S = np.ones(len(hashes_S), bool)
    new_S[1:] = hashes_S[1:] != hashes_S[:-1]
    return hashes_S[new_S]  # as `np.unique`, in half of its time
