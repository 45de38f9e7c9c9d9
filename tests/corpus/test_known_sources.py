"""An unchanged source is read once: what makes a file another one, and what a store must tell of it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.corpus.known_sources import KnownSources, state_of
from pipeline.corpus.scan import scan
from pipeline.corpus.sources.checksums import HashingReader
from pipeline.corpus.sources.finding import find_files
from pipeline.corpus.sources.opening import SourceFile
from stages.ingest import ingest
from tests.corpus.corpora import Here, jsonl, manifest, rows, run

LINES = [{"text": f"some text {i}"} for i in range(20)]


class Counted:
    """Counts the bytes that scans hash."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes, read = 0, HashingReader.readinto

        def counting(reader: HashingReader, buffer: Any) -> int:
            count = read(reader, buffer)
            self.bytes += count
            return count

        monkeypatch.setattr(HashingReader, "readinto", counting)

    def since(self) -> int:
        found, self.bytes = self.bytes, 0
        return found


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def settled(path: Path) -> Path:
    """The file, as if it had been changed an hour ago."""
    an_hour_ago = time.time_ns() - 3600 * 10**9
    os.utime(path, ns=(an_hour_ago, an_hour_ago))
    return path


@pytest.mark.parametrize("slice_bytes", [100, 1 << 20])
@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.json", "x.parquet", "x.txt", "x.csv"])
def test_a_remembered_scan_is_the_scan(tmp_path: Path, name: str, slice_bytes: int, hashed: Counted) -> None:
    from tests.corpus.sources.test_checksums import WRITERS

    (tmp_path / name).write_bytes(WRITERS[name](LINES))
    settled(tmp_path / name)
    (file,), config = find_files(str(tmp_path / name)), manifest().corpus
    fresh = scan(file, config, slice_bytes)
    assert KnownSources(tmp_path / "sources.jsonl").scan(file, config, slice_bytes) == fresh
    assert hashed.since() == 2 * os.path.getsize(tmp_path / name)
    assert KnownSources(tmp_path / "sources.jsonl").scan(file, config, slice_bytes) == fresh
    assert hashed.since() == 0
    again = KnownSources(tmp_path / "sources.jsonl").scan(file, config, slice_bytes + 1)
    assert again.sha256 == fresh.sha256 and hashed.since() > 0


def test_only_the_file_that_changed_is_read_again(tmp_path: Path, hashed: Counted) -> None:
    for name in "abc":
        settled(jsonl(tmp_path / "source" / f"{name}.jsonl", [{"text": f"{name} {i}"} for i in range(50)]))
    first = run(tmp_path / "work", tmp_path / "source")
    assert hashed.since() == sum(path.stat().st_size for path in (tmp_path / "source").iterdir())
    assert run(tmp_path / "work", tmp_path / "source").record == first.record
    assert hashed.since() == 0
    longer = jsonl(tmp_path / "source" / "b.jsonl", [{"text": f"other {i}"} for i in range(60)])
    settled(longer)
    assert "other 59" in run(tmp_path / "work", tmp_path / "source").texts
    assert hashed.since() == longer.stat().st_size


def test_an_evaluation_set_is_read_once_too(tmp_path: Path, hashed: Counted) -> None:
    settled(source := jsonl(tmp_path / "x.jsonl", LINES))
    settled(evaluation := jsonl(tmp_path / "eval.jsonl", [{"text": "a question of an evaluation set"}]))
    for expected in (source.stat().st_size + evaluation.stat().st_size, 0):
        run(tmp_path / "work", source, decontaminate=[{"source": str(evaluation)}])
        assert hashed.since() == expected


def test_a_file_that_was_changed_just_now_is_not_remembered(tmp_path: Path, hashed: Counted) -> None:
    """Times of some file systems are whole seconds: another change within the second would not show."""
    source = jsonl(tmp_path / "x.jsonl", LINES)
    for _ in range(2):
        run(tmp_path / "work", source)
        assert hashed.since() == source.stat().st_size


