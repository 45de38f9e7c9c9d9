"""Reading shards: any row, those that match, damage found, and the order of steps."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.config.errors import IntegrityError, UserError
from pipeline.core.artifact import InputFile
from pipeline.shards.reader import SITE_COLUMNS, ShardReader, Site
from pipeline.shards.schema import SHARDS
from tests.shards.corpus import shard_of


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shard_of(tmp_path_factory.mktemp("shard"))


def published(*paths: Path) -> list[InputFile]:
    return [InputFile(path, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]


@pytest.fixture(scope="module")
def files(shard: Path) -> list[InputFile]:
    return published(shard / "train.parquet", shard / "validation.parquet")


def rows_of(files: list[InputFile]) -> list[Site]:
    """The plain way: everything at once."""
    rows = [row for file in files for row in pq.read_table(file.path).to_pylist()]
    for row in rows:
        row["boundaries"] = tuple(np.cumsum(row["token_lengths"]).tolist())
    return [Site(**{name: row[name] for name in Site.__dataclass_fields__}) for row in rows]


@pytest.mark.parametrize("cache_bytes", [1, 100_000, 1 << 29])
def test_any_row_at_any_time(files: list[InputFile], cache_bytes: int) -> None:
    reader, rows = ShardReader(files, cache_bytes=cache_bytes), rows_of(files)
    assert len(reader) == len(rows)
    order = np.random.default_rng(0).permutation(len(rows))[:200]
    assert [reader[i] for i in order] == [rows[i] for i in order]
    assert [reader[0], reader[len(rows) - 1], reader[0]] == [rows[0], rows[-1], rows[0]]
    assert list(reader.site_ids()) == [row.site_id for row in rows]
    for outside in (-1, len(rows)):
        with pytest.raises(IndexError):
            reader[outside]
    assert [site.site_id for site in ShardReader(files)] == [row.site_id for row in rows]  # ends by itself


def test_only_the_rows_that_match(files: list[InputFile]) -> None:
    reader = ShardReader(files, "band = 'hard' AND position > 10 AND NOT context_truncated")
    matching = []
    for file in files:
        table = pq.read_table(file.path)
        hard = pc.and_(pc.equal(table["band"], "hard"), pc.greater(table["position"], 10))
        matching += table.filter(pc.and_(hard, pc.invert(table["context_truncated"])))["site_id"].to_pylist()
    assert 0 < len(matching) < len(rows_of(files))
    assert [reader[i].site_id for i in range(len(reader))] == matching


def test_where_may_name_the_columns_of_a_site_but_not_its_bytes(files: list[InputFile]) -> None:
    assert set(SITE_COLUMNS) == set(SHARDS.names) - {"context", "target", "continuation", "token_lengths"}
    ShardReader(files, " AND ".join(f"{name} IS NOT NULL" for name in SITE_COLUMNS))
    with pytest.raises(UserError, match="names `context`, which is not a column"):
        ShardReader(files, "context = 'a'")
    with pytest.raises(UserError, match="did you mean `band`"):
        ShardReader(files, "bnd = 'hard'")


def test_nothing_to_read_is_told(files: list[InputFile]) -> None:
    with pytest.raises(UserError, match=r"no site to read: band = 'none' \([\d,]+ sites in 2 shards"):
        ShardReader(files, "band = 'none'")
    with pytest.raises(UserError, match="0 sites in 0 shards"):
        ShardReader([])


def test_content_names_files_order_and_expression(files: list[InputFile], shard: Path) -> None:
    same = [InputFile(file.path) for file in files]  # hashes found, not given
    assert ShardReader(files).content == ShardReader(same).content
    others = [ShardReader(files[::-1]), ShardReader(files[:1]), ShardReader(files, "position > 3")]
    assert len({reader.content for reader in [ShardReader(files), *others]}) == 4


# -------------------------------------------------------------------------------------------------- damage


def test_a_flipped_byte_is_found_at_the_start(shard: Path, tmp_path: Path) -> None:
    (file,) = published(shard / "train.parquet")
    data = bytearray(file.path.read_bytes())
    data[len(data) // 2] ^= 1
    changed = tmp_path / "train.parquet"
    changed.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"changed after the fact: .*train\.parquet"):
        ShardReader([InputFile(changed, file.sha256)])
    with pytest.raises(IntegrityError, match=r"missing: .*gone\.parquet"):
        ShardReader([InputFile(tmp_path / "gone.parquet", file.sha256)])


def test_no_flipped_byte_changes_a_row_that_is_read(shard: Path, tmp_path: Path) -> None:
    """Files are changed after they were opened. Page headers have no checksum: damage there may go unnoticed, as long
    as no row differs. (zstd notices most flips by itself, but not all.)"""
    path = Path(shutil.copy(shard / "train.parquet", tmp_path))
    files, original = published(path), path.read_bytes()
    rows = range(0, 256, 16)
    intact = [ShardReader(files)[i] for i in rows]
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = {group.column(c).path_in_schema: group.column(c) for c in range(group.num_columns)}
    found = 0
    for name in ("context", "continuation", "token_lengths.list.element", "entropy"):
        begin, size = columns[name].data_page_offset, columns[name].total_compressed_size
        for at in range(begin, begin + size, size // 25):
            path.write_bytes(original)
            reader = ShardReader(files)
            with path.open("r+b") as file:
                file.seek(at)
                file.write(bytes([original[at] ^ 1]))
            try:
                assert [reader[i] for i in rows] == intact
            except IntegrityError as error:
                assert "damaged Parquet file" in str(error) and str(path) in str(error)
                assert reader[len(reader) - 1].site_id  # another row group
                found += 1
    assert found > 80


def test_other_files_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "train.parquet"
    text.write_text("no Parquet at all")
    with pytest.raises(IntegrityError, match=r"damaged Parquet file: .*train\.parquet"):
        ShardReader(published(text))
    pq.write_table(SHARDS.empty_table().drop(["context"]), text)
    with pytest.raises(UserError, match=r"not a table of shards: .*train\.parquet"):
        ShardReader(published(text))
