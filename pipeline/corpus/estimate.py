"""Estimates of a corpus's size from a part of it, which `rpt plan` reads before anything runs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from fsspec.core import url_to_fs

from pipeline.config.corpus import CorpusConfig, ValidationConfig
from pipeline.config.errors import UserError
from pipeline.corpus.dedup.assignment import is_sampled
from pipeline.corpus.documents import to_document, to_json
from pipeline.corpus.plan import count_read_shards
from pipeline.corpus.quarantine import Unusable
from pipeline.corpus.readers.dispatch import is_cut_by_bytes, read_records
from pipeline.corpus.readers.parquet import open_parquet
from pipeline.corpus.readers.records import Record, Slice
from pipeline.corpus.scan import SLICE_BYTES
from pipeline.corpus.sources.opening import SourceFile, open_raw, source_errors
from pipeline.corpus.sources.unpacking import decompress
from pipeline.corpus.template import Template

READ_BYTES = 16 << 20
"""Bytes up to which a source is read whole; of a larger one about this many bytes are read."""

PLACES = 16
"""Places of a larger source that are read, drawn with probability proportional to size."""


@dataclass(frozen=True)
class Estimate:
    """An estimate of a corpus, with the documents that it was made from."""

    bytes: int
    """Size of its files, compressed as they are."""
    records: float
    """Number of records; exact if `complete`."""
    read: int
    """Records that were read."""
    complete: bool
    """Whether all records were read."""
    error: float
    """Relative standard error of `records`, from how record sizes vary between the places that were read."""
    documents: list[dict[str, Any]]
    """Documents of the records read, without exact duplicates: rows of the documents table, with `held_out` instead of
    `split`."""
    repeats: int
    """Records with the text of an earlier one."""
    document_count: float
    """Documents of the corpus, if the same share of all records makes one. Unread duplicates are counted."""
    seconds: float
    """Seconds that reading all records would take."""
    shards: int
    """Shards of `read`, in which workers read the files."""


def estimate(
    files: Sequence[SourceFile], config: CorpusConfig, *, seed: int = 0, read_bytes: int = READ_BYTES
) -> Estimate:
    """Read a corpus, or about `read_bytes` of each of its sources.

    Uncompressed JSON lines and text are read at places drawn at random, Parquet in row groups drawn at random; other
    files can only be read from their start.

    Args:
        files: result of `corpus_files`.
        config: configuration of the corpus.
        seed: seed of the places.
        read_bytes: sources up to this size are read whole.

    Raises:
        UserError: a file cannot be read, lacks a column of the template, or no record that was read can be used.
    """
    names = dict.fromkeys(file.corpus for file in files)
    return _combine(
        [
            _estimate_source([f for f in files if f.corpus == name], config.for_source(name), seed, read_bytes)
            for name in names
        ]
    )


def _combine(sources: Sequence[Estimate]) -> Estimate:
    """Combine several sources into one corpus, with the same share of each source's documents."""
    if len(sources) == 1:
        return sources[0]
    count = sum(source.document_count for source in sources)
    share = min(len(source.documents) / source.document_count for source in sources)
    rng = np.random.default_rng(0)
    documents: dict[str, dict[str, Any]] = {}
    for source in sources:
        size = round(share * source.document_count)
        for n in rng.permutation(len(source.documents))[:size].tolist():
            documents.setdefault(source.documents[n]["doc_id"], source.documents[n])
    complete = all(source.complete for source in sources)
    return Estimate(
        bytes=sum(source.bytes for source in sources),
        records=sum(source.records for source in sources),
        read=sum(source.read for source in sources),
        complete=complete,
        error=math.hypot(*(source.error * source.document_count for source in sources)) / count,
        documents=list(documents.values()),
        repeats=sum(source.repeats for source in sources),
        document_count=len(documents) if complete else count,
        seconds=sum(source.seconds for source in sources),
        shards=sum(source.shards for source in sources),
    )