def test_a_file_of_the_same_size_is_told_by_its_time_or_its_inode(tmp_path: Path, hashed: Counted) -> None:
    settled(source := jsonl(tmp_path / "x.jsonl", [{"text": "some text"}]))
    assert run(tmp_path / "work", source).texts == ["some text"]
    jsonl(source, [{"text": "SOME TEXT"}])
    assert run(tmp_path / "work", source).texts == ["SOME TEXT"]
    times = (before := settled(source).stat()).st_atime_ns, before.st_mtime_ns
    run(tmp_path / "work", source)
    other = jsonl(tmp_path / "other.jsonl", [{"text": "some Text"}])
    os.utime(other, ns=times)
    os.replace(other, source)
    assert source.stat().st_mtime_ns == before.st_mtime_ns
    assert run(tmp_path / "work", source).texts == ["some Text"]


def test_what_is_read_later_is_compared_with_what_was_remembered(tmp_path: Path) -> None:
    """The one change that no state tells, between a scan and the reading that it is for."""
    settled(source := jsonl(tmp_path / "x.jsonl", [{"text": "some text"}]))
    time_ns, config = source.stat().st_mtime_ns, manifest()

    class Killed(Here):
        def map(self, *_: Any, **__: Any) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(config, source=str(source), work=tmp_path / "work", executor=Killed())
    jsonl(source, [{"text": "SOME TEXT"}])
    os.utime(source, ns=(time_ns, time_ns))
    with pytest.raises(Exception, match=r"source changed while it was read: x\.jsonl.*touch"):
        ingest(config, source=str(source), work=tmp_path / "work", executor=Here())
    source.touch()
    record = ingest(config, source=str(source), work=tmp_path / "work", executor=Here())
    assert [row["text"] for row in rows(record, "documents")] == ["SOME TEXT"]


@pytest.mark.parametrize("damage", [b"", b"not a line\n", b"0" * 64 + b" {}\n", b"\xff\x00"])
def test_damaged_lines_are_as_if_they_were_not_there(tmp_path: Path, damage: bytes, hashed: Counted) -> None:
    settled(source := jsonl(tmp_path / "x.jsonl", LINES))
    first = run(tmp_path / "work", source)
    known = tmp_path / "work" / "sources.jsonl"
    whole = known.read_bytes()
    hashed.since()
    known.write_bytes(damage + whole)
    assert (run(tmp_path / "work", source).record == first.record and hashed.since() == 0) or not damage.endswith(b"\n")
    for at in range(0, len(whole), 37):
        known.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        hashed.since()
        assert run(tmp_path / "work", source).record == first.record
        assert hashed.since() == source.stat().st_size
    known.write_bytes(whole[:-10])  # a write that did not end
    assert run(tmp_path / "work", source).record == first.record


# ------------------------------------------------------------------------------------------------- other stores


@pytest.mark.parametrize(
    ("told", "known"),
    [
        ({"ETag": '"abc"'}, True),
        ({"md5Hash": "x", "generation": "5"}, True),
        ({"ETag": 'W/"abc"'}, False),  # weak: the same meaning, perhaps other bytes
        ({"LastModified": "today"}, False),
        ({}, False),
    ],
)
def test_a_store_must_tell_what_differs_for_other_content(
    tmp_path: Path, told: dict[str, Any], known: bool, hashed: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system in memory says what an object store would say."""
    plain = MemoryFileSystem.info
    monkeypatch.setattr(MemoryFileSystem, "info", lambda self, path, **_: {**plain(self, path), **told})
    MemoryFileSystem().pipe_file("/known/x.jsonl", b'{"text": "one"}\n')
    (file,), config = find_files("memory://known/x.jsonl"), manifest().corpus
    for expected in (16, 0 if known else 16):
        KnownSources(tmp_path / "sources.jsonl").scan(file, config, 100)
        assert hashed.since() == expected
    if known:
        told |= {next(iter(told)): "another"}
        KnownSources(tmp_path / "sources.jsonl").scan(file, config, 100)
        assert hashed.since() == 16


def test_a_file_on_the_hub_is_its_commit() -> None:
    url = "hf://datasets/owner/name@" + "0" * 40 + "/a.jsonl"
    assert state_of(SourceFile("a.jsonl", url, "jsonl", None)) == [url]
