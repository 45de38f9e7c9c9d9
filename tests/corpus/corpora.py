"""Small corpora on disk, and ingest run on them in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.config.manifest import Manifest
from pipeline.core.artifact import Record
from pipeline.core.parquet import read_table
from pipeline.corpus.scan import SLICE_BYTES
from stages.ingest import ingest


class Here:
    """An executor that calls everything in this process."""

    devices = ("CPU",)

    def map(self, function: Callable[[Any], Any], items: Sequence[Any], **_: Any) -> Iterator[Any]:
        return map(function, items)


class Ingested(NamedTuple):
    documents: list[dict[str, Any]]
    quarantine: list[dict[str, Any]]
    record: Record

    @property
    def texts(self) -> list[str]:
        return [row["text"] for row in self.documents]

    @property
    def reasons(self) -> list[str]:
        return [row["reason"] for row in self.quarantine]


def manifest(**corpus: Any) -> Manifest:
    """A manifest whose validation split is empty and whose quarantine may be large, unless `corpus` says otherwise."""
    defaults = {"source": "unused", "validation": {"documents": 0}, "max_quarantine_fraction": 1.0}
    return Manifest.model_validate(
        {
            "name": "test",
            "corpus": defaults | corpus,
            "proxy": {"train": {}},
            "materialize": {"policy_tokenizer": "unused"},
        }
    )


def run(work: Path, source: Path | str, *, slice_bytes: int = SLICE_BYTES, **corpus: Any) -> Ingested:
    """Ingest `source`; artifacts go to `work`."""
    record = ingest(manifest(**corpus), source=str(source), work=work, executor=Here(), slice_bytes=slice_bytes)
    return Ingested(rows(record, "documents"), rows(record, "quarantine"), record)


def rows(record: Record, table: str) -> list[dict[str, Any]]:
    return pa.concat_tables(read_table(file) for file in record.files(table)).to_pylist()


def jsonl(path: Path, records: Iterable[dict[str, Any] | bytes]) -> Path:
    """JSON lines; bytes are written as they are."""
    lines = [r if isinstance(r, bytes) else json.dumps(r, ensure_ascii=False).encode() for r in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path
