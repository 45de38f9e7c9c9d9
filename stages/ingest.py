"""Ingest: turn a corpus into documents, and quarantine the records that cannot become one.

    rpt data MANIFEST [--source PATH]          (the first stage of it)

Input: the files of `corpus.source`, or of each of `corpus.sources`. Output, in shards of `corpus.shard_documents`
documents in source order: `documents` (text in NFC, without exact duplicates, split by document) and `quarantine`
(bytes, origin, reason), and `text_digest`, the hash of what models read of the documents.

Four passes, because deduplication and split need the whole corpus, of which memory holds the suspects only:

    read      slices of source files   → candidate documents and rejected records; `source`: the files' sha256
    near      a table of candidates    → their MinHash bands, their overlaps with evaluation sets
    assign    all ids, bands, overlaps → split and shard of each document that stays; `matches`: why the others leave
    ingest    a shard of the assignment → documents, quarantine
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.corpus import CorpusConfig, EvaluationSetConfig
from pipeline.config.manifest import Manifest
from pipeline.core.artifact import Counters, Record, Shard, write_pointer
from pipeline.core.executor import Executor
from pipeline.core.parquet import ROW_GROUP, count_rows, parquet_writer, read_batches, read_rows_in_turn, read_table
from pipeline.core.parts import Teller
from pipeline.core.pointers import source_pointer
from pipeline.core.sealed import write_json
from pipeline.core.shard_list import TEXT_DIGEST
from pipeline.core.stage import Stage, run_stage
from pipeline.corpus.checks import check_quarantine, check_source, check_split
from pipeline.corpus.dedup.assignment import (
    CUTS,
    SPLIT,
    count_codes,
    cuts,
    hold_out,
    leave_out,
    mark_duplicates,
    read_codes,
    shard_starts,
)
from pipeline.corpus.dedup.candidates import Candidates, mapped
from pipeline.corpus.dedup.contamination import EvaluationIndex, evaluation_index, to_corpus_config
from pipeline.corpus.dedup.near import band_rows, bands, batches
from pipeline.corpus.dedup.results import (
    BANDS,
    MATCHES,
    OVERLAPS,
    mark_contaminated,
    mark_near_duplicates,
    match_tables,
    reasons,
)
from pipeline.corpus.dedup.words import words
from pipeline.corpus.documents import (
    CANDIDATES,
    DOCUMENTS,
    count_control_characters,
    text_digest,
    to_document,
    to_json,
)
from pipeline.corpus.files import corpus_files
from pipeline.corpus.known_sources import KnownSources
from pipeline.corpus.plan import (
    assign_shard,
    ingest_shards,
    near_shards,
    read_shards,
    shard_evaluations,
    shard_files,
    shard_slices,
    source_digest,
)
from pipeline.corpus.quarantine import QUARANTINE, Rejected, Unusable
from pipeline.corpus.readers.dispatch import read_records
from pipeline.corpus.readers.markup import FORMATS as MARKUP
from pipeline.corpus.readers.markup import library_versions
from pipeline.corpus.readers.records import Slice
from pipeline.corpus.row_writer import RowWriter
from pipeline.corpus.scan import SLICE_BYTES, Scan, log_found
from pipeline.corpus.sources.opening import SourceFile
from pipeline.corpus.template import Template

READ_VERSION = 4
NEAR_VERSION = 3
ASSIGN_VERSION = 4
INGEST_VERSION = 2
"""Versions of the passes, each raised when its output changes."""


def ingest(
    manifest: Manifest, *, source: str | None, work: Path, executor: Executor, slice_bytes: int = SLICE_BYTES
) -> Record:
    """Bring documents and quarantine up to date.

    Args:
        manifest: its `corpus` block is used.
        source: read this instead of `corpus.source`.
        work: the manifest's folder.
        executor: runs the passes.
        slice_bytes: approximate size of the part of a file that a worker reads.

    Raises:
        UserError: the source is missing, damaged, or differs from the sha256 in the manifest; the template names a
            missing column; too many records are quarantined; no document is left.
    """
    config = manifest.corpus
    for name in [part.name for part in config.sources] or [""]:
        Template.parse(config.for_source(name).text)
    known = KnownSources(work / "sources.jsonl")
    with ThreadPoolExecutor() as pool:
        surveys = list(pool.map(partial(_survey, known, config, slice_bytes), corpus_files(config, source)))
    log_found(surveys)
    check_source(surveys, config)
    evaluations = [_survey_evaluation(known, evaluation, slice_bytes) for evaluation in config.decontaminate]

    shards = read_shards(surveys, slice_bytes)
    inputs = {"source": source_digest(surveys, shards)}
    if any(about.file.format in MARKUP for about in surveys):
        inputs["markup"] = library_versions()
    candidates = run_stage(READ, config, shards, inputs, work, executor)
    write_pointer(source_pointer(work, config), candidates.directory)
    check_quarantine(candidates, config, surveys)

    inputs = {"read": candidates.content}
    near = None
    if config.near_duplicates or evaluations:
        contents = {f"evaluation-{i}": source_digest(surveys) for i, surveys in enumerate(evaluations)}
        near = run_stage(NEAR, config, near_shards(candidates, evaluations), inputs | contents, work, executor)
        inputs["near"] = near.content

    assigned = run_stage(ASSIGN, config, [assign_shard(candidates, near)], inputs, work, executor)
    check_split(assigned)

    inputs["assign"] = assigned.content
    return run_stage(INGEST, config, ingest_shards(candidates, assigned), inputs, work, executor)


def _survey(known: KnownSources, config: CorpusConfig, slice_bytes: int, file: SourceFile) -> Scan:
    return known.scan(file, config.for_source(file.corpus), slice_bytes)


def _survey_evaluation(known: KnownSources, evaluation: EvaluationSetConfig, slice_bytes: int) -> list[Scan]:
    corpus = to_corpus_config(evaluation)
    files = corpus_files(corpus)
    surveys = [known.scan(file, corpus, slice_bytes) for file in files]
    check_source(surveys, corpus)
    return surveys


# ------------------------------------------------------------------------------------------------ the passes


def run_read(config: CorpusConfig, shard: Shard, out: Path) -> Counters:
    """Write the candidate documents and the rejected records of slices of source files."""
    parts, told = shard_slices(shard), Teller(out)
    counters: Counter[str] = Counter(records=0, documents=0)
    with (
        RowWriter(out / "documents.parquet", CANDIDATES) as kept,
        RowWriter(out / "quarantine.parquet", QUARANTINE) as rejected,
    ):
        for part in parts:
            _read_slice(config.for_source(part.file.corpus), part, kept, rejected, counters, told)
    read = [(part.file.name, part.file.checksums.sha256) for part in parts if part.file.checksums is not None]
    write_json(out / "source.json", [{"source_file": name, "sha256": sha256} for name, sha256 in read])
    return dict(counters)


def _read_slice(
    config: CorpusConfig, part: Slice, kept: RowWriter, rejected: RowWriter, counters: Counter[str], told: Teller
) -> None:
    template = Template.parse(config.text)
    for row, where, raw, value in read_records(part, config):
        counters["records"] += 1
        told.add()
        try:
            if isinstance(value, Unusable):
                raise value
            document = to_document(value, template, config, part.file.corpus)
        except Unusable as why:
            raw = to_json(value).encode() if raw is None else raw
            about = Rejected(part.file.name, row, raw, why.reason, f"{where}: {why.detail}")
            rejected.add(asdict(about), len(raw))
            counters[f"quarantined.{why.reason}"] += 1
        else:
            origin = {"source_file": part.file.name, "source_row": row}
            held_out = document.held_out or part.file.held_out
            kept.add(document._asdict() | origin | {"held_out": held_out}, len(document.text) + len(document.meta))
            counters["documents"] += 1


def run_near(config: CorpusConfig, shard: Shard, out: Path) -> Counters:
    """Write the band keys of each candidate of a table, and the overlaps with evaluation sets."""
    sets = _evaluation_indexes(config.decontaminate, shard_evaluations(shard))
    rule = config.near_duplicates
    rows = band_rows(rule.threshold) if rule else 0
    tables = read_batches(shard.files["documents"], ["text"])
    count, first = count_rows(shard.files["documents"]), 0
    told = Teller(out, count)
    with RowWriter(out / "bands.parquet", BANDS) as near, RowWriter(out / "overlaps.parquet", OVERLAPS) as overlaps:
        for texts in batches(chain.from_iterable(table["text"].to_pylist() for table in tables)):
            documents = [words(text) for text in texts]
            for keys in bands(documents, rule.words, rows) if rule else ():
                near.add({"bands": keys}, keys.nbytes)
            for row, document in enumerate(documents, first):
                if overlap := next(filter(None, (index.find(document) for index in sets)), None):
                    file, file_row, ngram = overlap
                    overlaps.add({"row": row, "file": file, "file_row": file_row, "ngram": ngram}, len(ngram))
            first += len(texts)
            told.add(len(texts))
    total: Counter[str] = sum((index.counters for index in sets), Counter())
    return {"documents": count} | (dict(total) if shard.index == 0 else {})


@lru_cache(1)
def _evaluation_indexes(
    sets: tuple[EvaluationSetConfig, ...], read: tuple[tuple[str, tuple[Slice, ...]], ...]
) -> list[EvaluationIndex]:
    """Return the indexes of the evaluation sets, built once per worker."""
    return [evaluation_index(config, slices) for config, (_, slices) in zip(sets, read, strict=True)]


def run_assign(config: CorpusConfig, shard: Shard, out: Path) -> Counters:
    """Write the split of every candidate, or the reason why it is dropped; and where each shard of ingest begins."""
    # The scratch folder is on the stage's own file system, which has room for the columns of all candidates.
    with TemporaryDirectory(dir=out.parent, ignore_cleanup_errors=True) as scratch:
        return _assign(config, shard, out, Path(scratch))


def _assign(config: CorpusConfig, shard: Shard, out: Path, scratch: Path) -> Counters:
    documents, bands, overlaps = (shard_files(shard, table) for table in ("documents", "bands", "overlaps"))
    candidates = Candidates(documents, scratch)
    code_N = mapped(out / "assignment.bin", np.uint8, len(candidates))
    mark_duplicates(code_N, candidates.key_N2, scratch)
    if config.sample is not None:
        leave_out(code_N, candidates.key_N2, config.sample, config.seed)
    hold_out(code_N, candidates.key_N2, candidates.held_out_N, config.validation, config.seed)
    overlapping = mark_contaminated(code_N, overlaps, candidates)
    rule, nears = config.near_duplicates, None
    if rule:
        nears = mark_near_duplicates(code_N, candidates, bands, documents, rule, scratch)
    with parquet_writer(out / "matches.parquet", MATCHES) as writer:
        for table in match_tables(overlapping, nears, code_N, candidates):
            writer.write_table(table)
    with parquet_writer(out / "cuts.parquet", CUTS) as writer:
        writer.write_table(cuts(code_N, shard_starts(code_N, config.shard_documents)))
    counts = count_codes(code_N)
    return {
        "documents": counts["train"] + counts["validation"],
        **{f"dropped.{reason}": counts[reason] for reason in reasons(config)},
        "train": counts["train"],
        "validation": counts["validation"],
    }


def run_ingest(config: CorpusConfig, shard: Shard, out: Path) -> Counters:
    """Write a shard's documents, and the rejected records of the slices that begin in it."""
    code_R = read_codes(shard.files["assignment"], *shard.details["candidates"])
    parts = [read_rows_in_turn(shard.files[name], start, stop) for name, start, stop in shard.details["documents"]]
    documents = pa.concat_tables(parts).append_column("split", SPLIT.take(pa.array(code_R)))
    documents = documents.filter(pc.is_valid(documents["split"])).select(DOCUMENTS.names)
    quarantine = [read_table(shard.files[name]) for name in shard.details["quarantine"]]
    rejected = pa.concat_tables(quarantine) if quarantine else QUARANTINE.empty_table()
    for name, table, schema in (("documents", documents, DOCUMENTS), ("quarantine", rejected, QUARANTINE)):
        with parquet_writer(out / f"{name}.parquet", schema, metadata={"rpt.version": str(INGEST.version)}) as writer:
            writer.write_table(table.cast(schema).combine_chunks(), row_group_size=ROW_GROUP)
    write_json(out / f"{TEXT_DIGEST}.json", {"sha256": text_digest(documents)})
    quarantined = Counter(rejected["reason"].to_pylist())
    counts = count_codes(code_R)
    return {
        "records": len(code_R) + rejected.num_rows,
        "documents": documents.num_rows,
        "train": counts["train"],
        "validation": counts["validation"],
        **{f"dropped.{reason}": counts[reason] for reason in reasons(config)},
        "control_characters": count_control_characters(documents["text"]),
        **{f"quarantined.{reason}": count for reason, count in quarantined.items()},
    }


READ = Stage("read", READ_VERSION, run_read, unit="records")
NEAR = Stage("near", NEAR_VERSION, run_near)
ASSIGN = Stage("assign", ASSIGN_VERSION, run_assign)
INGEST = Stage("ingest", INGEST_VERSION, run_ingest)
