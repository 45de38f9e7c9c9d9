"""What is read is what was hashed: readers of files that change between the survey and the reading."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.corpus.sources.checksums import BLOCK_BYTES, HashingReader, VerifyingReader
from stages.ingest import ingest
from tests.corpus.corpora import Here, jsonl, manifest, rows


def hashed(data: bytes, block_bytes: int = 10) -> HashingReader:
    reader = HashingReader(io.BytesIO(data), block_bytes)
    while reader.read(7):
        pass
    return reader


@given(st.binary(max_size=60), st.lists(st.tuples(st.integers(0, 70), st.integers(0, 70)), max_size=5))
@settings(max_examples=100)
def test_an_unchanged_file_reads_as_it_is(data: bytes, reads: list[tuple[int, int]]) -> None:
    stream = io.BufferedReader(VerifyingReader(io.BytesIO(data), hashed(data).checksums(), "x"), 8)
    for start, size in reads:
        stream.seek(start)
        assert stream.read(size) == data[start : start + size]
    assert stream.seek(0, io.SEEK_END) == len(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"x",
        lambda data: data[:-1],
        lambda data: data[:20],
        lambda data: b"X" + data[1:],
        lambda data: data[:-1] + b"X",
        lambda data: b"",
    ],
)
@pytest.mark.parametrize("size", [25, 30])
def test_a_changed_file_is_an_error(size: int, change: Callable[[bytes], bytes]) -> None:
    data = bytes(range(size))
    stream = VerifyingReader(io.BytesIO(change(data)), hashed(data).checksums(), "x.jsonl")
    with pytest.raises(UserError, match=r"source changed while it was read: x\.jsonl"):
        stream.readall()


def test_a_part_knows_its_own_blocks_and_ends_with_them() -> None:
    data = bytes(range(45))
    part = hashed(data).checksums().part(12, 28)
    assert (part.first, len(part.blocks), part.end) == (1, 64, 30)
    stream = VerifyingReader(io.BytesIO(data[:30] + b"other"), part, "x")
    stream.seek(12)
    assert stream.readall() == data[12:30]


# ------------------------------------------------------------------------------------------------- through ingest


class Meanwhile(Here):
    """Calls everything in this process, after something happened."""

    def __init__(self, happens: Callable[[], object]) -> None:
        self.happens = happens

    def map(self, function: Callable[[Any], Any], items: Sequence[Any], **_: Any) -> Iterator[Any]:
        self.happens()
        return super().map(function, items)


LINES = [{"text": f"some text {i}"} for i in range(20)]


def _parquet(lines: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(lines), sink, row_group_size=4)
    return sink.getvalue()


def _jsonl(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "x.jsonl": _jsonl,
    "x.jsonl.gz": lambda lines: gzip.compress(_jsonl(lines), mtime=0),
    "x.jsonl.zst": lambda lines: zstandard.compress(_jsonl(lines)),
    "x.json": lambda lines: json.dumps(lines).encode(),
    "x.csv": lambda lines: "\n".join(["text", *(line["text"] for line in lines)]).encode(),
    "x.txt": lambda lines: "\n\n".join(line["text"] for line in lines).encode(),
    "x.parquet": _parquet,
    "x.parquet.gz": lambda lines: gzip.compress(_parquet(lines), mtime=0),
}
CHANGES: dict[str, Callable[[list[dict[str, Any]]], list[dict[str, Any]]]] = {
    "appended": lambda lines: [*lines, *({"text": f"more {i}"} for i in range(5))],
    "edited": lambda lines: [*lines[:-1], {"text": "some text XX"}],
    "cut": lambda lines: lines[:15],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", WRITERS)
def test_a_source_that_changes_between_survey_and_reading_publishes_nothing(
    tmp_path: Path, name: str, change: str
) -> None:
    path, work = tmp_path / name, tmp_path / "work"
    path.write_bytes(before := WRITERS[name](LINES))

    def happens() -> None:
        path.write_bytes(WRITERS[name](CHANGES[change](LINES)))

    config = manifest(near_duplicates=None, document_bytes=1)
    with pytest.raises(UserError, match=f"source changed while it was read: {name}"):
        ingest(config, source=str(path), work=work, executor=Meanwhile(happens), slice_bytes=100)
    assert not list(work.glob("*/*/record.json"))
    path.write_bytes(before)
    record = ingest(config, source=str(path), work=work, executor=Here(), slice_bytes=100)
    assert [row["text"] for row in rows(record, "documents")] == [line["text"] for line in LINES]


def test_an_evaluation_set_that_changes_is_noticed(tmp_path: Path) -> None:
    evaluation = jsonl(tmp_path / "eval.jsonl", LINES)
    source = jsonl(tmp_path / "x.jsonl", [{"text": "one"}, {"text": "two"}])
    config = manifest(decontaminate=[{"source": str(evaluation)}])
    with pytest.raises(UserError, match=r"source changed while it was read: eval\.jsonl"):
        ingest(
            config,
            source=str(source),
            work=tmp_path / "work",
            executor=Meanwhile(lambda: jsonl(evaluation, LINES[:3])),
        )


def test_a_file_of_several_blocks_is_read_whole(tmp_path: Path) -> None:
    lines = [{"text": f"{i} " + "x" * (BLOCK_BYTES // 3)} for i in range(8)]
    path = jsonl(tmp_path / "x.jsonl", lines)
    config = manifest(near_duplicates=None)
    record = ingest(config, source=str(path), work=tmp_path / "work", executor=Here(), slice_bytes=BLOCK_BYTES)
    assert [row["text"] for row in rows(record, "documents")] == [line["text"] for line in lines]
