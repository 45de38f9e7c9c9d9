"""What is known of a site before any response, by hand."""

from __future__ import annotations

from math import log

import pytest

from pipeline.grpo.data.site_features import LIKENESS, NUMBERS, last_words, site_features
from pipeline.shards.reader import Site


def site(
    doc: str, position: int, context: bytes, target: bytes, *, kind: str = "digit", entropy: float = 2.0, rank: int = 0
) -> Site:
    ends, name = (len(target),), f"{doc}-{position}"
    return Site(name, doc, position, entropy, "hard", "text", context, target, target, ends, kind, 1.5, rank)


SITES = [
    site("a", 9, b"4 apples, 3 pears, 4 plums: ", b" 4", rank=6),
    site("a", 11, b"4 apples, 3 pears, 4 plums: 4, plums: ", b"7", entropy=1.25),
    site("b", 1, b"\xe5\x9b\x9b", b" 4", kind="ideograph"),
    site("c", 0, b"", b"\n"),
]


def test_numbers_by_hand() -> None:
    expected = {
        "entropy": [2, 1.25, 2, 2],
        "surprise": [1.5] * 4,
        "rank": [log(7), 0, 0, 0],
        "position": [log(10), log(12), log(2), 0],
        "target_bytes": [2, 1, 2, 1],
        "context_bytes": [log(29), log(39), log(4), 0],
        "copies": [log(3), 0, 0, 0],  # `4` without the space, twice
        "copy_distance": [log(1 + 28 - 19), log(1 + 39), log(1 + 4), log(1 + 1)],
    }
    assert list(expected) == list(NUMBERS)
    for found, *numbers in zip(map(site_features, SITES), *expected.values(), strict=True):
        assert found.numbers == pytest.approx(numbers)


def test_likeness_by_hand() -> None:
    expected = {
        "target": [b" 4", b"7", b" 4", b"\n"],
        "after_word": [b"plums:", b"plums:", b"\xe5\x9b\x9b", b""],
        "after_words": [b"4 plums:", b"4, plums:", b"\xe5\x9b\x9b", b""],
        "target_after_word": [(b" 4", b"plums:"), (b"7", b"plums:"), (b" 4", b"\xe5\x9b\x9b"), (b"\n", b"")],
        "class": [("digit", "text"), ("digit", "text"), ("ideograph", "text"), ("digit", "text")],
        "document": ["a", "a", "b", "c"],
        "site": ["a-9", "a-11", "b-1", "c-0"],
    }
    assert list(expected) == list(LIKENESS)
    assert [site_features(each).alike for each in SITES] == list(zip(*expected.values(), strict=True))


def test_a_text_without_spaces_is_cut() -> None:
    assert last_words(b"x" * 1000, 1) == b"x" * 24 and last_words(b"", 2) == b""
