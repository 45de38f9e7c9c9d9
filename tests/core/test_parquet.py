"""Rows of published Parquet files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.errors import IntegrityError
from pipeline.core import parquet
from pipeline.core.artifact import InputFile
from pipeline.core.parquet import parquet_writer, read_batches, read_rows, read_rows_in_turn

ROWS = 23


@pytest.fixture(scope="module")
def table() -> pa.Table:
    fields = [[{"name": "é", "start": n, "end": n + 1}] * (n % 3) for n in range(ROWS)]
    return pa.table({"n": range(ROWS), "text": [f"text {n}" * n for n in range(ROWS)], "fields": fields})


@pytest.fixture(scope="module")
def file(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> InputFile:
    path = tmp_path_factory.mktemp("parquet") / "rows.parquet"
    with parquet_writer(path, table.schema) as writer:
        writer.write_table(table, row_group_size=5)
    return InputFile(path)


@pytest.mark.parametrize("read", [read_rows, read_rows_in_turn])
def test_rows_are_those_of_the_whole(table: pa.Table, file: InputFile, read: Callable[..., pa.Table]) -> None:
    for start in range(ROWS + 1):
        for stop in range(start, ROWS + 3):
            assert read(file, start, stop).equals(table.slice(start, stop - start)), (start, stop)


def test_columns_are_chosen(table: pa.Table, file: InputFile) -> None:
    assert read_rows(file, 4, 9, ["fields", "n"]).to_pylist() == table.select(["n", "fields"]).slice(4, 5).to_pylist()


def test_a_row_group_is_unpacked_once_in_turn_and_again_when_its_file_is_changed(
    table: pa.Table, file: InputFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = list[int]()
    whole = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda of, group: unpacked.append(group) or whole(of, group))
    path = tmp_path / "rows.parquet"
    path.write_bytes(file.path.read_bytes())
    for start in range(0, ROWS, 2):
        read_rows_in_turn(InputFile(path), start, start + 2)
    assert unpacked == [0, 1, 2, 3, 4]
    with parquet_writer(path, table.schema) as writer:
        writer.write_table(table.slice(3))
    assert read_rows_in_turn(InputFile(path), 19, 20).equals(table.slice(22, 1))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(IntegrityError, match="damaged"):
        read_rows_in_turn(InputFile(path), 19, 20)


@pytest.mark.parametrize("batch", [1, 3, 5, 256])
def test_batches_are_the_whole(table: pa.Table, file: InputFile, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_BATCH", batch)
    found = list(read_batches(file, ["text"]))
    assert pa.Table.from_batches(found).equals(table.select(["text"])) and max(map(len, found)) == min(batch, ROWS)


def test_a_file_that_was_changed_is_refused_before_its_first_batch(file: InputFile) -> None:
    with pytest.raises(IntegrityError, match="was changed"):
        read_batches(InputFile(file.path, "0" * 64), ["text"])
