"""The spread of entropy over scores: exact to a hundredth of a nat, however the scores are cut into files."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.core.artifact import InputFile
from pipeline.core.parquet import parquet_writer
from pipeline.selection.proxy_measures import entropy_spread, quantile
from tests.selection.tables import documents_of, scores_of
from tests.stages.published import cut


def written(folder: Path, tables: list[pa.Table]) -> list[InputFile]:
    files = [InputFile(folder / f"{len(tables)}-{number}.parquet") for number in range(len(tables))]
    for file, table in zip(files, tables, strict=True):
        with parquet_writer(file.path, table.schema) as writer:
            writer.write_table(table)
    return files


@pytest.mark.parametrize("seed", range(5))
def test_quantiles_are_those_of_all_training_positions(seed: int, tmp_path: Path) -> None:
    draws = random.Random(seed)
    splits = ["validation" if i % 4 == 3 else "train" for i in range(20)]
    entropies = [[None, *(draws.gammavariate(2, 1) for _ in range(draws.randrange(30)))] for _ in splits]
    documents = documents_of(["x" * len(each) for each in entropies], splits)
    fields = [["a" if split == "train" else "b"] * len(each) for split, each in zip(splits, entropies, strict=True)]
    ends = [list(range(1, len(each) + 1)) for each in entropies]
    scores = scores_of(documents, ends, entropies, fields)
    count_H, found = entropy_spread(written(tmp_path, [scores]))
    assert found == {"a"}
    assert count_H.tolist() == entropy_spread(written(tmp_path, cut(scores, 3)))[0].tolist()
    expected = sorted(
        round(e, 2) for split, each in zip(splits, entropies, strict=True) if split == "train" for e in each[1:]
    )
    assert count_H.sum() == len(expected)
    for share in (0.1, 0.5, 0.9, 0.99):
        below = sum(e <= quantile(count_H, share) for e in expected)
        before = sum(e < quantile(count_H, share) for e in expected)
        assert before < share * len(expected) <= below


def test_without_scores_there_is_none(tmp_path: Path) -> None:
    count_H, fields = entropy_spread([])
    assert (count_H.sum(), fields, quantile(count_H, 0.5)) == (0, set(), 0.0)
