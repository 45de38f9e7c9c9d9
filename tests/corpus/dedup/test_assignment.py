"""Splits and shards of documents: what the rules promise, and that nobody sees how much is held in memory at once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.corpus import ValidationConfig
from pipeline.config.errors import IntegrityError
from pipeline.core.artifact import InputFile
from pipeline.corpus.dedup.assignment import (
    CODES,
    DUPLICATE,
    assign,
    count_codes,
    cuts,
    hold_out,
    mark_duplicates,
    read_codes,
    shard_starts,
)
from pipeline.corpus.dedup.candidates import doc_ids_of, keys_of, parts_by_key

IDS = st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=20)


def doc_id(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def split_of(
    ids: list[str], rule: ValidationConfig, seed: int = 0, held_out: list[bool] | None = None
) -> list[str | None]:
    return assign(list(map(doc_id, ids)), held_out or [False] * len(ids), rule, seed)


@given(st.lists(st.sampled_from([doc_id(name) for name in "abcdefghijkl"]), min_size=1, max_size=40), st.integers(1, 9))
def test_the_result_does_not_depend_on_what_is_held_at_once(ids: list[str], at_once: int) -> None:
    keys, held_out = keys_of(ids), np.arange(len(ids)) % 3 == 0
    assert doc_ids_of(keys) == ids
    rules = [ValidationConfig(documents=4), ValidationConfig(fraction=0.3), ValidationConfig(column="c")]
    for rule in rules:
        code = np.zeros(len(ids), np.uint8)
        mark_duplicates(code, keys, at_once=at_once)
        hold_out(code, keys, held_out, rule, 1, at_once)
        expected = assign(ids, held_out.tolist(), rule, 1)
        assert [CODES[c] if c < DUPLICATE else None for c in code] == expected
        assert shard_starts(code, 3, at_once) == shard_starts(code, 3)
        assert count_codes(code, at_once) == {name: [CODES[c] for c in code].count(name) for name in CODES}


@given(
    st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5), min_size=1, max_size=50), st.integers(1, 60), st.booleans()
)
def test_parts_hold_all_rows_once_and_equal_keys_together(
    tmp_path_factory: pytest.TempPathFactory, keys: list[int], at_once: int, mapped: bool
) -> None:
    scratch = tmp_path_factory.mktemp("parts") if mapped else None
    parts = [part.tolist() for part in parts_by_key(np.array(keys, np.uint64), scratch, at_once)]
    assert sorted(row for part in parts for row in part) == list(range(len(keys)))
    assert all(part == sorted(part) for part in parts)
    of = {row: number for number, part in enumerate(parts) for row in part}
    assert len({(keys[row], of[row]) for row in of}) == len(set(keys))


def test_the_draws_are_those_of_every_version_so_far() -> None:
    """The hash of (seed, doc_id) decides who is held out; these are the first three of ten, by hand."""
    ids = [doc_id(name) for name in "abcdefghij"]
    draws = {i: hashlib.sha256(f"validation 7 {i}".encode()).digest()[:8] for i in ids}
    least = sorted(ids, key=draws.__getitem__)[:3]
    split = assign(ids, [False] * 10, ValidationConfig(documents=3), 7)
    assert [i for i, side in zip(ids, split, strict=True) if side == "validation"] == sorted(least, key=ids.index)


@given(IDS, st.integers(0, 12), st.integers(0, 3))
def test_the_first_of_equal_texts_stays_and_the_number_held_out_is_exact(ids: list[str], count: int, seed: int) -> None:
    split = split_of(ids, ValidationConfig(documents=count), seed)
    seen: set[str] = set()
    for doc, side in zip(ids, split, strict=True):
        assert (side is None) == (doc in seen)
        seen.add(doc)
    assert split.count("validation") == min(count, len(seen))


@given(IDS, IDS, st.floats(0, 0.99))
def test_adding_documents_moves_none_to_the_other_side(ids: list[str], more: list[str], fraction: float) -> None:
    rule = ValidationConfig(fraction=fraction)
    before, after = split_of(ids, rule), split_of(ids + more, rule)
    assert after[: len(ids)] == before


def test_the_fraction_is_about_that_share_and_the_seed_chooses() -> None:
    ids = [f"{i:032x}" for i in range(10_000)]
    split = split_of(ids, ValidationConfig(fraction=0.1))
    assert 900 < split.count("validation") < 1100  # 1000 ± 3.3 standard deviations
    assert split_of(ids, ValidationConfig(fraction=0.1), seed=1) != split
    assert split_of(ids, ValidationConfig(documents=5), seed=1) != split_of(ids, ValidationConfig(documents=5))


def test_a_column_decides_by_the_first_of_equal_texts() -> None:
    split = split_of(["a", "b", "a"], ValidationConfig(column="split"), held_out=[False, True, True])
    assert split == ["train", "validation", None]


@given(
    st.lists(st.integers(0, len(CODES) - 1), min_size=1, max_size=30).filter(lambda codes: min(codes) < DUPLICATE),
    st.integers(1, 5),
)
def test_shards_hold_their_number_of_documents(
    tmp_path_factory: pytest.TempPathFactory, codes: list[int], size: int
) -> None:
    code = np.array(codes, np.uint8)
    starts = shard_starts(code, size)
    parts = [codes[start:stop] for start, stop in zip(starts, [*starts[1:], len(codes)], strict=True)]
    kept = [len([c for c in part if c < DUPLICATE]) for part in parts]
    assert kept[:-1] == [size] * (len(parts) - 1)
    assert 1 <= kept[-1] <= size
    path: Path = tmp_path_factory.mktemp("assignment") / "assignment.bin"
    path.write_bytes(code.tobytes())
    rows = [(row["start"], row["stop"], row["hash"]) for row in cuts(code, starts).to_pylist()]
    assert [read_codes(InputFile(path), *row).tolist() for row in rows] == parts


def test_a_changed_byte_of_a_shard_is_found_by_that_shard_alone(tmp_path: Path) -> None:
    """A shard reads its own bytes only, so that many shards read the file once and not once each."""
    code = np.zeros(10, np.uint8)
    rows = [(row["start"], row["stop"], row["hash"]) for row in cuts(code, [0, 4, 8]).to_pylist()]
    path = tmp_path / "assignment.bin"
    path.write_bytes(b"\0" * 5 + b"\1" + b"\0" * 4)
    assert read_codes(InputFile(path), *rows[0]).tolist() == [0] * 4
    with pytest.raises(IntegrityError, match=r"changed after the fact: .*assignment\.bin"):
        read_codes(InputFile(path), *rows[1])
    path.write_bytes(b"\0" * 9)
    with pytest.raises(IntegrityError, match=r"assignment\.bin"):
        read_codes(InputFile(path), *rows[2])
    path.unlink()
    with pytest.raises(IntegrityError, match=r"missing or was changed"):
        read_codes(InputFile(path), *rows[0])
