"""The plan of ingest: which slices are read, which shards are written, and how shards cover slices."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pipeline.config.base import canonical_json
from pipeline.config.corpus import CorpusConfig
from pipeline.core.artifact import InputFile, Record, Shard
from pipeline.core.parquet import read_table
from pipeline.corpus.readers.dispatch import is_cut_by_bytes
from pipeline.corpus.readers.records import Slice
from pipeline.corpus.scan import PIECES, Scan
from pipeline.corpus.sources.archives import Member
from pipeline.corpus.sources.checksums import Checksums
from pipeline.corpus.sources.opening import SourceFile

FILES_PER_SHARD = 1000
"""Most files that are read by one shard."""

_PACKED = ("parquet", "orc", "feather", "arrow", "dataset")
_EXPANSION = 8
"""What a byte of a compressed file counts, for about as many bytes of records in each shard."""


def read_shards(surveys: Sequence[Scan], slice_bytes: int) -> list[Shard]:
    """Return the shards of `read`, in source order. Small files share one, up to `slice_bytes` of them."""
    parts = [asdict(part) for about in surveys for part in about.slices]
    counts = _shared([_bytes(part) for about in surveys for part in about.slices], slice_bytes)
    stops = np.cumsum(counts).tolist()
    return [
        Shard(index, {}, {"slices": parts[stop - count : stop]})
        for index, (count, stop) in enumerate(zip(counts, stops, strict=True))
    ]


def count_read_shards(files: Sequence[SourceFile], sizes: Sequence[int], config: CorpusConfig, slice_bytes: int) -> int:
    """Return about how many shards `read` has, which can be told before the files are scanned.

    Args:
        files: files of one source, in order.
        sizes: stored bytes of each.
        config: how they are read.
        slice_bytes: as for `read_shards`.
    """
    expected: list[int] = []
    for file, size in zip(files, sizes, strict=True):
        unpacked = size * _expansion(file)
        pieces = 1
        if size > slice_bytes and is_cut_by_bytes(file, config):
            pieces = -(-unpacked // slice_bytes)
            pieces = min(pieces, PIECES) if file.compression else pieces
        elif size > slice_bytes and file.format == "parquet":
            pieces = -(-size // slice_bytes)
        expected += [unpacked] if pieces == 1 else [sys.maxsize] * pieces
    return len(_shared(expected, slice_bytes))


def _shared(sizes: Sequence[int], slice_bytes: int) -> list[int]:
    """Return how many slices each shard reads, in order, from the slices' sizes.

    Example:
        >>> _shared([40, 50, 30, 200, 10], 100), len(_shared([1] * 2500, 10_000))
        ([2, 1, 1, 1], 3)
    """
    counts: list[int] = []
    room = 0
    for size in sizes:
        if not counts or size > room or counts[-1] == FILES_PER_SHARD:
            counts.append(0)
            room = slice_bytes
        counts[-1] += 1
        room -= size
    return counts


def _bytes(part: Slice) -> int:
    """Return about how many bytes of records a slice has. A part of a file counts as too many to share a shard."""
    about = part.file.checksums
    if about is None or part.start or part.stop is not None:
        return sys.maxsize
    return about.size * _expansion(part.file)


def _expansion(file: SourceFile) -> int:
    return _EXPANSION if file.compression or file.format in _PACKED else 1


def shard_slices(shard: Shard) -> list[Slice]:
    """Return the slices that `read_shards` put into a shard."""
    return [as_slice(details) for details in shard.details["slices"]]


def as_slice(details: Mapping[str, Any]) -> Slice:
    """Return the slice whose `asdict` is `details`."""
    file = details["file"]
    checksums = Checksums(**file["checksums"]) if file["checksums"] else None
    member = Member(*file["member"]) if file["member"] else None
    rows = tuple((start, stop) for start, stop in file["rows"]) if file["rows"] is not None else None
    own = {"checksums": checksums, "member": member, "rows": rows}
    return Slice(**{**details, "file": SourceFile(**{**file, **own})})


def source_digest(surveys: Sequence[Scan], shards: Sequence[Shard] = ()) -> str:
    """Return the identity of the source: names below its root, contents and cuts, but not its location.

    With the shards of `read`, it depends on how many slices each of them reads, too.
    """
    cuts = [
        [s.file.name, s.sha256, [[part.start, part.stop, part.row] for part in s.slices]]
        + ([s.file.rows] if s.file.rows is not None else [])
        for s in surveys
    ]
    shared = [len(shard.details["slices"]) for shard in shards]
    return hashlib.sha256(canonical_json([cuts, shared] if shared else cuts).encode()).hexdigest()


def near_shards(candidates: Record, evaluations: Sequence[Sequence[Scan]]) -> list[Shard]:
    """Return a shard for every table of candidates, each with content hash and slices of every evaluation set."""
    sets = [
        [source_digest(surveys), [asdict(part) for about in surveys for part in about.slices]]
        for surveys in evaluations
    ]
    tables = [published_file(candidates, "documents", shard) for shard in candidates.shards]
    return [Shard(index, {"documents": file}, {"evaluations": sets}) for index, file in enumerate(tables)]


def shard_evaluations(shard: Shard) -> tuple[tuple[str, tuple[Slice, ...]], ...]:
    """Return content hash and slices of each evaluation set, which `near_shards` put into a shard."""
    return tuple((content, tuple(map(as_slice, parts))) for content, parts in shard.details["evaluations"])


def assign_shard(candidates: Record, near: Record | None) -> Shard:
    """Return the single shard that decides for all candidates, with the tables of `near` if there are some."""
    files: dict[str, InputFile] = {}
    for record, tables in ((candidates, ["documents"]), (near, ["bands", "overlaps"])):
        for shard in record.shards if record else ():
            files |= {f"{name}-{shard:05d}": published_file(record, name, shard) for name in tables if record}
    return Shard(0, files, {})


def shard_files(shard: Shard, table: str) -> list[InputFile]:
    """Return the files of one table that `assign_shard` put into a shard, in order."""
    return [file for name, file in shard.files.items() if name.startswith(f"{table}-")]


def ingest_shards(candidates: Record, assigned: Record) -> list[Shard]:
    """Return the shards that the assignment cuts, with their rows of candidate tables and their quarantine tables."""
    assignment = assigned.files("assignment")[0]
    cuts = read_table(assigned.files("cuts")[0])
    starts, stops = (cuts[name].to_numpy() for name in ("start", "stop"))
    rows = np.array(candidates.shard_list.rows("documents"))
    ends = np.cumsum(rows)
    begins = ends - rows
    shards = []
    for shard, (start, stop, codes) in enumerate(zip(starts, stops, cuts["hash"].to_pylist(), strict=True)):
        documents = {
            f"documents-{i:05d}": (i, int(max(start, begins[i]) - begins[i]), int(min(stop, ends[i]) - begins[i]))
            for i in range(int(np.searchsorted(ends, start, "right")), int(np.searchsorted(begins, stop, "left")))
        }
        # Every quarantine table goes to the shard in whose rows its table of candidates begins, and tables after the
        # last row to the last shard, so that none is lost and none is taken twice.
        after = len(begins) if shard == len(stops) - 1 else int(np.searchsorted(begins, stop, "left"))
        rejects = range(int(np.searchsorted(begins, start, "left")), after)
        files: dict[str, InputFile] = {"assignment": assignment}
        files |= {name: published_file(candidates, "documents", i) for name, (i, _, _) in documents.items()}
        files |= {f"quarantine-{i:05d}": published_file(candidates, "quarantine", i) for i in rejects}
        details = {
            "candidates": (int(start), int(stop), codes),
            "documents": [(name, begin, end) for name, (_, begin, end) in documents.items()],
            "quarantine": [f"quarantine-{i:05d}" for i in rejects],
        }
        shards.append(Shard(shard, files, details))
    return shards


def published_file(record: Record, table: str, shard: int) -> InputFile:
    """Return the file of a table that every shard publishes."""
    file = record.file(table, shard)
    assert file is not None, f"{table} of shard {shard}"
    return file