def _estimate_source(files: Sequence[SourceFile], config: CorpusConfig, seed: int, read_bytes: int) -> Estimate:
    begin = time.monotonic()
    template = Template.parse(config.text)
    sizes = [_size(file) for file in files]
    complete = sum(sizes) <= read_bytes
    parts = [Slice(file) for file in files] if complete else _places(files, sizes, config, seed, read_bytes // PLACES)
    taken: list[tuple[int, float]] = []
    documents: dict[str, dict[str, Any]] = {}
    unusable: Unusable | None = None
    repeats = 0
    for part in parts:
        records, size = _read(part, config, None if complete else read_bytes // PLACES)
        taken.append((len(records), size))
        for record in records:
            try:
                if isinstance(record.value, Unusable):
                    raise record.value
                made = to_document(record.value, template, config, part.file.corpus)
            except Unusable as why:
                unusable = why
                continue
            if not is_sampled(made.doc_id, config.sample, config.seed):
                continue
            repeats += made.doc_id in documents
            origin = {"source_file": part.file.name, "source_row": record.row}
            row = {"doc_id": made.doc_id, "text": made.text, "fields": made.fields, "meta": made.meta}
            documents.setdefault(made.doc_id, row | origin | {"held_out": made.held_out or part.file.held_out})
    if not documents:
        reason = f"{unusable.reason}: {unusable.detail}" if unusable else "there are no records"
        raise UserError("no record of the corpus can be used", where=files[0].name, hint=reason)
    read, in_all, error = _records(taken, sum(sizes), complete)
    made_one = len(documents) if complete else len(documents) + repeats
    return Estimate(
        bytes=sum(sizes),
        records=in_all,
        read=read,
        complete=complete,
        error=error,
        documents=list(documents.values()),
        repeats=repeats,
        document_count=in_all * made_one / read,
        seconds=(time.monotonic() - begin) * in_all / read,
        shards=count_read_shards(files, sizes, config, SLICE_BYTES),
    )


def _records(taken: Sequence[tuple[int, float]], size: int, complete: bool) -> tuple[int, float, float]:
    """Return records read, estimated records and their relative standard error, from (records, bytes) per place.

    Example:
        >>> _records([(10, 100.0), (20, 100.0)], 1000, complete=False)[:2]
        (30, 150.0)
    """
    read, size_read = sum(count for count, _ in taken), sum(part for _, part in taken)
    if complete:
        return read, float(read), 0.0
    each = np.array([count / part for count, part in taken if part])
    error = float(np.std(each, ddof=1) / math.sqrt(len(each)) / np.mean(each)) if len(each) > 1 else 1.0
    return read, size * read / size_read, error


def _size(file: SourceFile) -> int:
    if file.streamed:
        fs, path = url_to_fs(file.url)
        return int(fs.info(path)["size"])
    with source_errors(file.name), open_raw(file) as raw:
        return raw.seek(0, 2)


def _places(
    files: Sequence[SourceFile], sizes: Sequence[int], config: CorpusConfig, seed: int, length: int
) -> list[Slice]:
    """Return parts of files, each at a byte of the corpus drawn at random."""
    rng = np.random.default_rng(seed)
    ends = np.cumsum(sizes)
    found = []
    for place in sorted(rng.integers(0, int(ends[-1]), PLACES).tolist()):
        n = int(np.searchsorted(ends, place, side="right"))
        file, offset = files[n], place - int(ends[n]) + sizes[n]
        if file.format == "parquet":
            with source_errors(file.name), open_parquet(file, config.max_unpacked_bytes) as table:
                group = min(table.num_row_groups - 1, table.num_row_groups * offset // sizes[n])
            found.append(Slice(file, group, group + 1))
        elif file.compression is None and is_cut_by_bytes(file, config):
            with source_errors(file.name), open_raw(file) as raw:
                raw.seek(offset)
                raw.readline()
                start = raw.tell()
            found.append(Slice(file, start, start + length) if start < sizes[n] else Slice(file, 0, length))
        else:
            found.append(Slice(file))
    return list(dict.fromkeys(found))


def _read(part: Slice, config: CorpusConfig, length: int | None) -> tuple[list[Record], float]:
    """Return records of a part, about `length` bytes of them, and their bytes in the file."""
    if part.file.format == "parquet":
        with source_errors(part.file.name), open_parquet(part.file, config.max_unpacked_bytes) as table:
            share = _size(part.file) / max(table.metadata.num_rows, 1)
        records = list(islice(read_records(part, config), None if length is None else max(1, int(length / share))))
        return records, len(records) * share
    records, taken = [], 0
    for record in read_records(part, config):
        records.append(record)
        taken += (len(to_json(record.value)) if record.raw is None else len(record.raw)) + 1
        if length is not None and taken >= length:
            return records, taken / (_expansion(part.file, config, length) if part.file.compression else 1.0)
    cut = part.file.compression is None and part.start + (part.stop or 0)
    return records, float(taken if cut else _size(part.file))


def _expansion(file: SourceFile, config: CorpusConfig, length: int) -> float:
    """Return the decompressed bytes per compressed byte, measured at the start of a file."""
    with source_errors(file.name), open_raw(file) as raw:
        stream = decompress(
            raw, file.compression, file.name, config.max_unpacked_bytes
        )  # closes `raw` when it is garbage-collected
        return len(stream.read(length)) / max(raw.tell(), 1)


def sample(
    documents: Sequence[Mapping[str, Any]], rule: ValidationConfig, population: float, count: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Return at most `count` documents in random order, with a `split` for the share that `rule` would hold out."""
    order = np.random.default_rng(seed).permutation(len(documents))[:count].tolist()
    share = rule.fraction if rule.fraction is not None else (rule.documents or 0) / population
    held_out = round(len(order) * share)
    chosen = [documents[n] for n in order]
    marked = rule.column is not None or rule.split is not None
    validation = [row["held_out"] if marked else n < held_out for n, row in enumerate(chosen)]
    return [{**row, "split": "validation" if out else "train"} for row, out in zip(chosen, validation, strict=True)]
