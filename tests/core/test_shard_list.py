"""The list of an output's shards: it says what the completions say, adds up to what they add up to, and is small."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.base import canonical_json
from pipeline.config.errors import IntegrityError
from pipeline.core import shard_list
from pipeline.core.completion import Completion, Entry
from pipeline.core.shard_list import TEXT_DIGEST, ShardList

NAMES = ["documents", "sites", 'a "quoted" täble', "a.b", "a.b.c", TEXT_DIGEST]
COUNTS = st.integers(0, 2**40)
DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
ENTRIES = st.builds(Entry, st.from_regex(r"[a-z0-9.-]{3,20}x", fullmatch=True), COUNTS, COUNTS, DIGESTS)
COUNTERS = st.dictionaries(st.sampled_from(["documents", "dropped.where", "dropped", "kept.train"]), COUNTS)
COMPLETIONS = st.builds(
    Completion, st.just(0), st.dictionaries(st.sampled_from(NAMES), ENTRIES), COUNTERS, st.floats(0, 1e6)
)
LISTS = st.lists(COMPLETIONS, max_size=9).map(lambda some: [replace(done, shard=i) for i, done in enumerate(some)])


def content(completions: list[Completion], table: str | None = None) -> str:
    """The identity of an output as fingerprints have held it from the first version on."""
    files = [(name, done.shard, entry.sha256) for done in completions for name, entry in done.files.items()]
    hashes = sorted([name, shard, sha256] for name, shard, sha256 in files if table in (None, name))
    return hashlib.sha256(canonical_json(hashes).encode()).hexdigest()


@given(LISTS, st.sampled_from([1, 2, 100]))
def test_a_list_says_what_the_completions_say(completions: list[Completion], rows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_list, "ROWS", rows)
        listed = ShardList.of(completions, Path("work/stage/0123456789ab"))
        assert list(listed.completions()) == completions
        assert ShardList.of(iter(completions), Path("elsewhere")).data == listed.data
    for table in NAMES:
        entries = [done.files.get(table) for done in completions]
        assert listed.files(table) == [entry and (entry.path, entry.sha256) for entry in entries]
        assert listed.rows(table) == [entry.rows if entry else 0 for entry in entries]
    published = [entry for done in completions for entry in done.files.values()]
    assert Counter(listed.sizes()) == Counter((entry.path, entry.bytes) for entry in published)
    found = listed.summary()
    assert found.sizes == {
        "shards": len(completions),
        "files": len(published),
        "rows": sum(entry.rows for entry in published),
        "bytes": sum(entry.bytes for entry in published),
    }
    total: Counter[str] = Counter()
    for done in completions:
        total.update(done.counters)
    assert (found.counters, found.content) == (dict(total), content(completions))
    has_digest = any(TEXT_DIGEST in done.files for done in completions)
    assert found.text_content == content(completions, TEXT_DIGEST if has_digest else None)


def shards(count: int) -> Iterator[Completion]:
    """Completions as `select` leaves them."""
    for shard in range(count):
        sha256 = hashlib.sha256(b"%d" % shard).hexdigest()
        entry = Entry(f"sites-{shard:05d}.{sha256[:12]}.parquet", 1000 + shard % 97, 50_000 + shard % 9973, sha256)
        yield Completion(shard, {"sites": entry}, {f"dropped.reason_{n}": shard % (n + 2) for n in range(27)}, 1.25)


def test_a_shard_takes_a_hundred_bytes_on_disk_and_a_record_none(tmp_path: Path) -> None:
    listed = ShardList.of(shards(20_000), tmp_path).save(tmp_path)
    assert listed.path.stat().st_size < 100 * 20_000
    tracemalloc.start()
    assert sum(done.files["sites"].rows for done in listed.completions()) > 20_000_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < listed.path.stat().st_size + 3_000 * shard_list.ROWS  # those of a row group, and the file itself


def test_the_file_is_read_once(tmp_path: Path) -> None:
    """What was read and hashed is not read again: the list stays as it was, whatever becomes of its file."""
    listed = ShardList.of(shards(3), tmp_path).save(tmp_path)
    rows = listed.rows("sites")
    listed.path.unlink()
    assert rows == [done.files["sites"].rows for done in shards(3)] == listed.rows("sites")
    assert list(listed.completions()) == list(shards(3))
    assert len(listed.files("sites")) == len(list(listed.sizes())) == listed.summary().shards == 3
    with pytest.raises(IntegrityError, match="the list of shards is missing"):
        ShardList(listed.path, listed.sha256).rows("sites")


@pytest.mark.parametrize("what", ["no table", "another column", "half a file", "another type"])
def test_a_foreign_table_is_no_list(tmp_path: Path, what: str) -> None:
    listed = ShardList.of(shards(2), tmp_path)
    table = pq.read_table(pa.BufferReader(listed.data))
    match what:
        case "another column":
            table = table.append_column("victim", [[1, 2]])
        case "half a file":
            table = table.drop_columns(["files/sites/bytes"])
        case "another type":
            table = table.set_column(0, "shard", [["0", "1"]])
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    data = b"no table" if what == "no table" else sink.getvalue().to_pybytes()
    path = tmp_path / "list.parquet"
    path.write_bytes(data)
    forged = ShardList(path, hashlib.sha256(data).hexdigest())
    for read in (lambda: list(forged.completions()), lambda: forged.files("sites"), forged.summary):
        with pytest.raises(IntegrityError, match=r"not a list of shards.*list\.parquet|list\.parquet"):
            read()
