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

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.core.artifact import Counters, InputFile, Record, Shard
from pipeline.core.config import CorpusConfig, Manifest, canonical_json
from pipeline.core.errors import UserError
from pipeline.core.executor import Executor
from pipeline.core.parquet import ROW_GROUP, parquet_writer, read_rows, read_table
from pipeline.core.stage import Stage, run_stage
from pipeline.corpus.assignment import assign, shard_starts, write_assignment
from pipeline.corpus.documents import CANDIDATES, DOCUMENTS, count_control_characters, to_document, to_json
from pipeline.corpus.quarantine import QUARANTINE, Rejected, Unusable
from pipeline.corpus.readers import Slice, read_records
from pipeline.corpus.sink import RowSink
from pipeline.corpus.sources import SourceFile, find_files
from pipeline.corpus.survey import SLICE_BYTES, Survey, survey
from pipeline.corpus.template import Template, check_column


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
    _check_source(surveys, config, template)

    slices = [part for about in surveys for part in about.slices]
    shards = [Shard(i, {}, {"slice": asdict(part)}) for i, part in enumerate(slices)]
    candidates = run_stage(READ, config, shards, {"source": _digest(surveys)}, work, executor)
    _check_quarantine(candidates, config)

    tables = {f"{i:05d}": file for i, file in enumerate(candidates.files("documents"))}
    inputs = {"read": candidates.content}
    assigned = run_stage(ASSIGN, config, [Shard(0, tables, {})], inputs, work, executor)
    if not assigned.counters.get("train"):
        held_out = f"all {assigned.counters['documents']} documents are held out"
        raise UserError("nothing left to train on", where=held_out, mend="lower corpus.validation")

    inputs = {"read": candidates.content, "assign": assigned.content}
    return run_stage(INGEST, config, _plan(candidates, assigned), inputs, work, executor)


# ------------------------------------------------------------------------------------------------ the passes


def run_read(config: CorpusConfig, shard: Shard, out: Path) -> Counters:
    """A slice of a source file → its candidate documents and rejected records."""
    template = Template.parse(config.text)
    part = _slice(shard.details["slice"])
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
    tables = [read_table(file, ["doc_id", "held_out"]) for _, file in sorted(shard.files.items())]
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


READ = Stage("read", 1, run_read, unit="records")
ASSIGN = Stage("assign", 1, run_assign)
INGEST = Stage("ingest", 1, run_ingest)


# ------------------------------------------------------------------------------------------------- planning


def _slice(details: Mapping[str, Any]) -> Slice:
    return Slice(**{**details, "file": SourceFile(**details["file"])})


def _plan(candidates: Record, assigned: Record) -> list[Shard]:
    """A shard a row group of the assignment: which rows of which candidate tables it covers, whose rejects it takes."""
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
        after = len(begins) if shard == len(stops) - 1 else int(np.searchsorted(begins, stop, "left"))
        rejects = range(int(np.searchsorted(begins, start, "left")), after)
        files: dict[str, InputFile] = {"assignment": assignment}
        files |= {name: _file(candidates, "documents", i) for name, (i, _, _) in documents.items()}
        files |= {f"quarantine-{i:05d}": _file(candidates, "quarantine", i) for i in rejects}
        details = {
            "documents": [(name, begin, end) for name, (_, begin, end) in documents.items()],
            "quarantine": [f"quarantine-{i:05d}" for i in rejects],
        }
        shards.append(Shard(shard, files, details))
    return shards


def _file(record: Record, table: str, shard: int) -> InputFile:
    file = record.file(table, shard)
    assert file is not None, f"{table} of shard {shard}"
    return file


def _row_group(file: InputFile, group: int) -> pa.Table:
    with pq.ParquetFile(file.verified(), page_checksum_verification=True) as table:
        return table.read_row_group(group)


def _digest(surveys: Sequence[Survey]) -> str:
    """Identity of the source: names below its root, content, and how it is cut. Not where it lies."""
    cuts = [[s.file.name, s.sha256, [[part.start, part.stop, part.row] for part in s.slices]] for s in surveys]
    return hashlib.sha256(canonical_json(cuts).encode()).hexdigest()


def _check_source(surveys: Sequence[Survey], config: CorpusConfig, template: Template) -> None:
    """Stop at a wrong sha256, and at a file that lacks a column the manifest names."""
    if config.sha256 is not None:
        if len(surveys) > 1:
            found = f"{len(surveys)} files, from {surveys[0].file.name} to {surveys[-1].file.name}"
            raise UserError("corpus.sha256 is of one file", where=found, mend="name the file in corpus.source")
        if surveys[0].sha256 != config.sha256:
            mend = f"expected {config.sha256}, found {surveys[0].sha256}"
            raise UserError("wrong sha256", where=surveys[0].file.name, mend=mend)
    for about in surveys:
        if about.columns:
            template.check(about.columns, about.file.name)
            if config.validation.column is not None:
                check_column(config.validation.column, about.columns, about.file.name, "corpus.validation.column")


def _check_quarantine(candidates: Record, config: CorpusConfig) -> None:
    """Stop when nothing is left, or when too large a share of the records cannot be used; say why with an example."""
    counters = candidates.counters
    records, documents = counters["records"], counters["documents"]
    if not records:
        raise UserError("the corpus has no records", where=config.source, mend="check corpus.source and corpus.format")
    share = 1 - documents / records
    if documents and share <= config.max_quarantine_fraction:
        return
    reasons = {name: count for name, count in counters.items() if name.startswith("quarantined.")}
    name, count = max(reasons.items(), key=lambda item: item[1])
    reason = name.removeprefix("quarantined.")
    what = f"{records - documents} of {records} records cannot be used, {count} of them as `{reason}`"
    mend = "mend the corpus or the template"
    if documents:
        mend += f", or raise corpus.max_quarantine_fraction above {share:.3f}"
    raise UserError(what, where=_example(candidates, reason), mend=mend)


def _example(candidates: Record, reason: str) -> str:
    """The first record that was rejected for `reason`."""
    for done in candidates.completions:
        if f"quarantined.{reason}" in done.counters:
            rows = read_table(_file(candidates, "quarantine", done.shard))
            row = rows.filter(pc.equal(rows["reason"], reason)).slice(0, 1).to_pylist()[0]
            return f"{row['source_file']} row {row['source_row']}, {row['detail']}: {row['raw'][:80]!r}"
    return ""
