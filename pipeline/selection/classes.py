"""Token classes: the kind of text of a position, from the bytes of its token and the character before it.

A token's class is that of its first character that is not whitespace. Shape names: P positions, B bytes of documents.
"""

from __future__ import annotations

import unicodedata

import numpy as np
from numpy.typing import NDArray

from pipeline.selection.text import TextBytes

TOKEN_CLASSES = (
    "whitespace",  # nothing but spaces, tabs and line ends
    "digit",  # a number, in any script
    "latex_command",  # a backslash, or letters that continue a run of them after one: `\\frac`, or `frac` after `\\`
    "word_start",  # letters where a word begins
    "word_part",  # letters that continue a word
    "ideograph",  # Chinese, Japanese and Korean characters, which have no spaces between words
    "punctuation",  # punctuation and symbols, `{`, `+` and `→` among them
    "partial_character",  # begins inside a character
    "other",  # control characters, emoji joiners and the like
)
"""The closed list of classes; a class's code is its index."""

_CODE = {name: np.uint8(code) for code, name in enumerate(TOKEN_CLASSES)}
_BACKSLASH = ord("\\")
_SPACES = np.isin(np.arange(256), [ord(c) for c in " \t\n\r\f\v"])
_LETTERS = np.array([chr(b).isascii() and chr(b).isalpha() for b in range(256)])
_IDEOGRAPHS = (
    (0x3040, 0x30FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


def token_classes(
    text: TextBytes, starts_P: NDArray[np.int64], ends_P: NDArray[np.int64], document_P: NDArray[np.int64]
) -> NDArray[np.uint8]:
    r"""Return the class of every position.

    Args:
        text: the documents' bytes, end to end.
        starts_P: offset in `text` at which each token begins.
        ends_P: offset at which it ends.
        document_P: offset at which its document begins; bytes before that are ignored.

    Returns:
        [P] codes: indices into `TOKEN_CLASSES`.

    Example:
        >>> import pyarrow as pa
        >>> text = TextBytes.of(pa.chunked_array([[r"a b1 \frac"]]))
        >>> starts, ends = np.array([0, 1, 3, 4, 6]), np.array([1, 3, 4, 6, 10])
        >>> [TOKEN_CLASSES[code] for code in token_classes(text, starts, ends, np.zeros(5, dtype=np.int64))]
        ['word_start', 'word_start', 'digit', 'latex_command', 'latex_command']
    """
    data_B = text.data_B
    if not len(starts_P):
        return np.zeros(0, dtype=np.uint8)
    index_B = np.arange(len(data_B) + 1)
    next_visible_B = _next(np.append(~_SPACES[data_B], True), index_B)
    at_P = np.minimum(next_visible_B[starts_P], ends_P)
    blank_P = at_P >= ends_P
    at_P = np.where(blank_P, starts_P, at_P)
    kind_P = _kinds(characters(data_B, at_P))

    last_other_B = np.maximum.accumulate(np.where(_LETTERS[data_B], -1, index_B[:-1]))
    before_P = np.maximum(at_P - 1, 0)
    # A token that begins with a space, or at the beginning of its document, has no word before it.
    after_space_P = (at_P > starts_P) | (at_P <= document_P)
    run_P = last_other_B[before_P]
    is_letter_P = (kind_P == _CODE["word_start"]) | (kind_P == _CODE["word_part"])
    ascii_P = _LETTERS[data_B[at_P]]
    # Letters are part of a command if the run of letters that they continue follows a backslash.
    command_P = ~after_space_P & ascii_P & (run_P >= document_P) & (data_B[np.maximum(run_P, 0)] == _BACKSLASH)
    continues_P = is_letter_P & ~after_space_P & _ends_with_letter(data_B, at_P, document_P)

    class_P = np.where(continues_P, _CODE["word_part"], kind_P)
    class_P[command_P] = _CODE["latex_command"]
    class_P[blank_P] = _CODE["whitespace"]
    class_P[text.inside_character(starts_P)] = _CODE["partial_character"]
    return class_P


def _next(marks_B: NDArray[np.bool_], index_B: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each index the first marked index at or after it."""
    return np.minimum.accumulate(np.where(marks_B, index_B, len(index_B))[::-1])[::-1]


def characters(data_B: NDArray[np.uint8], at_P: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the code points of the UTF-8 characters at the given offsets; undefined where no character begins."""
    last = len(data_B) - 1
    b0, b1, b2, b3 = (data_B[np.minimum(at_P + i, last)].astype(np.int32) for i in range(4))
    return np.select(
        [b0 < 0x80, b0 < 0xE0, b0 < 0xF0],
        [
            b0,
            (b0 & 0x1F) << 6 | b1 & 0x3F,
            (b0 & 0x0F) << 12 | (b1 & 0x3F) << 6 | b2 & 0x3F,
        ],
        (b0 & 0x07) << 18 | (b1 & 0x3F) << 12 | (b2 & 0x3F) << 6 | b3 & 0x3F,
    )


def _ends_with_letter(
    data_B: NDArray[np.uint8], at_P: NDArray[np.int64], document_P: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return whether the character before each offset is a letter or a combining mark."""
    before_P = np.maximum(before(data_B, at_P, document_P), 0)
    return (at_P > document_P) & (_kinds(characters(data_B, before_P)) == _CODE["word_start"])


def before(data_B: NDArray[np.uint8], at_P: NDArray[np.int64], document_P: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the offset of the character before each offset, or one less than the document's begin."""
    before_P = at_P - 1
    for _ in range(3):  # back to the byte that begins the character
        inside_P = (data_B[np.maximum(before_P, 0)] & 0xC0 == 0x80) & (before_P > document_P)
        before_P = np.where(inside_P, before_P - 1, before_P)
    return before_P


def _kinds(character_P: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Return the class of every character without regard to what precedes it; looks up each distinct one once."""
    distinct, where_P = np.unique(character_P, return_inverse=True)
    return np.array([_kind(c) for c in distinct.tolist()], dtype=np.uint8)[where_P]


def _kind(character: int) -> int:
    if character == _BACKSLASH:
        return int(_CODE["latex_command"])
    if any(first <= character <= last for first, last in _IDEOGRAPHS):
        return int(_CODE["ideograph"])
    if character > 0x10FFFF:
        return int(_CODE["other"])
    category = unicodedata.category(chr(character))
    if category[0] in "LM":
        return int(_CODE["word_start"])
    if category[0] in "PS":
        return int(_CODE["punctuation"])
    if category[0] == "N":
        return int(_CODE["digit"])
    return int(_CODE["whitespace" if category[0] == "Z" else "other"])
