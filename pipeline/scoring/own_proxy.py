"""Makes a proxy from the corpus itself: the output `proxy`, and what comes before it.

    tokenizer   a sample of the documents   → `tokenizer`, a folder (counts only); of a large corpus, from some shards
    tokens      a shard of the documents    → `tokens`, the training split as token ids (counts only)
    proxy       all of it                   → `model`, a folder: one per fold, the count tables, or both

A fitted proxy never sees the documents of its own fold. Counts are of all training documents; a document's own counts
are subtracted when it is scored.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from pipeline.config.base import Config
from pipeline.config.errors import UserError
from pipeline.config.manifest import AutoProxyConfig, CountProxyConfig, ProxyConfig, TrainProxyConfig
from pipeline.core.artifact import Counters, InputFile, Record, Shard
from pipeline.core.executor import Executor
from pipeline.core.parquet import read_table
from pipeline.core.progress import log
from pipeline.core.random_keys import random_key
from pipeline.core.stage import Stage, run_stage
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.scoring.count_ngrams import count
from pipeline.scoring.count_proxy import counted_bits_per_byte
from pipeline.scoring.count_tables import ABOUT, open_tables
from pipeline.scoring.sample import Sample, read_texts

VERSION = 5
"""Version of `proxy`, `tokenizer` and `tokens`, raised whenever the output changes."""

TEXTS = 1000
"""Documents that are tokenized at once."""

READ_FOR_SAMPLE = 8
"""Stored bytes of documents that are read for each byte of a sample: a larger corpus is not read as a whole."""


def make_proxy(proxy: ProxyConfig, documents: Record, *, work: Path, executor: Executor) -> Record:
    """Return the output `proxy` of the documents, made if it is not there."""
    config, inputs = proxy.made_here, {"documents": documents.text_content}
    assert config is not None
    train = proxy.auto.train if proxy.auto else proxy.train
    counts = proxy.auto.count if proxy.auto else proxy.count
    files: dict[str, InputFile] = {}
    if train:
        files, sampled = _sampled(documents, train.sample_bytes, train.seed)
        inputs |= sampled
    shards = [Shard(fold, files, {"fold": fold}) for fold in range(train.folds if train else 0)]
    if counts:
        tokens, tokenizer = _tokens(counts, documents, work=work, executor=executor)
        counted = {"tokenizer": tokenizer} | {f"tokens-{i}": file for i, file in enumerate(tokens.files("tokens"))}
        shards.append(Shard(len(shards), counted | (files if proxy.auto else {}), {}))
        inputs |= {"tokens": tokens.content}
    return run_stage(Stage("proxy", VERSION, run, unit="tokens"), config, shards, inputs, work, executor)


def run(config: TrainProxyConfig | CountProxyConfig | AutoProxyConfig, source: Shard, out: Path) -> Counters:
    """Write one proxy to `model/`: that of a fold, or the counts. The one of `auto` is chosen later (`chosen`)."""
    if isinstance(config, AutoProxyConfig):
        return _run_auto(config, source, out)
    return _fit(config, source, out) if isinstance(config, TrainProxyConfig) else _count(config, source, out)


def _run_auto(config: AutoProxyConfig, source: Shard, out: Path) -> Counters:
    """Make one of the candidates and measure it: `microbits` is 10⁶ · bits per byte on held-out documents."""
    fold, files = source.details.get("fold"), _documents(source)
    if fold is None:
        counters = _count(config.count, source, out)
        tables, tokenizer = open_tables(out / "model"), CorpusTokenizer.load(out / "model")
        measured = [read_texts(files, fold, config.train) for fold in range(config.train.folds)]
        bits = [counted_bits_per_byte(tables, tokenizer, texts) for texts in measured]
        return counters | {"microbits": round(1e6 * sum(bits) / len(bits))}
    texts = read_texts(files, fold, config.train)
    size = sum(len(text.encode()) for text in texts.tokenizer)
    if size < config.fit_from_bytes:
        _log_fold(fold, f"not fitted on {size:,} bytes (proxy.auto.fit_from_bytes)")
        return {}
    return _fit(config.train, source, out)


def chosen(proxy: ProxyConfig, made: Record) -> list[InputFile]:
    """Return the folders of the proxy that scores, and say which one `auto` takes: the one with fewer bits per byte."""
    if proxy.auto is None:
        return made.files("model")
    folds = proxy.auto.train.folds
    *fitted, counted = islice(made.completions(), folds + 1)
    bits = counted.counters["microbits"] / 1e6
    if not all("microbits" in done.counters for done in fitted):
        log(f"proxy        counts: {bits:.3f} bits/byte on held-out documents; no model was fitted (proxy: auto)")
        return made.files("model")[-1:]
    theirs = sum(done.counters["microbits"] for done in fitted) / folds / 1e6
    better = "the fitted model" if theirs < bits else "the counts"
    log(f"proxy        bits/byte on held-out documents: counts {bits:.3f}, fitted {theirs:.3f}: {better} (proxy: auto)")
    return made.files("model")[:-1] if theirs < bits else made.files("model")[-1:]


def _sampled(documents: Record, sample_bytes: int, seed: int) -> tuple[dict[str, InputFile], dict[str, str]]:
    """Return the files that a sample of the documents is drawn from, and what that adds to a fingerprint.

    These are all of them, which adds nothing, or of a large corpus as many as have `READ_FOR_SAMPLE` times the bytes,
    drawn by a hash of (seed, shard).
    """
    files = documents.files("documents")
    stored = documents.summary.tables["documents"]
    count = -(-READ_FOR_SAMPLE * sample_bytes * len(files) // max(stored.bytes, 1))
    if count >= len(files):
        return {f"documents-{i}": file for i, file in enumerate(files)}, {}
    drawn = sorted(sorted(range(len(files)), key=partial(random_key, "sampled shards", seed))[:count])
    return {f"documents-{i}": files[i] for i in drawn}, {"sampled_shards": f"{count} of {len(files)}"}


def _documents(source: Shard) -> list[InputFile]:
    return [file for name, file in source.files.items() if name.startswith("documents-")]


# ------------------------------------------------------------------------------------------------- fitted


def _fit(config: TrainProxyConfig, source: Shard, out: Path) -> Counters:
    """Fit the proxy of one fold and write it to `model/` in `transformers` format."""
    from pipeline.scoring.fit import fit_proxy

    fold = source.details["fold"]
    texts = read_texts(_documents(source), fold, config)
    report = fit_proxy(texts, config, out / "model", partial(_log_fold, fold))
    bits = {"microbits": round(1e6 * report["bits_per_byte"])}
    return {name: report[name] for name in ("documents", "tokens", "steps")} | bits


def _log_fold(fold: int, line: str) -> None:
    log(f"proxy        fold {fold}: {line}")


# ------------------------------------------------------------------------------------------------ counted


class TokensConfig(Config):
    """What decides the tokens of the training split: the tokenizer's settings."""

    vocab_size: int | None
    sample_bytes: int
    seed: int


