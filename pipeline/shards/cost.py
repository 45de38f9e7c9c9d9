"""Estimates the cost of a manifest: runs the stages' own functions on a sample of its documents and extrapolates.

Each `try_…` runs in a worker on a part of the sample, so that start-up, threads and devices are those of a real run.
Tables are written to a temporary folder to measure their size.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.corpus import CorpusConfig
from pipeline.config.manifest import CountProxyConfig, Manifest, MaterializeConfig, TrainProxyConfig
from pipeline.config.selection import SelectConfig
from pipeline.core.files import size_of
from pipeline.core.parquet import ROW_GROUP, parquet_writer
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.corpus.dedup.near import band_rows, bands, batches
from pipeline.corpus.dedup.words import words
from pipeline.corpus.documents import CORPUS, DOCUMENTS
from pipeline.scoring.count_ngrams import count
from pipeline.scoring.count_tables import is_counted, open_tables
from pipeline.selection.corpus_rules import mixture_counts
from pipeline.selection.sites import select_sites, sites_schema
from pipeline.shards.examples import examples
from pipeline.shards.writer import write_shards

if TYPE_CHECKING:
    from pipeline.scoring.entropy import PositionScores

FIT_STEPS = 8
"""Training steps that are timed."""


@dataclass(frozen=True)
class Trial:
    """Measurements of a worker on its part of the sample."""

    elapsed: float
    """Seconds from the end of loading to the end of the work."""
    bytes: int
    """Size of the files that a run would keep."""
    counts: Mapping[str, list[int]] = field(default_factory=dict)
    """One number per document, by unit: `documents`, `tokens`, `sites`, `examples`."""
    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    """Tables that the next trial reads."""
    pace: float | None = None
    """Seconds per token after warm-up; None for trials without a warm-up."""


def try_documents(config: CorpusConfig, rows: Sequence[dict[str, Any]]) -> Trial:
    """Measure ingest: the band keys of near-duplicates, and the documents table twice, as candidates and as kept."""
    begin = time.monotonic()
    keys, rule = 0, config.near_duplicates
    if rule is not None:
        width = band_rows(rule.threshold)
        for texts in batches(row["text"] for row in rows):
            keys += sum(found.nbytes for found in bands([words(text) for text in texts], rule.words, width))
    size = _file_size("documents", pa.Table.from_pylist(rows, schema=DOCUMENTS), ROW_GROUP)
    return Trial(time.monotonic() - begin, 2 * size + keys, {"documents": [1] * len(rows)})


def try_scores(
    manifest: Manifest, folder: str, tokenizer: str, seconds: float, rows: Sequence[dict[str, Any]]
) -> Trial:
    """Measure score: tokenize and score documents and make their table, for about `seconds` at most."""
    from pipeline.scoring.table import ROW_GROUP as SCORES_ROW_GROUP
    from pipeline.scoring.table import ScoredDocument, scores_table

    rules, tokens = manifest.score, CorpusTokenizer.load(tokenizer)
    score = _scorer(manifest, folder, tokens)
    made, kept = list[pa.Table](), list[dict[str, Any]]()
    paces: list[tuple[float, int]] = []
    start = time.monotonic()
    for group in _growing(rows):
        begin = time.monotonic()
        ids = tokens.encode_batch([row["text"] for row in group])
        lossless = [(row, i) for row, i in zip(group, ids, strict=True) if tokens.is_lossless(row["text"], i)]
        scores = score([i for _, i in lossless], [row["doc_id"] for row, _ in lossless])
        scored = [
            ScoredDocument(row["doc_id"], row["split"], i, tokens.ends(i), row["fields"], s)
            for (row, i), s in zip(lossless, scores, strict=True)
        ]
        made.append(scores_table(scored, min_context_tokens=rules.min_context_tokens, with_top=rules.store_top))
        kept += [row for row, _ in lossless]
        paces.append((time.monotonic() - begin, sum(len(i) for _, i in lossless)))
        if time.monotonic() - start > seconds:
            break
    table, documents = pa.concat_tables(made), pa.Table.from_pylist(kept, schema=DOCUMENTS)
    size = _file_size("scores", table, SCORES_ROW_GROUP)
    warm = paces[1:] or paces  # the first group includes the warm-up
    return Trial(
        elapsed=time.monotonic() - start,
        bytes=size,
        counts={"tokens": [len(ids) for ids in table["token_ids"]]},
        tables={"documents": documents, "scores": table},
        pace=sum(seconds for seconds, _ in warm) / max(1, sum(count for _, count in warm)),
    )


def _scorer(
    manifest: Manifest, folder: str, tokenizer: CorpusTokenizer
) -> Callable[[Sequence[Any], Sequence[str]], list[PositionScores]]:
    """Return the function from token ids and names of documents to their scores, by a model or by counts."""
    if is_counted(folder):
        from pipeline.scoring.count_proxy import score_by_counts

        tables = open_tables(Path(folder))
        return lambda ids, _: score_by_counts(tables, ids, [True] * len(ids), manifest.score)
    from pipeline.scoring.documents import score_documents
    from pipeline.scoring.proxy import load_proxy

    proxy = load_proxy(Path(folder), tokenizer, manifest.proxy.dtype)
    return lambda ids, names: score_documents(proxy, ids, names, manifest.score)


def count_tokens(tokenizer: str, texts: Sequence[str]) -> list[int]:
    """Return the proxy tokens of every text that its tokenizer reproduces byte for byte; others are quarantined."""
    tokens = CorpusTokenizer.load(tokenizer)
    pairs = zip(texts, tokens.encode_batch(texts), strict=True)
    return [len(ids) for text, ids in pairs if tokens.is_lossless(text, ids)]


def try_select(config: SelectConfig, several: bool, scored: Trial) -> Trial:
    """Measure select on the scores of another trial, without the rules over the whole corpus.

    Args:
        config: the rules.
        several: whether the documents are from several sources.
        scored: a trial of `try_scores`.
    """
    begin = time.monotonic()
    documents, schema = scored.tables["documents"], sites_schema(config.metadata, several)
    found, _ = select_sites(config, documents, scored.tables["scores"], several=several)
    sites = found.select(schema.names).to_arrow().cast(schema)
    size = _file_size("sites", sites)
    counts = {"sites": _per_document(documents, sites)}
    return Trial(time.monotonic() - begin, size, counts, {"documents": documents, "sites": sites})


def try_materialize(config: MaterializeConfig, selected: Trial) -> Trial:
    """Measure materialize on the sites of another trial (`try_select`)."""
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
    """Measurements of a short training."""

    tokens: int
    """Tokens of its training texts."""
    step: float
    """Seconds per step."""
    rest: float
    """Seconds of everything else: the tokenizer, the report."""


def try_fit(config: TrainProxyConfig, texts: Sequence[str], held_out: Sequence[str], folder: Path) -> FitTrial:
    """Fit a proxy for a few steps into `folder`, and measure that."""
    from pipeline.scoring.fit import fit_proxy
    from pipeline.scoring.sample import Texts

    times = [time.monotonic()]  # the start, one per logged step, and one for the report
    short = config.model_copy(update={"max_steps": FIT_STEPS})
    report = fit_proxy(Texts([*texts], [*texts], [*held_out]), short, folder, lambda _: times.append(time.monotonic()))
    steps = int(report["steps"])
    step = float(np.median(np.diff(times[:-1])[1:])) if steps > 1 else times[1] - times[0]
    return FitTrial(int(report["tokens"]), step, max(0.0, times[-1] - times[0] - steps * step))


def try_count(config: CountProxyConfig, texts: Sequence[str], folder: Path) -> int:
    """Fit a tokenizer on texts and count them into `folder`, as the proxy is made. Returns their tokens."""
    from pipeline.scoring.own_tokenizer import write_tokenizer

    tokenizer = write_tokenizer(texts, config.vocab_size, folder)
    scratch = folder / "scratch"
    scratch.mkdir()
    stream = np.concatenate([[tokenizer.vocab_size, *ids] for ids in tokenizer.encode_batch(texts)])
    np.save(scratch / "tokens.npy", stream.astype(np.int32))
    count([scratch / "tokens.npy"], tokenizer.vocab_size, config.order, folder, scratch)
    shutil.rmtree(scratch)
    return len(stream) - len(texts)


def _growing(
    rows: Sequence[dict[str, Any]], first: int = 4096, most: int = 2_000_000
) -> Iterator[list[dict[str, Any]]]:
    """Yield rows in groups that double from `first` to `most` characters.

    Small first groups let slow models stop early; large later groups let fast models fill their batches.
    """
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
    """Return the bytes of a table's file; row groups must be those of the stage, because they affect compression."""
    with tempfile.TemporaryDirectory() as out:
        with parquet_writer(Path(out) / f"{name}.parquet", table.schema) as writer:
            writer.write_table(table, row_group_size=row_group)
        return size_of(Path(out))


