"""What a manifest will cost: the stages' own functions on a sample of its documents, and the whole from that.

Each `try_…` is called in a worker on a part of the sample, so that start-up, threads and devices are those of a run.
Tables are written to a temporary folder to learn their size, and are gone when it returns.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.corpus import CorpusConfig
from pipeline.config.manifest import Manifest, MaterializeConfig, TrainProxyConfig
from pipeline.config.selection import SelectConfig
from pipeline.core.parquet import ROW_GROUP, parquet_writer
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.corpus.documents import CORPUS, DOCUMENTS
from pipeline.corpus.near import band_rows, bands
from pipeline.corpus.words import shingles, words
from pipeline.selection.corpus_rules import mixture_counts
from pipeline.selection.sites import select_sites, sites_schema
from pipeline.shards.examples import examples
from pipeline.shards.writer import write_shards

FIT_STEPS = 8
"""Steps of a training that are timed."""


@dataclass(frozen=True)
class Trial:
    """What a worker measured on its part of the sample."""

    elapsed: float
    """Seconds from when everything was loaded to the end."""
    bytes: int
    """Of what a run would keep of it."""
    counts: Mapping[str, list[int]] = field(default_factory=dict)
    """A number a document: `documents`, `tokens`, `sites`, `examples`."""
    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    """For the trial that follows."""
    pace: float | None = None
    """Seconds a token, where what came first was too slow to count."""


def try_documents(config: CorpusConfig, rows: Sequence[dict[str, Any]]) -> Trial:
    """Band keys of near-duplicates, and the documents table twice: as candidates, and as they stay."""
    begin = time.monotonic()
    keys, rule = 0, config.near_duplicates
    if rule is not None:
        width = band_rows(rule.threshold)
        keys = sum(bands(shingles(words(row["text"]), rule.words), width).nbytes for row in rows)
    size = _file_size("documents", pa.Table.from_pylist(rows, schema=DOCUMENTS), ROW_GROUP)
    return Trial(time.monotonic() - begin, 2 * size + keys, {"documents": [1] * len(rows)})


def try_scores(
    manifest: Manifest, folder: str, tokenizer: str, seconds: float, rows: Sequence[dict[str, Any]]
) -> Trial:
    """Tokenize, score and tabulate documents, for about so many seconds at most."""
    from pipeline.scoring.documents import score_documents
    from pipeline.scoring.proxy import load_proxy
    from pipeline.scoring.table import ROW_GROUP as SCORES_ROW_GROUP
    from pipeline.scoring.table import ScoredDocument, scores_table

    rules, tokens = manifest.score, CorpusTokenizer.load(tokenizer)
    proxy = load_proxy(Path(folder), tokens, manifest.proxy.dtype)
    made, kept = list[pa.Table](), list[dict[str, Any]]()
    paces: list[tuple[float, int]] = []
    start = time.monotonic()
    for group in _growing(rows):
        begin = time.monotonic()
        ids = tokens.encode_batch([row["text"] for row in group])
        good = [(row, i) for row, i in zip(group, ids, strict=True) if tokens.is_lossless(row["text"], i)]
        scores = score_documents(proxy, [i for _, i in good], [row["doc_id"] for row, _ in good], rules)
        scored = [
            ScoredDocument(row["doc_id"], row["split"], i, tokens.ends(i), row["fields"], s)
            for (row, i), s in zip(good, scores, strict=True)
        ]
        made.append(scores_table(scored, min_context_tokens=rules.min_context_tokens, with_top=rules.store_top))
        kept += [row for row, _ in good]
        paces.append((time.monotonic() - begin, sum(len(i) for _, i in good)))
        if time.monotonic() - start > seconds:
            break
    table, documents = pa.concat_tables(made), pa.Table.from_pylist(kept, schema=DOCUMENTS)
    size = _file_size("scores", table, SCORES_ROW_GROUP)
    warm = paces[1:] or paces
    return Trial(
        elapsed=time.monotonic() - start,
        bytes=size,
        counts={"tokens": [len(ids) for ids in table["token_ids"]]},
        tables={"documents": documents, "scores": table},
        pace=sum(seconds for seconds, _ in warm) / max(1, sum(count for _, count in warm)),
    )


def try_select(config: SelectConfig, several: bool, scored: Trial) -> Trial:
    """Select among what another trial scored, of several sources or one. Rules over the whole corpus do not apply."""
    begin = time.monotonic()
    documents, schema = scored.tables["documents"], sites_schema(config.metadata, several)
    found, _ = select_sites(config, documents, scored.tables["scores"], several=several)
    sites = found.select(schema.names).to_arrow().cast(schema)
    size = _file_size("sites", sites)
    counts = {"sites": _per_document(documents, sites)}
    return Trial(time.monotonic() - begin, size, counts, {"documents": documents, "sites": sites})


def try_materialize(config: MaterializeConfig, selected: Trial) -> Trial:
    """Make examples of what another trial selected."""
    tokenizer = CorpusTokenizer.load(config.policy_tokenizer, config.policy_tokenizer_revision)
    begin = time.monotonic()
    documents = selected.tables["documents"]
    made = examples(config, tokenizer, documents, selected.tables["sites"])
    with tempfile.TemporaryDirectory() as out:
        write_shards(Path(out), made, config.row_group, {})
        size = size_of(Path(out))
    return Trial(time.monotonic() - begin, size, {"examples": _per_document(documents, made.sites)})


@dataclass(frozen=True)
class FitTrial:
    """What a short training told of the whole one."""

    tokens: int
    """Of the texts it had."""
    step: float
    """Seconds of a step."""
    rest: float
    """Seconds of everything else: the tokenizer, the report."""


def try_fit(config: TrainProxyConfig, texts: Sequence[str], held_out: Sequence[str], folder: Path) -> FitTrial:
    """Fit a proxy for a few steps into `folder`."""
    from pipeline.scoring.fit import fit_proxy
    from pipeline.scoring.sample import Texts

    said = [time.monotonic()]
    short = config.model_copy(update={"max_steps": FIT_STEPS})
    report = fit_proxy(Texts([*texts], [*texts], [*held_out]), short, folder, lambda _: said.append(time.monotonic()))
    steps = int(report["steps"])  # each says a line, and so does the report
    step = float(np.median(np.diff(said[:-1])[1:])) if steps > 1 else said[1] - said[0]
    return FitTrial(int(report["tokens"]), step, max(0.0, said[-1] - said[0] - steps * step))


def _growing(
    rows: Sequence[dict[str, Any]], first: int = 4096, most: int = 2_000_000
) -> Iterator[list[dict[str, Any]]]:
    """Rows in groups that double, from `first` to `most` bytes: slow models stop early, fast ones fill batches."""
    group: list[dict[str, Any]] = []
    size, limit = 0, first
    for row in rows:
        group.append(row)
        size += len(row["text"])
        if size >= limit:
            yield group
            group, size, limit = [], 0, min(most, 2 * limit)
    if group:
        yield group


def _per_document(documents: pa.Table, rows: pa.Table) -> list[int]:
    counts = {entry["values"]: entry["counts"] for entry in rows["doc_id"].value_counts().to_pylist()}
    return [counts.get(doc_id, 0) for doc_id in documents["doc_id"].to_pylist()]


def _file_size(name: str, table: pa.Table, row_group: int | None = None) -> int:
    """Bytes of a table's file; row groups must be those of the stage, for they compress differently."""
    with tempfile.TemporaryDirectory() as out:
        with parquet_writer(Path(out) / f"{name}.parquet", table.schema) as writer:
            writer.write_table(table, row_group_size=row_group)
        return size_of(Path(out))


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# ------------------------------------------------------------------------------------------------- the whole


