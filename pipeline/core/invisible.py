"""Escape characters that are invisible or that change how the text around them is displayed."""

from __future__ import annotations


def escape_invisible(content: bytes | str) -> str:
    """Return the text with invisible characters as ⟨U+200B⟩ or control pictures, and bytes that are not UTF-8 as ⟨E4⟩.

    Invisible characters are control, format and unassigned ones; spaces, tabs and line feeds stay.

    Example:
        >>> escape_invisible("a" + chr(0x202E) + "b" + chr(0x1B) + "n")
        'a⟨U+202E⟩b␛n'
        >>> escape_invisible("é".encode()[:1])
        '⟨C3⟩'
    """
    text = content.decode("utf-8", errors="surrogateescape") if isinstance(content, bytes) else content
    return "".join(_shape(c) if not c.isprintable() else c for c in text)


def _shape(character: str) -> str:
    code = ord(character)
    if character in " \n\t":
        return character
    if code == 0x7F:
        return "␡"
    if code < 0x20:
        return chr(0x2400 + code)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, decoded by `surrogateescape`
        return f"⟨{code - 0xDC00:02X}⟩"
    return f"⟨U+{code:04X}⟩"
