from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.corpus import ValidationConfig
from pipeline.corpus.assignment import assign, shard_starts, write_assignment

IDS = st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=20)


def split_of(
    ids: list[str], rule: ValidationConfig, seed: int = 0, held_out: list[bool] | None = None
) -> list[str | None]:
    held = pl.Series(held_out or [False] * len(ids))
    return assign(pl.Series(ids, dtype=pl.String), held, rule, seed).to_list()


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


@given(st.lists(st.sampled_from([None, "train"]), min_size=1, max_size=30).filter(any), st.integers(1, 5))
def test_shards_hold_their_number_of_documents(
    tmp_path_factory: pytest.TempPathFactory, split: list[str | None], size: int
) -> None:
    series = pl.Series(split, dtype=pl.String)
    starts = shard_starts(series, size)
    parts = [split[start:stop] for start, stop in zip(starts, [*starts[1:], len(split)], strict=True)]
    kept = [len([side for side in part if side]) for part in parts]
    assert kept[:-1] == [size] * (len(parts) - 1)
    assert 1 <= kept[-1] <= size
    path: Path = tmp_path_factory.mktemp("assignment") / "a.parquet"
    write_assignment(path, series, pl.Series([None] * len(split), dtype=pl.String), starts)
    table = pq.ParquetFile(path)
    assert [table.read_row_group(i)["split"].to_pylist() for i in range(table.num_row_groups)] == parts
