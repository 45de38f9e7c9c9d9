"""The files: the same rows in three readers, the same bytes twice, few bytes a row."""

from __future__ import annotations

from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.shards.schema import SHARDS, SPLITS
from pipeline.shards.writer import ENCODINGS, write_shards
from tests.shards.corpus import made, shard_of, texts


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shard_of(tmp_path_factory.mktemp("shard"))


def test_pyarrow_polars_and_duckdb_read_the_same_rows(shard: Path, tmp_path: Path) -> None:
    for split in SPLITS:
        path = shard / f"{split}.parquet"
        written = pa.concat_tables(made(tmp_path).tables(split, 1 << 20))
        assert pq.read_table(path, page_checksum_verification=True).equals(written)
        assert pl.read_parquet(path).to_arrow().cast(SHARDS).equals(written)
        assert pl.scan_parquet(path).filter(pl.col("position") == 9).collect().height == _count(written, 9)
        with duckdb.connect() as database:
            rows = database.sql(f"SELECT * FROM '{path}'").to_arrow_table()
            assert rows.cast(SHARDS).combine_chunks().equals(written.combine_chunks())
            counted = database.sql(f"SELECT count(*), sum(octet_length(context)) FROM '{path}' WHERE position = 9")
            wanted = written.filter(pc.equal(written["position"], 9))
            assert counted.fetchall() == [(wanted.num_rows, pc.sum(pc.binary_length(wanted["context"])).as_py())]


def _count(table: pa.Table, position: int) -> int:
    return pc.sum(pc.equal(table["position"], position)).as_py()


def test_the_same_rows_give_the_same_bytes(shard: Path, tmp_path: Path) -> None:
    again = shard_of(tmp_path)
    for split in SPLITS:
        assert (again / f"{split}.parquet").read_bytes() == (shard / f"{split}.parquet").read_bytes()


def test_layout_of_the_file(shard: Path) -> None:
    file = pq.ParquetFile(shard / "train.parquet")
    sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
    assert len(sizes) > 3 and set(sizes[:-1]) == {256} and 0 < sizes[-1] <= 256
    assert file.schema_arrow.equals(SHARDS)
    assert file.schema_arrow.metadata == {b"rpt.version": b"1"}
    columns = [file.metadata.row_group(0).column(c) for c in range(file.metadata.num_columns)]
    assert {c.compression for c in columns} == {"ZSTD"}
    encodings = {c.path_in_schema: c.encodings for c in columns}
    assert all(encoding in encodings[leaf] for leaf, encoding in ENCODINGS.items())


def test_rows_are_sorted_by_document_and_position(shard: Path) -> None:
    rows = pq.read_table(shard / "train.parquet", columns=["doc_id", "position"]).to_pylist()
    order = {doc_id: n for n, doc_id in enumerate(dict.fromkeys(row["doc_id"] for row in rows))}
    keys = [(order[row["doc_id"]], row["position"]) for row in rows]
    assert keys == sorted(keys)


def test_a_split_without_rows_has_no_file(tmp_path: Path) -> None:
    nothing = made(tmp_path, share=0)
    write_shards(tmp_path, nothing, 256, {})
    assert not list(tmp_path.glob("*.parquet"))


def test_a_row_costs_little_more_than_what_it_adds(tmp_path: Path) -> None:
    """19 bytes of text lie between sites, and contexts are 453 bytes long on average."""
    write_shards(tmp_path, made(tmp_path, max_context_tokens=4096), 2048, {})
    metadata = pq.read_metadata(tmp_path / "train.parquet")
    assert metadata.num_row_groups == 1
    contexts = metadata.row_group(0).column(SHARDS.names.index("context"))
    text = sum(len(text.encode()) for text in texts())
    assert contexts.total_uncompressed_size < 1.5 * text, "contexts do not share their prefixes"
    assert contexts.total_compressed_size < 8 * metadata.num_rows
    assert (tmp_path / "train.parquet").stat().st_size < 45 * metadata.num_rows
