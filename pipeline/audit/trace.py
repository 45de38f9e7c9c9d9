"""From a training example back to the record it was made of: every row on the way, and the record's own bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.audit.lineage import Lineage, lineage_of_shards
from pipeline.audit.locate import Location, Row
from pipeline.config.corpus import CorpusConfig
from pipeline.config.errors import IntegrityError, UserError
from pipeline.config.manifest import Manifest
from pipeline.core.artifact import InputFile, read_record
from pipeline.core.parquet import read_table
from pipeline.corpus.documents import to_document, to_json
from pipeline.corpus.quarantine import Unusable
from pipeline.corpus.readers import Record, Slice, read_records
from pipeline.corpus.sources import SourceFile, corpus_files
from pipeline.corpus.template import Template


def shard_row(work: Path, manifest: Manifest, file: Path, row: int) -> tuple[Lineage, str]:
    """The selection that a file of shards was made of, and the `site_id` in one of its rows.

    Args:
        work: the manifest's folder.
        manifest: whose shards these are.
        file: of `train` or `validation`.
        row: from 0.

    Raises:
        UserError: the file is not one of the manifest's shards, or has no such row.
        IntegrityError: its bytes are not those that were published.
    """
    record = read_record(file.resolve().parent)
    listed = [entry for done in record.completions for entry in done.files.values()] if record else []
    entry = next((entry for entry in listed if entry.path == file.name), None)
    if record is None or entry is None or record.directory.parent != (work / "materialize").resolve():
        raise UserError("not one of the manifest's shards", where=file, hint=f"they lie in {work / 'materialize'}")
    sites = read_table(InputFile(file, entry.sha256), ["site_id"])["site_id"]
    if row >= len(sites):
        raise UserError("the shard has no such row", where=f"{file}:{row}", hint=f"it has {len(sites):,}, from 0")
    return lineage_of_shards(work, manifest, record), sites[row].as_py()


def trace(where: Location, config: CorpusConfig, source: str | None) -> dict[str, Any]:
    """Follow a position back to its source.

    Args:
        where: the position.
        config: the manifest's `corpus`.
        source: read this instead of `corpus.source`.

    Returns:
        `rows`: from the shard on, the file and the row of each table, whose sha256 were checked; `document`: the bytes
        of the token in its text; `source`: the record, read again: `file`, `row`, `bytes` [start, end) in the
        (decompressed) file or null (Parquet), `where`, `record`, `doc_id` of the text that it makes, and whether that
        `agrees`.

    Raises:
        UserError: the source is not there.
        IntegrityError: it has no such file or row.
    """
    meta = where.document.values.to_pylist()[0]
    ends = where.scores.values["token_ends"][0].as_py()
    begin, end = ends[where.position - 1] if where.position else 0, ends[where.position]
    columns = [f for f in meta["fields"] if f["start"] <= begin < f["end"]]
    files = {file.name: file for file in corpus_files(config, source)}
    file = files.get(meta["source_file"])
    if file is None:
        mend = "give the corpus with --source"
        raise IntegrityError("the source has no such file any more", where=meta["source_file"], hint=mend)
    record = _source_record(file, config.for_source(file.corpus), meta["source_row"])
    doc_id = _doc_id(record, config.for_source(file.corpus))
    raw = record.raw
    if raw is None and not isinstance(record.value, Unusable):
        raw = to_json(record.value).encode()
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
            "record": (raw or b"").decode(errors="backslashreplace").rstrip("\r\n"),
            "doc_id": doc_id,
            "agrees": doc_id == where.doc_id,
        },
    }


def _at(row: Row) -> dict[str, Any]:
    return {"table": row.table, "file": str(row.file.path), "row": row.row, "sha256": row.file.sha256}


def _source_record(file: SourceFile, config: CorpusConfig, row: int) -> Record:
    """Record `row` of a file of the source: the records before it are read and let go."""
    for record in read_records(Slice(file), config):
        if record.row == row:
            return record
    raise IntegrityError("the source file has no such row any more", where=f"{file.name}, row {row}")


def _offset(record: Record) -> int | None:
    """Where the record begins in its file, which readers of bytes say as `byte N`."""
    unit, _, number = record.where.partition(" ")
    return int(number) if unit == "byte" else None


def _doc_id(record: Record, config: CorpusConfig) -> str | None:
    """Of the document that the record makes now; None: it makes none."""
    if isinstance(record.value, Unusable):
        return None
    try:
        return to_document(record.value, Template.parse(config.text), config).doc_id
    except Unusable:
        return None
