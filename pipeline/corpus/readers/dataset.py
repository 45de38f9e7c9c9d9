"""Rows of a file that the library `datasets` reads, by its builder for the format. Code in a data set is never run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from pipeline.config.corpus import CorpusConfig
from pipeline.config.errors import UserError
from pipeline.core.hub import file_of
from pipeline.corpus.readers.arrow_values import column_values
from pipeline.corpus.readers.records import Record, Slice
from pipeline.corpus.readers.tables import BATCH_ROWS, row_record
from pipeline.corpus.sources.opening import HUB, SourceFile, open_raw, source_errors

_OPTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("csv", ".tsv"): {"sep": "\t"},
    ("conll", ".conllu"): {"comment_prefix": "#"},
}
"""What the library itself gives a builder for files with an extension."""

_OURS = {"json": "jsonl or json", "csv": "csv", "parquet": "parquet", "text": "text", "arrow": "arrow"}
"""Our own readers for formats of builders."""


def read_dataset(part: Slice, config: CorpusConfig) -> Iterator[Record]:
    """Yield the rows of a file that the library `datasets` reads."""
    if part.file.checksums is not None:
        with open_raw(part.file) as raw:  # the library opens the file itself: verify its content first
            while raw.read(1 << 20):
                pass
    ranges = part.file.rows
    stop = None if ranges is None else max((stop for _, stop in ranges), default=0)
    for row, values in enumerate(islice(dataset_rows(part.file), stop)):
        if ranges is None or any(start <= row < stop for start, stop in ranges):
            yield row_record(row, f"row {row}", values)


def count_rows(file: SourceFile) -> int:
    """Return the number of rows of a file: from the footer of Parquet, or else by reading it.

    Raises:
        UserError: the library cannot read it.
    """
    if file.builder == "parquet" and not file.streamed:
        with source_errors(file.name), open_raw(file) as raw, pq.ParquetFile(raw) as table:
            return int(table.metadata.num_rows)
    return sum(1 for _ in dataset_rows(file))


def dataset_rows(file: SourceFile) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file as the library's builder reads them; pictures and sound stay bytes.

    Raises:
        UserError: the library cannot go on; the message has the row after which, and whether our own reader can.
    """
    import datasets

    datasets.disable_progress_bars()
    row = 0
    with tempfile.TemporaryDirectory() as scratch:
        try:
            files = {"train": [_address(file, Path(scratch))]}
            builder = datasets.load_dataset_builder(file.builder, data_files=files, cache_dir=scratch, **_options(file))
            rows = builder.as_streaming_dataset(split="train")
            tables = isinstance(builder, datasets.ArrowBasedBuilder)
            for values in _of_tables(rows) if tables else rows.decode(False):
                values.pop("__url__", None)  # of web datasets: where the file lies here
                yield values
                row += 1
        except UserError:
            raise
        except Exception as error:  # builders pass on the errors of every library below them
            raise _stopped(file, row, error) from error


def _options(file: SourceFile) -> dict[str, Any]:
    suffixes = PurePosixPath(file.name.lower()).suffixes
    return next((_OPTIONS[file.builder, end] for end in suffixes if (file.builder, end) in _OPTIONS), {})


def _of_tables(rows: Any) -> Iterator[dict[str, Any]]:
    for table in rows.with_format("arrow").iter(batch_size=BATCH_ROWS):
        for batch in table.combine_chunks().to_batches():
            for values in zip(*map(column_values, batch.columns), strict=True):
                yield dict(zip(batch.schema.names, values, strict=True))


def _stopped(file: SourceFile, row: int, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    ours = _OURS.get(file.builder)
    hint = f"{reason}; fix the file"
    if ours is not None:
        hint += f", or read it with `corpus.source` instead: our reader of {ours} quarantines a broken record"
    where = f"{file.name}, after row {row - 1:,}" if row else f"{file.name}, in its first rows"
    return UserError("`datasets` cannot read on", where=where, hint=hint)


def _address(file: SourceFile, scratch: Path) -> str:
    """Return where the library finds a file: its copy on this machine, unless it is streamed.

    A chain of addresses (`simplecache::s3://…`) is copied to `scratch`, because the library opens only some.
    """
    if "::" in file.url:
        copy = scratch / PurePosixPath(file.name).name
        with open_raw(file) as raw, copy.open("wb") as out:
            shutil.copyfileobj(raw, out, 1 << 20)
        return str(copy)
    if (match := HUB.fullmatch(file.url)) and not file.streamed:
        return str(file_of(match["repo"], "dataset", match["revision"], match["path"]))
    return file.url.removeprefix("file://")