def _tokens(config: CountProxyConfig, documents: Record, *, work: Path, executor: Executor) -> tuple[Record, InputFile]:
    """Return the output `tokens` of the documents, and the tokenizer that was fitted for it."""
    settings = TokensConfig(vocab_size=config.vocab_size, sample_bytes=config.sample_bytes, seed=config.seed)
    inputs = {"documents": documents.text_content}
    some, sampled = _sampled(documents, config.sample_bytes, config.seed)
    fitted = run_stage(TOKENIZER, settings, [Shard(0, some, {})], inputs | sampled, work, executor)
    (tokenizer,) = fitted.files("tokenizer")
    inputs |= {"tokenizer": fitted.content}
    files = enumerate(documents.files("documents"))
    shards = [Shard(i, {"documents": file, "tokenizer": tokenizer}, {}) for i, file in files]
    return run_stage(TOKENS, settings, shards, inputs, work, executor), tokenizer


def run_tokenizer(config: TokensConfig, source: Shard, out: Path) -> Counters:
    """Fit a tokenizer on a sample of the training documents and write it to `tokenizer/`."""
    from pipeline.scoring.own_tokenizer import write_tokenizer

    sample = Sample(config.sample_bytes, config.seed)
    for file in source.files.values():
        for row in read_table(file, ["doc_id", "split", "text"]).to_pylist():
            if row["split"] == "train":
                sample.offer(row["doc_id"], row["text"])
    texts = sample.texts()
    tokenizer = write_tokenizer(texts, config.vocab_size, out / "tokenizer")
    return {"documents": len(texts), "tokens": tokenizer.vocab_size}


def run_tokens(config: TokensConfig, source: Shard, out: Path) -> Counters:
    """Write the training documents that the tokenizer represents, each after a token of its own, to `tokens.npy`."""
    tokenizer = CorpusTokenizer.load(source.files["tokenizer"].path)
    rows = read_table(source.files["documents"], ["split", "text"]).to_pylist()
    texts = [row["text"] for row in rows if row["split"] == "train"]
    parts, documents, begins = [np.empty(0, np.int32)], 0, np.array([tokenizer.vocab_size], np.int32)
    for begin in range(0, len(texts), TEXTS):
        some = texts[begin : begin + TEXTS]
        ids = tokenizer.encode_batch(some)
        for document, lossless in zip(ids, tokenizer.are_lossless(some, ids), strict=True):
            if lossless:  # others are quarantined when documents are scored
                parts += [begins, document]
                documents += 1
    stream = np.concatenate(parts).astype(np.int32)
    np.save(out / "tokens.npy", stream)
    return {"documents": documents, "tokens": len(stream) - documents}


def _count(config: CountProxyConfig, source: Shard, out: Path) -> Counters:
    """Count the n-grams and write the tables, with the tokenizer, to `model/`."""
    shutil.copytree(source.files["tokenizer"].path, out / "model")
    tokenizer = CorpusTokenizer.load(out / "model")
    streams = [file.path for name, file in source.files.items() if name.startswith("tokens-")]
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        count(streams, tokenizer.vocab_size, config.order, out / "model", Path(scratch))
    about = json.loads((out / "model" / ABOUT).read_text())
    if not about["tokens"]:
        raise UserError(
            "no training document can be counted", where="proxy.count", hint="use fewer validation documents"
        )
    return {name: about[name] for name in ("documents", "tokens")} | {"ngrams": sum(about["entries"])}


TOKENIZER = Stage("tokenizer", VERSION, run_tokenizer)
TOKENS = Stage("tokens", VERSION, run_tokens, unit="tokens")
