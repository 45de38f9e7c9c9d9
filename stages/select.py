"""Select: choose the scored positions that become sites.

Input:   `documents` (text, to see where characters begin) and `scores`, shard by shard.
Output:  `sites`, one row per selected position, in the same shards and the same document order.
Command: rpt select data_manifests/<name>.yaml [--set select.where="entropy > 1.5"]    (nothing is scored again)

Every scored position is kept or counted under exactly one `dropped.<reason>`. Rules over the whole corpus (`thin`,
`top_fraction`, `strata`, `mixture`, `max_sites`) need two more passes: `select_candidates` collects the columns that
they use, `select_verdicts` decides which candidates stay.
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.audit.browse.flags import Flags
from pipeline.config.errors import UserError, first_line
from pipeline.config.manifest import Manifest
from pipeline.config.selection import SelectConfig
from pipeline.core.artifact import Counters, InputFile, Record, Shard, content_hash
from pipeline.core.executor import Executor
from pipeline.core.parquet import count_rows, parquet_writer, read_table
from pipeline.core.stage import Stage, run_stage, shards_of
from pipeline.corpus.dedup.assignment import CUTS, cuts, read_codes
from pipeline.corpus.dedup.candidates import mapped
from pipeline.selection.corpus_rules import CANDIDATES, count_left, decisions, needs_corpus_pass
from pipeline.selection.positions import DOCUMENT_COLUMNS, SCORE_TABLE_COLUMNS
from pipeline.selection.proxy_measures import entropy_spread, quantile
from pipeline.selection.sites import check_columns_exist, rule_expression, select_sites, sites_schema

VERSION = 7
"""Version of `select` and `select_candidates`, raised when their output changes."""

VERDICTS_VERSION = 8
"""Version of `select_verdicts`."""


def run(config: SelectConfig, shard: Shard, out: Path) -> Counters:
    """Write the sites of one shard of documents and scores."""
    judged = None
    if "verdicts" in shard.files:
        judged = read_codes(shard.files["verdicts"], *shard.details["candidates"])
    several = shard.details["several"]
    sites, counters = select_sites(
        config, *_tables(config, shard), flagged=_flagged(shard), verdicts=judged, several=several
    )
    schema = sites_schema(config.metadata, several)
    with parquet_writer(out / "sites.parquet", schema) as writer:
        writer.write_table(sites.select(schema.names).to_arrow().cast(schema))
    return counters


def run_candidates(config: SelectConfig, shard: Shard, out: Path) -> Counters:
    """Write the columns of one shard's training sites that the rules over the corpus need."""
    several = shard.details["several"]
    sites, counters = select_sites(config, *_tables(config, shard), flagged=_flagged(shard), several=several)
    train = sites.filter(pl.col("split") == "train")
    twin = train["twin"] if config.thin else pl.lit(0, dtype=pl.UInt64)
    stratum = train["stratum"] if config.strata else pl.lit("")
    corpus = train["corpus"].fill_null("")
    candidates = train.select("key", "entropy", twin=twin, stratum=stratum, corpus=corpus)
    with parquet_writer(out / "candidates.parquet", CANDIDATES) as writer:
        writer.write_table(candidates.to_arrow().cast(CANDIDATES))
    return {"tokens": counters["tokens"], "candidates": candidates.height}


def run_verdicts(config: SelectConfig, shard: Shard, out: Path) -> Counters:
    """Write the decision on every candidate of all shards, a byte that is 0 to keep it; and where each shard begins."""
    files = list(shard.files.values())
    starts = list(accumulate(map(count_rows, files), initial=0))
    verdict_C = mapped(out / "verdicts.bin", np.uint8, max(1, starts[-1]))[: starts[-1]]  # a file must not be empty
    # The scratch folder is on the stage's own file system, which has room for what is sorted.
    with TemporaryDirectory(dir=out.parent, ignore_cleanup_errors=True) as scratch:
        decisions(config, files, verdict_C, Path(scratch))
    with parquet_writer(out / "cuts.parquet", CUTS) as writer:
        writer.write_table(cuts(verdict_C, starts[:-1]))
    return {"candidates": len(verdict_C), "kept": count_left(verdict_C)}


SELECT = Stage("select", VERSION, run, unit="tokens")
CANDIDATE = Stage("select_candidates", VERSION, run_candidates, unit="tokens")
VERDICT = Stage("select_verdicts", VERDICTS_VERSION, run_verdicts, unit="candidates")


