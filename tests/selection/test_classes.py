"""Token classes against hand-worked texts and a plain twin that walks over characters."""

from __future__ import annotations

import itertools
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.selection.classes import TOKEN_CLASSES, token_classes
from pipeline.selection.text import TextBytes


def classes(texts: list[str], cuts: list[list[int]]) -> list[list[str]]:
    """Of texts cut into tokens before the given byte offsets, all of them laid end to end."""
    text = TextBytes.of(pa.chunked_array([pa.array(texts, pa.large_string())]))
    begin, end, document, sizes = [], [], [], []
    for string, own, start in zip(texts, cuts, text.starts_D.tolist(), strict=True):
        edges = [0, *own, len(string.encode())]
        begin += [start + edge for edge in edges[:-1]]
        end += [start + edge for edge in edges[1:]]
        document += [start] * (len(edges) - 1)
        sizes.append(len(edges) - 1)
    arrays = [np.array(values, dtype=np.int64) for values in (begin, end, document)]
    names = [TOKEN_CLASSES[code] for code in token_classes(text, *arrays)]
    firsts = np.cumsum([0, *sizes])
    return [names[a:b] for a, b in itertools.pairwise(firsts)]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["The", " cat", "s", " ", "\n\n"], ["word_start", "word_start", "word_part", "whitespace", "whitespace"]),
        ([r"\frac", "{", "12", "}"], ["latex_command", "punctuation", "digit", "punctuation"]),
        (["$", "\\", "math", "bb", "{R}"], ["punctuation", "latex_command"] + ["latex_command"] * 2 + ["punctuation"]),
        ([" \\", "alpha", " alpha"], ["latex_command", "latex_command", "word_start"]),
        (["甲", "数学", "가", "é", "té", "Ω"], ["ideograph"] * 3 + ["word_start", "word_part", "word_part"]),
        (["x", "²", "→", "½", "٣"], ["word_start", "digit", "punctuation", "digit", "digit"]),
        (["🌑", "\u0001"], ["punctuation", "other"]),
        (["a", ".b", "b", "-", "c"], ["word_start", "punctuation", "word_part", "punctuation", "word_start"]),
    ],
)  # fmt: skip
def test_hand_worked(tokens: list[str], expected: list[str]) -> None:
    edges = np.cumsum([len(token.encode()) for token in tokens])[:-1].tolist()
    assert classes(["".join(tokens)], [edges]) == [expected]


def test_a_document_does_not_continue_the_one_before_it() -> None:
    assert classes(["\\", "frac", "a"], [[], [], []]) == [["latex_command"], ["word_start"], ["word_start"]]


def plain(text: str, begin: int, end: int) -> str:
    """The class of bytes begin:end of a text, one character at a time."""
    data = text.encode()
    if data[begin] & 0xC0 == 0x80:
        return "partial_character"
    at = begin
    while at < end and chr(data[at]) in " \t\n\r\f\v":
        at += 1
    if at == end:
        return "whitespace"
    before, character = data[:at].decode(), data[at:].decode()[0]
    is_letter = unicodedata.category(character)[0] in "LM"
    ideograph = any(a <= ord(character) <= b for a, b in [(0x3040, 0x30FF), (0x4E00, 0x9FFF)])
    if at == begin and character.isascii() and character.isalpha():
        letters = len(before) - len(before.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"))
        if before[: len(before) - letters].endswith("\\"):
            return "latex_command"
    if character == "\\":
        return "latex_command"
    if ideograph:
        return "ideograph"
    if is_letter:
        last = before[-1] if before and at == begin else " "
        joined = unicodedata.category(last)[0] in "LM" and not "\u3040" <= last <= "\u9fff"
        return "word_part" if joined else "word_start"
    category = unicodedata.category(character)[0]
    return {"P": "punctuation", "S": "punctuation", "N": "digit", "Z": "whitespace"}.get(category, "other")


@given(
    texts=st.lists(st.text("ab\\ \n1é甲🌑.{\u0301\u00a0\u0001", min_size=1, max_size=12), min_size=1, max_size=4),
    data=st.data(),
)
def test_equals_the_plain_twin(texts: list[str], data: st.DataObject) -> None:
    cuts = [sorted(data.draw(st.sets(st.integers(1, max(1, len(t.encode()) - 1))))) for t in texts]
    cuts = [[c for c in own if c < len(t.encode())] for own, t in zip(cuts, texts, strict=True)]
    expected = []
    for text, own in zip(texts, cuts, strict=True):
        edges = [0, *own, len(text.encode())]
        expected.append([plain(text, a, b) for a, b in itertools.pairwise(edges)])
    assert classes(texts, cuts) == expected