@dataclass(frozen=True)
class Estimate:
    """A total, and the interval that holds it in 95 of 100 samples."""

    value: float
    low: float
    high: float

    def times(self, share: float) -> Estimate:
        """The same where this share is kept."""
        return Estimate(share * self.value, share * self.low, share * self.high)


def estimate_total(values_D: Sequence[int], population: float, error: float = 0.0) -> Estimate:
    """The sum over all documents, from a random sample of them without replacement (normal approximation).

    Args:
        values_D: of the documents of the sample.
        population: documents in all.
        error: relative standard error of `population`, where it is itself an estimate.

    Example:
        >>> estimate_total([4, 6], 2), estimate_total([5, 5], 100)
        (Estimate(value=10.0, low=10.0, high=10.0), Estimate(value=500.0, low=500.0, high=500.0))
    """
    count, mean = len(values_D), float(np.mean(values_D))
    spread = float(np.std(values_D, ddof=1)) if count > 1 else mean
    unseen = max(0.0, 1 - count / population)
    half = 1.96 * population * math.hypot(spread * math.sqrt(unseen / count), mean * error)
    return Estimate(population * mean, max(0.0, population * mean - half), population * mean + half)


def kept_share(config: SelectConfig, selected: Sequence[Trial], share: float) -> float:
    """The share of selected sites that rules over the whole corpus leave; thinning and strata are not foreseen.

    Args:
        config: the rules.
        selected: trials of `try_select`.
        share: documents of the corpus, over those of the trials.

    Raises:
        UserError: the mixture wants sites of a source that has none.
    """
    sites = pa.concat_tables([trial.tables["sites"] for trial in selected])
    train = sites.filter(pc.equal(sites["split"], "train"))
    top = share * (config.top_fraction or 1.0)
    kept = train.num_rows * top
    if config.mixture:
        counted = train[CORPUS].value_counts().to_pylist()
        available = {entry["values"]: int(entry["counts"] * top) for entry in counted}
        kept = sum(mixture_counts(config.mixture.weights, available, None).values())
    kept = min(kept, config.max_sites or kept)
    return (kept / share + sites.num_rows - train.num_rows) / max(sites.num_rows, 1)


def wall_seconds(busy: float, shards: int, workers: int) -> float:
    """Seconds in which `workers` do `shards` of equal size that take `busy` seconds together.

    Example:
        >>> wall_seconds(busy=30.0, shards=3, workers=2), wall_seconds(busy=30.0, shards=1, workers=2)
        (20.0, 30.0)
    """
    return busy / shards * math.ceil(shards / workers)
