"""Characters that tokens split, as one plain loop over characters sees them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.audit.characters import whole_pieces, whole_span


@st.composite
def cut_texts(draw: st.DrawFn) -> tuple[str, list[int]]:
    """A text, and the ends of its tokens in bytes, some of which are empty."""
    text = draw(st.text(st.sampled_from("aé天𝄞\n\x0c\u0301"), max_size=12))
    cuts = draw(st.lists(st.integers(0, len(text.encode())), max_size=12))
    return text, [*sorted(cuts), len(text.encode())]


@given(cut_texts(), st.integers(0, 12))
def test_a_piece_has_the_characters_that_begin_in_its_token(cut: tuple[str, list[int]], shown: int) -> None:
    text, ends = cut
    data, begins = text.encode(), [0, *ends[:-1]]
    starts = [len(text[:i].encode()) for i in range(len(text))]
    expected = [
        "".join(character for character, at in zip(text, starts, strict=True) if begin <= at < end)
        for begin, end in zip(begins, ends, strict=True)
    ]
    tokens = [data[begin:end] for begin, end in zip(begins, ends, strict=True)]
    assert whole_pieces(tokens) == expected
    most = min(shown, len(tokens))
    after = data[([0, *ends])[most] :][:3]
    assert whole_pieces(tokens[:most], after) == expected[:most]


@given(cut_texts(), st.data())
def test_a_span_has_the_characters_that_it_touches(cut: tuple[str, list[int]], data: st.DataObject) -> None:
    text = cut[0]
    size = len(text.encode())
    if not size:
        return
    begin = data.draw(st.integers(0, size - 1))
    end = data.draw(st.integers(begin + 1, size))
    edges = [len(text[:i].encode()) for i in range(len(text) + 1)]
    expected = max(edge for edge in edges if edge <= begin), min(edge for edge in edges if edge >= end)
    assert whole_span(text.encode(), begin, end) == expected
