"""Trace a training example back to its source record: every row on the way, and the bytes of the record."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pipeline.audit.lineage import Lineage, lineage_of, lineage_of_shards
from pipeline.audit.locate import Location, Row, first_site
from pipeline.config.corpus import CorpusConfig
from pipeline.config.errors import IntegrityError, UserError
from pipeline.config.manifest import Manifest
from pipeline.core.artifact import InputFile, read_record
from pipeline.core.parquet import read_table
from pipeline.corpus.documents import to_document, to_json
from pipeline.corpus.files import corpus_files
from pipeline.corpus.quarantine import Unusable
from pipeline.corpus.readers.dispatch import read_records
from pipeline.corpus.readers.records import Record, Slice
from pipeline.corpus.sources.opening import SourceFile
from pipeline.corpus.template import Template

_DOC_ID = re.compile(r"[0-9a-f]{32}")


def find_site(work: Path, manifest: Manifest, place: str) -> tuple[Lineage, str]:
    """Return the selection and the `site_id` that a user means.

    Args:
        work: The manifest's folder.
        manifest: With its overrides.
        place: A `site_id`, a `doc_id` (its first site), or file and row of a shard (`train-….parquet:17`, from 0).

    Raises:
        UserError: The selection, document or row does not exist.
    """
    file, _, row = place.rpartition(":")
    if file.endswith(".parquet") and row.isdigit():
        return shard_row(work, manifest, Path(file), int(row))
    lineage = lineage_of(work, manifest)
    return lineage, first_site(lineage, place) if _DOC_ID.fullmatch(place) else place


def shard_row(work: Path, manifest: Manifest, file: Path, row: int) -> tuple[Lineage, str]:
    """Return the selection that a shard was made from, and the `site_id` of one of its rows.

    Args:
        work: The manifest's folder.
        manifest: The manifest of the shard.
        file: File of a `train` or `validation` shard.
        row: Row in the file, from 0.

    Raises:
        UserError: The file is not one of the manifest's shards, or has no such row.
        IntegrityError: The file differs from its recorded hash.
    """
    record = read_record(file.resolve().parent)
    published = [each for table in record.summary.tables for each in record.files(table)] if record else []
    listed = next((each for each in published if each.path.name == file.name), None)
    if record is None or listed is None or record.directory.parent != (work / "materialize").resolve():
        raise UserError("not one of the manifest's shards", where=file, hint=f"they are in {work / 'materialize'}")
    sites = read_table(InputFile(file, listed.sha256), ["site_id"])["site_id"]
    if row >= len(sites):
        raise UserError(
            "the shard has no such row", where=f"{file}:{row}", hint=f"it has {len(sites):,} rows, counted from 0"
        )
    return lineage_of_shards(work, manifest, record), sites[row].as_py()


def trace(where: Location, config: CorpusConfig, source: str | None) -> dict[str, Any]:
    """Trace a position back to its source.

    Args:
        where: The position.
        config: The manifest's `corpus`.
        source: Source to read instead of `corpus.source`.

    Returns:
        `rows`: file and row of each table from the shard on, with checked sha256; `document`: the bytes of the token in
        the text; `source`: the record, read again: `file`, `row`, `bytes` [start, end) in the (decompressed) file or
        null (Parquet), `where`, `record`, `doc_id` of the text made from it, and whether that `agrees`.

    Raises:
        UserError: The source does not exist.
        IntegrityError: The source has no such file or row.
    """
    meta = where.document.values.to_pylist()[0]
    ends = where.scores.values["token_ends"][0].as_py()
    begin, end = ends[where.position - 1] if where.position else 0, ends[where.position]
    columns = [f for f in meta["fields"] if f["start"] <= begin < f["end"]]
    files = {file.name: file for file in corpus_files(config, source)}
    file = files.get(meta["source_file"])
    if file is None:
        hint = "give the corpus with --source"
        raise IntegrityError("the source no longer has this file", where=meta["source_file"], hint=hint)
    own = config.for_source(file.corpus)
    record = _source_record(file, own, meta["source_row"])
    doc_id = _doc_id(record, own)
    raw, encoding = record.raw, own.encoding
    if raw is None and not isinstance(record.value, Unusable):
        raw, encoding = to_json(record.value).encode(), "utf-8"
    offset = _offset(record)
    return {
        "site_id": where.site_id,
        "rows": [_at(row) for row in (where.example, where.site, where.scores, where.document) if row is not None],
        "document": {
            "doc_id": where.doc_id,
            "split": meta["split"],
            "token": meta["text"].encode()[begin:end].decode(errors="backslashreplace"),
            "bytes": [begin, end],
            "column": columns[0]["name"] if columns else None,
            "bytes_of_column": [begin - columns[0]["start"], end - columns[0]["start"]] if columns else None,
        },
        "source": {
            "file": meta["source_file"],
            "row": record.row,
            "where": record.where,
            "bytes": [offset, offset + len(raw or b"")] if offset is not None else None,
            "record": (raw or b"").decode(encoding, "backslashreplace").rstrip("\r\n"),
            "doc_id": doc_id,
            "agrees": doc_id == where.doc_id,
        },
    }


def _at(row: Row) -> dict[str, Any]:
    return {"table": row.table, "file": str(row.file.path), "row": row.row, "sha256": row.file.sha256}


def _source_record(file: SourceFile, config: CorpusConfig, row: int) -> Record:
    """Return record `row` of a source file; the records before it are read and discarded."""
    for record in read_records(Slice(file), config):
        if record.row == row:
            return record
    raise IntegrityError("the source file no longer has this row", where=f"{file.name}, row {row}")


def _offset(record: Record) -> int | None:
    """Return the byte offset of a record, which readers of byte formats give as `byte N`."""
    unit, _, number = record.where.partition(" ")
    return int(number) if unit == "byte" else None


def _doc_id(record: Record, config: CorpusConfig) -> str | None:
    """Return the id of the document that the record gives now; None if it gives none."""
    if isinstance(record.value, Unusable):
        return None
    try:
        return to_document(record.value, Template.parse(config.text), config).doc_id
    except Unusable:
        return None
