"""Names: capitalised words inside a sentence, which a proxy finds hard and a policy cannot guess.

The rule is cheap and errs: German capitalises all nouns, Chinese has no capitals. Shape names: P positions.
"""

from __future__ import annotations

import unicodedata

import numpy as np
from numpy.typing import NDArray

from pipeline.selection.classes import before, characters
from pipeline.selection.text import TextBytes

_ENDS = frozenset(map(ord, ".!?:;…。！？：；\n\r|*#>\"'“”‘’«»„([{-–—•$\\"))
"""Characters after which a capital begins a sentence, a line, a quotation, a list entry or a formula."""
_BLANK = frozenset(map(ord, " \t\u00a0"))
_BACK = 3
"""Most blanks between a word and the character before it."""


def inner_capitals(text: TextBytes, starts_P: NDArray[np.int64], document_P: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether a token begins a capitalised word that does not begin a sentence.

    The word's first letter is upper case and its second lower case, so that `AB` and the variable `A` are not names.

    Args:
        text: the documents' bytes, end to end.
        starts_P: offset in `text` at which each token begins. It begins a character.
        document_P: offset at which its document begins.

    Example:
        >>> import pyarrow as pa
        >>> text = TextBytes.of(pa.chunked_array([["The boy Tom saw AB. Then"]]))
        >>> inner_capitals(text, np.array([0, 3, 7, 15, 19]), np.zeros(5, dtype=np.int64)).tolist()
        [False, False, True, False, False]
    """
    data_B = text.data_B
    if not len(starts_P):
        return np.zeros(0, dtype=bool)
    last = len(data_B) - 1
    first_P = np.where(data_B[np.minimum(starts_P, last)] == ord(" "), starts_P + 1, starts_P)
    letter_P = characters(data_B, np.minimum(first_P, last))
    second_P = characters(data_B, np.minimum(first_P + _width(letter_P), last))
    before_P = before(data_B, first_P, document_P)
    for _ in range(_BACK):
        blank_P = _in(_code(data_B, before_P), _BLANK) & (before_P >= document_P)
        before_P = np.where(blank_P, before(data_B, before_P, document_P), before_P)
    inside_P = (before_P >= document_P) & ~_in(_code(data_B, before_P), _ENDS) & (before_P < first_P - 1)
    return _category(letter_P, "Lu") & _category(second_P, "Ll") & inside_P


def _code(data_B: NDArray[np.uint8], at_P: NDArray[np.int64]) -> NDArray[np.int32]:
    return characters(data_B, np.maximum(at_P, 0))


def _width(character_P: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the number of UTF-8 bytes of every character."""
    return 1 + np.searchsorted([0x80, 0x800, 0x10000], character_P, side="right")


def _in(character_P: NDArray[np.int32], wanted: frozenset[int]) -> NDArray[np.bool_]:
    return np.isin(character_P, list(wanted))


def _category(character_P: NDArray[np.int32], wanted: str) -> NDArray[np.bool_]:
    """Return whether every character has the Unicode category; looks up each distinct one once."""
    distinct, where_P = np.unique(character_P, return_inverse=True)
    found = [c <= 0x10FFFF and unicodedata.category(chr(c)) == wanted for c in distinct.tolist()]
    return np.array(found, dtype=bool)[where_P]