# ------------------------------------------------------------------------------------------------- extrapolation


@dataclass(frozen=True)
class Estimate:
    """An estimated total with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def times(self, share: float) -> Estimate:
        """Return the estimate multiplied by a share."""
        return Estimate(share * self.value, share * self.low, share * self.high)


def estimate_total(values_D: Sequence[int], population: float, error: float = 0.0) -> Estimate:
    """Estimate the sum over all documents from a random sample without replacement (normal approximation).

    Args:
        values_D: one value per document of the sample.
        population: total number of documents.
        error: relative standard error of `population`, if that is itself an estimate.

    Example:
        >>> estimate_total([4, 6], 2), estimate_total([5, 5], 100)
        (Estimate(value=10.0, low=10.0, high=10.0), Estimate(value=500.0, low=500.0, high=500.0))
    """
    count, mean = len(values_D), float(np.mean(values_D))
    spread = float(np.std(values_D, ddof=1)) if count > 1 else mean
    unseen = max(0.0, 1 - count / population)  # finite population correction
    half = 1.96 * population * math.hypot(spread * math.sqrt(unseen / count), mean * error)
    return Estimate(population * mean, max(0.0, population * mean - half), population * mean + half)


def kept_share(config: SelectConfig, selected: Sequence[Trial], share: float) -> float:
    """Estimate the share of selected sites that the rules over the whole corpus keep; ignores thinning and strata.

    Args:
        config: the rules.
        selected: trials of `try_select`.
        share: documents of the corpus divided by those of the trials.

    Raises:
        UserError: a source of the mixture has no site.
    """
    sites = pa.concat_tables([trial.tables["sites"] for trial in selected])
    train = sites.filter(pc.equal(sites["split"], "train"))
    top = share * (config.top_fraction or 1.0)
    kept = train.num_rows * top
    if config.mixture:
        counts = train[CORPUS].value_counts().to_pylist()
        available = {entry["values"]: int(entry["counts"] * top) for entry in counts}
        kept = sum(mixture_counts(config.mixture.weights, available, None).values())
    kept = min(kept, config.max_sites or kept)
    return (kept / share + sites.num_rows - train.num_rows) / max(sites.num_rows, 1)


def wall_seconds(busy: float, shards: int, workers: int) -> float:
    """Return the seconds that `workers` need for `shards` of equal size with `busy` seconds of work in total.

    Example:
        >>> wall_seconds(busy=30.0, shards=3, workers=2), wall_seconds(busy=30.0, shards=1, workers=2)
        (20.0, 30.0)
    """
    return busy / shards * math.ceil(shards / workers)
