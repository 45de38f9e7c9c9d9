"""Ingest: a corpus becomes documents, and whatever cannot becomes quarantine.

    rpt data MANIFEST [--source PATH]          (the first stage of it)

Input: the files of `corpus.source`. Output, in shards of `corpus.shard_documents` documents in source order:
`documents` (text in NFC, without exact duplicates, split by document) and `quarantine` (bytes, origin, reason).

Three passes, since de-duplication and split need the whole corpus, and memory holds only its ids:

    read      a slice of a source file → candidate documents and rejected records
    assign    all doc_ids              → which documents stay, in which split, in which shard
    ingest    a shard of that          → documents, quarantine
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.core.artifact import Counters, InputFile, Record, Shard
from pipeline.core.config import CorpusConfig, Manifest
from pipeline.core.executor import Executor
from pipeline.core.parquet import ROW_GROUP, parquet_writer, read_rows, read_table
from pipeline.core.stage import Stage, run_stage
from pipeline.corpus.assignment import assign, shard_starts, write_assignment
from pipeline.corpus.checks import check_quarantine, check_source, check_split
from pipeline.corpus.documents import CANDIDATES, DOCUMENTS, count_control_characters, to_document, to_json
from pipeline.corpus.plan import ingest_shards, read_shards, slice_of, source_digest
from pipeline.corpus.quarantine import QUARANTINE, Rejected, Unusable
from pipeline.corpus.readers import read_records
from pipeline.corpus.sink import RowSink
from pipeline.corpus.sources import find_files
from pipeline.corpus.survey import SLICE_BYTES, survey
from pipeline.corpus.template import Template


def ingest(
    manifest: Manifest, *, source: str | None, work: Path, executor: Executor, slice_bytes: int = SLICE_BYTES
) -> Record:
    """Bring documents and quarantine up to date.

    Args:
        manifest: its `corpus` block is what is done.
        source: read this instead of `corpus.source`.
        work: the manifest's folder.
        executor: who calls the passes.
        slice_bytes: about how much of a file is read at a time.

    Raises:
        UserError: the source is missing, damaged, or not the one whose sha256 the manifest gives; the template names
            a column that is not there; too much is quarantined; nothing is left.
    """
    config = manifest.corpus
    template = Template.parse(config.text)
    files = find_files(source or config.source, config.format, config.revision)
    with ThreadPoolExecutor() as pool:
        surveys = list(pool.map(partial(survey, config=config, slice_bytes=slice_bytes), files))
    check_source(surveys, config, template)

    inputs = {"source": source_digest(surveys)}
    candidates = run_stage(READ, config, read_shards(surveys), inputs, work, executor)
    check_quarantine(candidates, config)

    tables = {f"documents-{i:05d}": file for i, file in enumerate(candidates.files("documents"))}
    inputs = {"read": candidates.content}
    assigned = run_stage(ASSIGN, config, [Shard(0, tables, {})], inputs, work, executor)
    check_split(assigned)

    inputs = {"read": candidates.content, "assign": assigned.content}
    return run_stage(INGEST, config, ingest_shards(candidates, assigned), inputs, work, executor)


# ------------------------------------------------------------------------------------------------ the passes


def run_read(config: CorpusConfig, shard: Shard, out: Path) -> Counters:
    """A slice of a source file → its candidate documents and rejected records."""
    template = Template.parse(config.text)
    part = slice_of(shard)
    counters: Counter[str] = Counter(records=0, documents=0)
    with (
        RowSink(out / "documents.parquet", CANDIDATES) as kept,
        RowSink(out / "quarantine.parquet", QUARANTINE) as rejected,
    ):
        for row, where, raw, value in read_records(part, config):
            counters["records"] += 1
            try:
                if isinstance(value, Unusable):
                    raise value
                document = to_document(value, template, config)
            except Unusable as why:
                raw = to_json(value).encode() if raw is None else raw
                about = Rejected(part.file.name, row, raw, why.reason, f"{where}: {why.detail}")
                rejected.add(asdict(about), len(raw))
                counters[f"quarantined.{why.reason}"] += 1
            else:
                origin = {"source_file": part.file.name, "source_row": row}
                kept.add(document._asdict() | origin, len(document.text) + len(document.meta))
                counters["documents"] += 1
    return dict(counters)


def run_assign(config: CorpusConfig, shard: Shard, out: Path) -> Counters:
    """The doc_ids of all candidates → the split of each, null for duplicates; a row group is a shard to be."""
    tables = [read_table(file, ["doc_id", "held_out"]) for file in shard.files.values()]
    candidates = pl.DataFrame(pl.from_arrow(pa.concat_tables(tables)))
    split = assign(candidates["doc_id"], candidates["held_out"], config.validation, config.seed)
    write_assignment(out / "assignment.parquet", split, shard_starts(split, config.shard_documents))
    return {
        "documents": len(split) - split.null_count(),
        "dropped.duplicate": split.null_count(),
        "train": int((split == "train").sum()),
        "validation": int((split == "validation").sum()),
    }


def run_ingest(config: CorpusConfig, shard: Shard, out: Path) -> Counters:
    """A shard of the assignment → the documents that stay, and the rejected records of the slices that begin in it."""
    split = _row_group(shard.files["assignment"], shard.index)
    parts = [read_rows(shard.files[name], start, stop) for name, start, stop in shard.details["documents"]]
    documents = pa.concat_tables(parts).append_column("split", split["split"])
    documents = documents.filter(pc.is_valid(documents["split"])).select(DOCUMENTS.names)
    quarantine = [read_table(shard.files[name]) for name in shard.details["quarantine"]]
    rejected = pa.concat_tables(quarantine) if quarantine else QUARANTINE.empty_table()
    for name, table, schema in (("documents", documents, DOCUMENTS), ("quarantine", rejected, QUARANTINE)):
        with parquet_writer(out / f"{name}.parquet", schema, metadata={"rpt.version": str(INGEST.version)}) as writer:
            writer.write_table(table.cast(schema).combine_chunks(), row_group_size=ROW_GROUP)
    reasons = Counter(rejected["reason"].to_pylist())
    splits = Counter(documents["split"].to_pylist())
    return {
        "records": len(split) + rejected.num_rows,
        "documents": documents.num_rows,
        "train": splits["train"],
        "validation": splits["validation"],
        "dropped.duplicate": len(split) - documents.num_rows,
        "control_characters": count_control_characters(documents["text"]),
        **{f"quarantined.{reason}": count for reason, count in reasons.items()},
    }


def _row_group(file: InputFile, group: int) -> pa.Table:
    with pq.ParquetFile(file.verified(), page_checksum_verification=True) as table:
        return table.read_row_group(group)


READ = Stage("read", 1, run_read, unit="records")
ASSIGN = Stage("assign", 1, run_assign)
INGEST = Stage("ingest", 1, run_ingest)