def select(manifest: Manifest, documents: Record, scores: Record, *, work: Path, executor: Executor) -> Record:
    """Bring the sites up to date.

    Raises:
        UserError: `where` is invalid or names metadata that no document has (found before anything runs), `exclude` is
            not a list of sites, or no training site is selected.
    """
    config = manifest.select
    rule_expression(config)
    check_columns_exist(config, documents.files("documents"))
    inputs = {"documents": documents.content, "scores": scores.content}
    shared: dict[str, InputFile] = {}
    if config.exclude is not None:
        shared["flags"] = _flag_file(Path(config.exclude))
        inputs["flags"] = str(shared["flags"].sha256)
    tables, details = {"documents": documents, "scores": scores}, {"several": bool(manifest.corpus.sources)}
    shards = shards_of(tables, details, shared)
    if needs_corpus_pass(config):
        candidates = run_stage(CANDIDATE, config, shards, inputs, work, executor)
        listed = {f"candidates-{i}": file for i, file in enumerate(candidates.files("candidates"))}
        # The candidates' content already depends on the documents and scores.
        judged = run_stage(VERDICT, config, [Shard(0, listed, {})], {"candidates": candidates.content}, work, executor)
        shards = _with_verdicts(shards, judged)
    record = run_stage(SELECT, config, shards, inputs, work, executor)
    if not record.counters["kept.train"]:
        raise _nothing_selected(config, scores)
    return record


def _with_verdicts(shards: list[Shard], judged: Record) -> list[Shard]:
    """Return the shards, each with the range of its candidates in the verdicts, and the hash of what is there."""
    verdicts = judged.files("verdicts")[0]
    rows = read_table(judged.files("cuts")[0]).to_pylist()
    return [
        Shard(shard.index, {**shard.files, "verdicts": verdicts}, {**shard.details, "candidates": list(row.values())})
        for shard, row in zip(shards, rows, strict=True)
    ]


def _tables(config: SelectConfig, shard: Shard) -> tuple[pa.Table, pa.Table]:
    of_document = [*DOCUMENT_COLUMNS, "source_file", "meta"]
    of_score = [*SCORE_TABLE_COLUMNS, *(["token_ids"] if config.thin else [])]
    return read_table(shard.files["documents"], of_document), read_table(shard.files["scores"], of_score)


def _flag_file(path: Path) -> InputFile:
    """Check that a file is an exclusion list and return it with its hash."""
    try:
        found = _read_flags(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError("cannot be read as flags, Parquet or CSV", where=path, hint=first_line(error)) from error
    if "site_id" not in found.columns:
        raise UserError("an exclusion list needs a column `site_id`", where=path, hint=f"it has {found.columns}")
    return InputFile(path, content_hash(path))


def _read_flags(path: Path) -> pl.DataFrame:
    """Read the log of flags of `rpt browse`, or a table. In CSV, remove the quote against formulas of spreadsheets."""
    if path.suffix == ".jsonl":
        with path.open("rb"):  # the log of no flags does not exist, but here it was named
            return pl.DataFrame(pl.from_arrow(Flags(path).table()))
    if path.suffix == ".parquet":
        return pl.read_parquet(path)
    return pl.read_csv(path, infer_schema=False).with_columns(pl.all().str.strip_prefix("'"))


def _flagged(shard: Shard) -> frozenset[str]:
    if "flags" not in shard.files:
        return frozenset()
    return frozenset(_read_flags(shard.files["flags"].verified())["site_id"].drop_nulls().to_list())


def _nothing_selected(config: SelectConfig, scores: Record) -> UserError:
    """Return the error for an empty selection; its hint states the spread of entropy and the fields."""
    files = scores.files("scores")
    looked = files[:: -(-len(files) // LOOKED_AT)] if files else []
    count_H, fields = entropy_spread(looked)
    exceeded = [f"{name} {quantile(count_H, share):.2f}" for name, share in _QUANTILES.items()]
    among = f" in {len(looked)} of {len(files):,} shards" if len(looked) < len(files) else ""
    return UserError(
        "`select.where` selects no training position",
        where=config.where,
        hint=f"of {count_H.sum():,} scored ones{among}, entropy exceeds {', '.join(exceeded)}; "
        f"fields: {', '.join(map(repr, sorted(fields)))}",
    )


_QUANTILES = {"in half": 0.5, "in 1 of 10": 0.9, "in 1 of 100": 0.99}

LOOKED_AT = 64
"""Most shards, spread over the corpus, whose scores are read to say what a rule could have selected."""
