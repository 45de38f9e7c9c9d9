"""Which tokens begin a name: a capitalised word inside a sentence."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.selection.names import inner_capitals
from pipeline.selection.text import TextBytes


def names_in(*texts: str) -> list[str]:
    """The words that are names, of texts that are cut before every space, as BPE cuts them."""
    text = TextBytes.of(pa.chunked_array([pa.array(texts, pa.large_string())]))
    places = []
    for begin, each in zip(text.starts_D.tolist(), texts, strict=True):
        data = each.encode()
        starts = [0, *(i for i in range(1, len(data)) if data[i : i + 1] == b" ")]
        places += [(begin + s, begin, data[s:].split()[0].decode()) for s in starts if data[s:].strip()]
    starts_P, document_P = (np.array([p[i] for p in places], dtype=np.int64) for i in (0, 1))
    found = inner_capitals(text, starts_P, document_P)
    return [word for (*_, word), is_name in zip(places, found.tolist(), strict=True) if is_name]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tom met Ann in Rome. Then he left", ["Ann", "Rome."]),
        ("Let ABC be a triangle, A a point", []),  # the second letter decides
        ("end! Next: Title\nLine one", []),
        ("er traf Élise und Ōe", ["Élise", "Ōe"]),  # characters of two bytes
        ("说 Tom", ["Tom"]),
        ("说。 Tom", []),
        ("a  Bob", ["Bob"]),
        ("", []),
        (" Bob", []),
    ],
)
def test_names(text: str, expected: list[str]) -> None:
    assert names_in(text) == expected


def test_the_document_before_does_not_count() -> None:
    assert names_in("no end", "Bob saw Ann") == ["Ann"]
