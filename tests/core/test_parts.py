"""Parts of a shard: a chain that survives kills, and whose boundaries leave no trace in what is put together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.errors import IntegrityError
from pipeline.core import parts as module
from pipeline.core.artifact import content_hash, scratch_folder
from pipeline.core.parquet import write_tables
from pipeline.core.parts import Parts, Rows, Teller, parts_folder, remove_parts, share_done

SCHEMA = pa.schema([pa.field("number", pa.int64(), nullable=False), pa.field("names", pa.list_(pa.string()))])
ITEMS = 23


@pytest.fixture(autouse=True)
def publish_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.0)


def rows(start: int, stop: int) -> Rows:
    """Items start … stop−1; each third has no row, and is counted as lost."""
    kept = [n for n in range(start, stop) if n % 3]
    table = pa.Table.from_pylist([{"number": n, "names": ["ab" * n] * (n % 4)} for n in kept], schema=SCHEMA)
    lost = stop - start - len(kept)
    return Rows(stop - start, {"numbers": table} | ({"lost": table.slice(0, 0)} if lost else {}), {"lost": lost}, 10)


def scratch(work: Path) -> Path:
    return work / "tmp" / "00007.abc"


def assembled(work: Path) -> tuple[str, dict[str, int]]:
    whole = Parts(scratch(work), ITEMS)
    assert whole.done == ITEMS
    write_tables(work / "numbers.parquet", SCHEMA, whole.tables("numbers"), metadata={"a": "b"}, row_group=4)
    return content_hash(work / "numbers.parquet"), whole.counters()


@settings(deadline=None, max_examples=20)
@given(cuts=st.lists(st.integers(1, ITEMS - 1), unique=True), killed=st.sets(st.integers(0, 30)))
def test_boundaries_leave_no_trace(cuts: list[int], killed: set[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever the parts and the interruptions, the file has the bytes of one that was written at once."""
    plain, work = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("work")
    Parts(scratch(plain), ITEMS).add(rows(0, ITEMS))
    parts, ends = Parts(scratch(work), ITEMS), [*sorted(cuts), ITEMS]
    for n, stop in enumerate(ends):
        parts.add(rows(parts.done, stop))
        if n in killed:
            parts = Parts(scratch(work), ITEMS)  # a new process
            assert parts.done == stop
    assert assembled(work) == assembled(plain)
    assert len(list(parts_folder(work, 7).glob("0*"))) == len(ends)


def test_progress_counts_what_waits_and_what_an_earlier_run_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Parts(scratch(tmp_path), ITEMS).add(rows(0, 5))
    monkeypatch.setattr(module, "SECONDS", 1e9)
    parts = Parts(scratch(tmp_path), ITEMS)
    parts.add(rows(5, 12))
    other = Parts(tmp_path / "tmp" / "00008.abc", 4)
    other.add(rows(0, 1))
    assert share_done(tmp_path) == pytest.approx((12 / 23 + 1 / 4, 30))
    assert Parts(scratch(tmp_path), ITEMS).done == 5, "what waits is not published"
    remove_parts(tmp_path, 8)
    assert share_done(tmp_path) == pytest.approx((12 / 23, 20))


def test_a_half_written_part_is_none(tmp_path: Path) -> None:
    parts = Parts(scratch(tmp_path), ITEMS)
    parts.add(rows(0, 5))
    folder = parts_folder(tmp_path, 7)
    shutil.copytree(folder / "00000000", folder / ".00000005.killed")
    (folder / "00000000" / "part.json").unlink()
    again = Parts(scratch(tmp_path), ITEMS)
    assert again.done == 0
    again.add(rows(0, ITEMS))
    assert assembled(tmp_path)[1] == {"lost": 8}


def test_the_first_of_two_processes_counts(tmp_path: Path) -> None:
    """Without a lock two may compute the same shard, each with its own boundaries."""
    one, two = (Parts(scratch(tmp_path), ITEMS) for _ in range(2))
    one.add(rows(0, 10))
    two.add(rows(0, 12))
    two.add(rows(12, ITEMS))
    assert (two.done, Parts(scratch(tmp_path), ITEMS).done) == (ITEMS, 10)
    rest = Parts(scratch(tmp_path), ITEMS)
    rest.add(rows(10, ITEMS))
    assert assembled(tmp_path)[1] == {"lost": 8}


@pytest.mark.parametrize("name", ["part.json", "numbers.parquet"])
def test_a_damaged_part_is_named(tmp_path: Path, name: str) -> None:
    Parts(scratch(tmp_path), ITEMS).add(rows(0, ITEMS))
    path = parts_folder(tmp_path, 7) / "00000000" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x20
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=name):
        list(Parts(scratch(tmp_path), ITEMS).tables("numbers"))


def test_progress_of_a_published_shard_is_gone(tmp_path: Path) -> None:
    Parts(scratch(tmp_path), ITEMS).add(rows(0, 1))
    assert json.loads((parts_folder(tmp_path, 7) / "progress.json").read_text()) == [pytest.approx(1 / 23), 10]
    remove_parts(tmp_path, 7)
    assert share_done(tmp_path) == (0, 0)


def test_a_shard_without_parts_tells_how_far_it_is_as_long_as_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TELL_EVERY", 0.0)
    with scratch_folder(tmp_path, 0) as first, scratch_folder(tmp_path, 1) as second:
        known, unknown = Teller(first, 4), Teller(second)
        for _ in range(3):
            known.add()
        unknown.add(10)
        assert share_done(tmp_path) == (0.75, 13), "how much of the second there is nobody knows"
        known.add(5)
        assert share_done(tmp_path) == (1.0, 18), "never more than the whole"
        assert list(first.iterdir()) == [], "it would be published"
    assert share_done(tmp_path) == (0, 0) and list((tmp_path / "tmp").iterdir()) == []


def test_a_teller_writes_seldom(tmp_path: Path) -> None:
    with scratch_folder(tmp_path, 0) as out:
        Teller(out, 4).add()
        assert share_done(tmp_path) == (0, 0)
