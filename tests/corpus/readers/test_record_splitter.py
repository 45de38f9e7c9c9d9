from __future__ import annotations

import io
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.readers.record_splitter import array_elements, documents, lines

BYTES = st.binary(max_size=60)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('ab"\\[]{},\n\u0085é'), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


class Trickle(io.BytesIO):
    """A stream that gives a few bytes at a time, so that every block border is somewhere in a record."""

    def __init__(self, data: bytes, step: int) -> None:
        super().__init__(data)
        self.step = step

    def read(self, size: int | None = -1) -> bytes:
        return super().read(self.step)


@given(BYTES, st.integers(1, 9))
def test_lines_are_cut_at_line_feeds_alone(data: bytes, limit: int) -> None:
    pieces = list(lines(io.BytesIO(data), limit=limit))
    expected = [line + b"\n" for line in data.split(b"\n")[:-1]] + [line for line in data.split(b"\n")[-1:] if line]
    assert [piece.size for piece in pieces] == [len(line) for line in expected]
    assert [piece.data for piece in pieces] == [line[:limit] for line in expected]
    assert all(data[piece.offset :].startswith(piece.data) for piece in pieces)


def test_what_other_splitters_take_for_line_ends_stays() -> None:
    data = "a\u0085b\u2028c\x0cd\x0be\rf\n".encode()
    assert [piece.data for piece in lines(io.BytesIO(data))] == [data]


def test_a_line_over_the_limit_keeps_its_beginning_and_its_size() -> None:
    pieces = list(lines(io.BytesIO(b"abcdefgh\nxy\n"), limit=4))
    assert [(p.offset, p.data, p.size) for p in pieces] == [(0, b"abcd", 9), (9, b"xy\n", 3)]


def test_lines_of_a_slice_are_those_that_begin_in_it() -> None:
    stream = io.BytesIO(b"one\ntwo\nthree\n")
    stream.seek(4)
    assert [piece.data for piece in lines(stream, 4, 9)] == [b"two\n", b"three\n"]


@given(st.lists(JSON, max_size=5), st.integers(1, 7), st.sampled_from([None, 1]))
def test_array_elements_are_those_of_json(values: list[object], step: int, indent: int | None) -> None:
    data = json.dumps(values, indent=indent, ensure_ascii=False).encode()
    pieces = list(array_elements(Trickle(data, step)))
    assert [json.loads(piece.data) for piece in pieces] == values
    assert all(data[p.offset : p.offset + p.size] == p.data for p in pieces)


def test_a_broken_element_stays_apart() -> None:
    elements = [piece.data.strip() for piece in array_elements(io.BytesIO(b'[{"a": 1}, {a: 2}, {"a": 3}]'))]
    assert elements == [b'{"a": 1}', b"{a: 2}", b'{"a": 3}']


def test_a_long_element_is_cut() -> None:
    pieces = list(array_elements(Trickle(b'["abcdefgh", 1]', 3), limit=4))
    assert [(p.offset, p.data, p.size) for p in pieces] == [(1, b'"abc', 10), (12, b" 1", 2)]


@pytest.mark.parametrize("data", [b'[{"a": 1}', b'["a', b"[1}x", b"1, 2", b"[1] 2", b"]", b'{"a": [1]}'])
def test_what_is_no_array(data: bytes) -> None:
    with pytest.raises(OSError, match="JSON array"):
        list(array_elements(io.BytesIO(data)))


TEXT = st.text(st.sampled_from("ab \n\n\n\r\t"), max_size=60).map(str.encode)


@given(TEXT, st.integers(1, 30))
def test_documents_hold_every_paragraph_once_and_resume_anywhere(data: bytes, size: int) -> None:
    pieces = list(documents(lines(io.BytesIO(data)), size))
    for piece in pieces:
        assert data[piece.offset : piece.offset + piece.size] == piece.data
        stream = io.BytesIO(data)
        stream.seek(piece.offset)
        assert list(documents(lines(stream, piece.offset), size)) == pieces[pieces.index(piece) :]
        paragraphs = list(documents(lines(io.BytesIO(piece.data)), 1))
        assert piece.size <= size or len(paragraphs) == 1
    assert b"".join(b"".join(p.data for p in pieces).split()) == b"".join(data.split())
    for before, after in pairwise(pieces):
        first = next(documents(lines(io.BytesIO(after.data)), 1))
        assert after.offset + first.size - before.offset > size  # it would not have fitted
