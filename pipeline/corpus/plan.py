"""The plan of ingest: which slices are read, which shards are written, and how shards cover slices."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipeline.config.base import canonical_json
from pipeline.core.artifact import InputFile, Record, Shard
from pipeline.corpus.archives import Member
from pipeline.corpus.checksums import Checksums
from pipeline.corpus.opening import SourceFile
from pipeline.corpus.readers.records import Slice
from pipeline.corpus.scan import Scan

FILES_PER_SHARD = 1000
"""Most files that are read by one shard."""

_PACKED = ("parquet", "orc", "feather", "arrow", "dataset")
_EXPANSION = 8
"""What a byte of a compressed file counts, for about as many bytes of records in each shard."""


def read_shards(surveys: Sequence[Scan], slice_bytes: int) -> list[Shard]:
    """Return the shards of `read`, in source order. Small files share one, up to `slice_bytes` of them."""
    groups: list[list[Slice]] = []
    room = 0
    for part in (part for about in surveys for part in about.slices):
        size = _bytes(part)
        if not groups or size > room or len(groups[-1]) == FILES_PER_SHARD:
            groups.append([])
            room = slice_bytes
        groups[-1].append(part)
        room -= size
    return [Shard(index, {}, {"slices": [asdict(part) for part in group]}) for index, group in enumerate(groups)]


def _bytes(part: Slice) -> int:
    """Return about how many bytes of records a slice has. A part of a file counts as too many to share a shard."""
    about = part.file.checksums
    if about is None or part.start or part.stop is not None:
        return sys.maxsize
    packed = part.file.compression or part.file.format in _PACKED
    return about.size * (_EXPANSION if packed else 1)


def shard_slices(shard: Shard) -> list[Slice]:
    """Return the slices that `read_shards` put into a shard."""
    return [as_slice(details) for details in shard.details["slices"]]


def as_slice(details: Mapping[str, Any]) -> Slice:
    """Return the slice whose `asdict` is `details`."""
    file = details["file"]
    checksums = Checksums(**file["checksums"]) if file["checksums"] else None
    member = Member(*file["member"]) if file["member"] else None
    return Slice(**{**details, "file": SourceFile(**{**file, "checksums": checksums, "member": member})})


def source_digest(surveys: Sequence[Scan], shards: Sequence[Shard] = ()) -> str:
    """Return the identity of the source: names below its root, contents and cuts, but not its location.

    With the shards of `read`, it depends on how many slices each of them reads, too.
    """
    cuts = [[s.file.name, s.sha256, [[part.start, part.stop, part.row] for part in s.slices]] for s in surveys]
    shared = [len(shard.details["slices"]) for shard in shards]
    return hashlib.sha256(canonical_json([cuts, shared] if shared else cuts).encode()).hexdigest()


def near_shards(candidates: Record, evaluations: Sequence[Sequence[Scan]]) -> list[Shard]:
    """Return a shard for every table of candidates, each with content hash and slices of every evaluation set."""
    sets = [
        [source_digest(surveys), [asdict(part) for about in surveys for part in about.slices]]
        for surveys in evaluations
    ]
    tables = [published_file(candidates, "documents", done.shard) for done in candidates.completions]
    return [Shard(index, {"documents": file}, {"evaluations": sets}) for index, file in enumerate(tables)]


def shard_evaluations(shard: Shard) -> tuple[tuple[str, tuple[Slice, ...]], ...]:
    """Return content hash and slices of each evaluation set, which `near_shards` put into a shard."""
    return tuple((content, tuple(map(as_slice, parts))) for content, parts in shard.details["evaluations"])


def assign_shard(candidates: Record, near: Record | None) -> Shard:
    """Return the single shard that decides for all candidates, with the tables of `near` if there are some."""
    files: dict[str, InputFile] = {}
    for record, tables in ((candidates, ["documents"]), (near, ["bands", "overlaps"])):
        for done in record.completions if record else ():
            files |= {f"{name}-{done.shard:05d}": published_file(record, name, done.shard) for name in tables if record}
    return Shard(0, files, {})


def shard_files(shard: Shard, table: str) -> list[InputFile]:
    """Return the files of one table that `assign_shard` put into a shard, in order."""
    return [file for name, file in shard.files.items() if name.startswith(f"{table}-")]


def ingest_shards(candidates: Record, assigned: Record) -> list[Shard]:
    """Return one shard per row group of the assignment, with its rows of candidate tables and its quarantine tables."""
    assignment = assigned.files("assignment")[0]
    footer = pq.read_metadata(assignment.path)
    sizes = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
    stops = np.cumsum(sizes)
    tables = [done.files["documents"] for done in candidates.completions]
    ends = np.cumsum([table.rows for table in tables])
    begins = ends - [table.rows for table in tables]
    shards = []
    for shard, (start, stop) in enumerate(zip(stops - sizes, stops, strict=True)):
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
