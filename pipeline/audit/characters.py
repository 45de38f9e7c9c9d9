"""Tokens as text: a character that several tokens split is shown whole, once, and never as bytes."""

from __future__ import annotations

from collections.abc import Sequence

CONTINUES = 0b10
"""First two bits of a byte that continues a character of UTF-8."""


def whole_pieces(tokens: Sequence[bytes], after: bytes = b"") -> list[str]:
    r"""Return the text of consecutive tokens: each has the characters that begin in it, whole.

    A token without a beginning of a character is "", so the texts joined are the text. Bytes that are no whole
    character, as at the end of a text that was cut, appear as \xNN.

    Args:
        tokens: Bytes of the tokens [T].
        after: Bytes that follow them; three complete any character.

    Example:
        >>> whole_pieces([b" \xe5\xa4", b"\xa9", b"\xe5", b"\xb9\xb2."])
        [' 天', '', '干', '.']
        >>> whole_pieces([b"\xa9", b"a\xe5\xa4"], after=b"\xa9"), whole_pieces([b"a\xe5"])
        (['', 'a天'], ['a\\xe5'])
    """
    text, begin = b"".join(tokens) + after, 0
    pieces = []
    for token in tokens:
        first, past = (_begins(text, at) for at in (begin, begin + len(token)))
        pieces.append(text[first:past].decode("utf-8", errors="backslashreplace"))
        begin += len(token)
    return pieces


def whole_span(text: bytes, begin: int, end: int) -> tuple[int, int]:
    r"""Return the range of the whole characters that have a byte in `text[begin:end]`.

    Example:
        >>> whole_span("a天b".encode(), 2, 3), whole_span(b"abc", 1, 2)
        ((1, 4), (1, 2))
    """
    while 0 < begin < len(text) and text[begin] >> 6 == CONTINUES:
        begin -= 1
    return begin, _begins(text, end)


def _begins(text: bytes, at: int) -> int:
    """Return the first byte from `at` on that begins a character."""
    while at < len(text) and text[at] >> 6 == CONTINUES:
        at += 1
    return at
