"""Many shards: few open files, little memory, and only the columns that a rule names."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from types import FrameType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.audit.verify import verify
from pipeline.config.errors import IntegrityError, UserError
from pipeline.core.artifact import InputFile, content_hash
from pipeline.core.parquet import read_table
from pipeline.shards.reader import ShardReader
from tests.shards.corpus import shard_of
from tests.stages.published import publish_tables

ROOT = Path(__file__).parents[2]

READ = """
import resource, sys
from pathlib import Path
from pipeline.core.artifact import InputFile, content_hash
from pipeline.evaluation.held_out import choose_held_out
from pipeline.shards.order import sites_of_step
from pipeline.shards.reader import ShardReader

resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
files = [InputFile(path) for path in sorted(Path(sys.argv[1]).glob("*.parquet"))]
reader = ShardReader(files, "band = 'hard'", cache_bytes=1)
rows = sites_of_step(len(reader), 0, 0, 400)
assert {reader[int(row)].band for row in rows} == {"hard"}
print(len(files), len(reader), len(choose_held_out(files, "true", 20, 0)))
"""


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shard_of(tmp_path_factory.mktemp("shard")) / "validation.parquet"


@pytest.mark.parametrize("shards", [300, pytest.param(5000, marks=pytest.mark.slow)])
def test_more_shards_than_a_process_may_open(shard: Path, tmp_path: Path, shards: int) -> None:
    for number in range(shards):
        os.link(shard, tmp_path / f"{number:05d}.parquet")
    done = subprocess.run([sys.executable, "-c", READ, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False)
    hard = read_table(InputFile(shard), ["band"])["band"].to_pylist().count("hard")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(shards), str(shards * hard), "20"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_command_on_many_shards(tmp_path: Path) -> None:
    """Train, evaluate, audit, export, status, verify and browse, with fewer descriptors than there are shards.

    `RPT_SHARDS=5000` takes that many, with 256 descriptors.
    """
    shards = int(os.environ.get("RPT_SHARDS", "600"))
    limit = max(128, min(256, shards // 4))
    command = [sys.executable, "-m", "tests.shards.few_descriptors", tmp_path, str(shards), str(limit)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(counts, indent=1))
    assert counts["browse"]["files"] > 6 * shards > 12 * limit


def test_no_shard_is_compared_with_every_other(tmp_path: Path) -> None:
    """Counts calls of `__eq__` while a stage runs and is verified: of a completion and of its file, for each shard."""
    calls = Counter[str]()

    def count(frame: FrameType, event: str, argument: object) -> None:
        calls[frame.f_code.co_name] += event == "call"

    table = pa.table({"number": [1]})
    sys.setprofile(count)
    try:
        record = publish_tables(tmp_path / "toy", "read", [{"numbers": table}] * 50)
        found = verify(tmp_path / "toy")
    finally:
        sys.setprofile(None)
    assert found["stages"][0]["files"] == len(record.shards) == 50
    assert 100 <= calls["__eq__"] < 200


def test_the_limit_of_open_files_is_told_and_no_damage(shard: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
        with pytest.raises(UserError, match=r"file cannot be read: .*validation.parquet \(Too many open files") as told:
            read_table(InputFile(shard))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert not isinstance(told.value, IntegrityError) and "ulimit -n" in told.value.hint


def test_a_rule_reads_the_columns_that_it_names(shard: Path, tmp_path: Path) -> None:
    """Every page of `entropy` is damaged, which only a rule on it can notice."""
    group = pq.ParquetFile(shard).metadata.row_group(0)
    column = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "entropy")
    data = bytearray(shard.read_bytes())
    for at in range(
        column.data_page_offset + column.total_compressed_size // 2,
        column.data_page_offset + column.total_compressed_size,
    ):
        data[at] ^= 0xFF
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(data)
    assert len(ShardReader([InputFile(damaged)], "band = 'hard'")) == len(
        ShardReader([InputFile(shard)], "band = 'hard'")
    )
    with pytest.raises(IntegrityError, match=r"damaged Parquet file: .*damaged\.parquet"):
        ShardReader([InputFile(damaged)], "entropy > 1")


def test_a_site_takes_a_bit(shard: Path, tmp_path: Path) -> None:
    """What stays in memory, without row groups that were read, is about a bit per row and some bytes per shard."""
    rows = pq.ParquetFile(shard).metadata.num_rows
    files = [InputFile(shard)] * 400
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    reader = ShardReader(files, "entropy > 1.2")
    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(reader) > 100 * rows and kept < 400 * (rows / 8 + 1500)


def test_a_shard_that_was_replaced_is_noticed_when_it_is_opened_again(shard: Path, tmp_path: Path) -> None:
    """Its new pages have valid checksums, so that only the hash of the whole file tells."""
    files = []
    for number in range(40):  # more than stay open
        os.link(shard, path := tmp_path / f"{number}.parquet")
        files.append(InputFile(path, content_hash(path)))
    reader = ShardReader(files)
    other = tmp_path / "other.parquet"
    table = pq.read_table(shard)
    pq.write_table(table.slice(1), other)
    os.replace(other, files[0].path)
    with pytest.raises(IntegrityError, match=r"changed after the fact: .*/0\.parquet"):
        reader[0]
    assert reader[len(reader) - 1].site_id == table["site_id"][-1].as_py()
