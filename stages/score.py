"""Score: measure how uncertain a proxy is at every position of the corpus.

Input:   `documents` (from ingest), and a proxy: a `transformers` causal LM, or one that is made from them first.
Output:  `proxy`, if it is made from them (`pipeline/scoring/own_proxy.py`); `score`: `scores`, one row per document
         with token ids, byte boundaries, entropy, nll and rank of every position, and `quarantine`, the documents that
         the proxy's tokenizer cannot represent. Shard i of `scores` belongs to shard i of `documents`.
Command: rpt score data_manifests/<name>.yaml

Documents that hold an added token of the tokenizer literally (`<|im_end|>`) are scored as ordinary text, and counted as
`documents.holding_added_tokens`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.base import Config
from pipeline.config.errors import UserError
from pipeline.config.manifest import Manifest, ProxyConfig, ReferenceConfig, ScoreConfig
from pipeline.core.artifact import Counters, InputFile, Record, Shard, write_pointer
from pipeline.core.executor import Executor
from pipeline.core.hardware import torch_device
from pipeline.core.marks import BEGUN
from pipeline.core.model_files import TOKENIZER_FILES, count_weights, model_digest, resolve_model
from pipeline.core.parquet import read_table, write_tables
from pipeline.core.parts import Parts, Rows
from pipeline.core.pointers import proxy_pointer
from pipeline.core.precision import DTYPES, Dtype, proxy_dtype
from pipeline.core.progress import log
from pipeline.core.stage import Stage, output_folder, run_stage
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.corpus.quarantine import QUARANTINE, Rejected, quarantine_table
from pipeline.scoring.count_tables import CountTables, is_counted, open_tables
from pipeline.scoring.own_proxy import chosen, make_proxy
from pipeline.scoring.sample import fold_of

if TYPE_CHECKING:
    from pipeline.scoring.entropy import PositionScores
    from pipeline.scoring.proxy import Proxy
    from pipeline.scoring.table import ScoredDocument

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
Tokenized = tuple[dict[str, Any], Any]
"""A row of the documents table, and its token ids."""

VERSION = 6
"""Version of `score`, raised whenever the output changes."""

GROUP_CHARACTERS = {"cpu": 8_000, "cuda": 2_000_000}
"""Characters of text scored at once, by device: a few seconds' work. GPUs need many windows of similar length."""
GROUP_CHARACTERS_COUNTED = 200_000
"""The same for counts: about a second's work."""


class ScoreStageConfig(Config):
    """The part of the manifest that `run` needs. The proxy enters the fingerprint by its content instead."""

    locations: ClassVar[frozenset[str]] = frozenset({"tokenizer"})

    score: ScoreConfig
    dtype: Dtype
    """The number format in which the proxy computes, with "auto" resolved."""
    tokenizer: str | None
    """Folder or file of the tokenizer, if it is not in the proxy's folder."""


def score(manifest: Manifest, documents: Record, *, work: Path, executor: Executor) -> Record:
    """Make the proxy if the manifest says so, then score all documents.

    Raises:
        UserError: the proxy cannot be loaded or does not match its tokenizer, or no document can be tokenized
            losslessly.
    """
    proxy = manifest.proxy
    if proxy.made_here is not None:
        fitted = make_proxy(proxy, documents, work=work, executor=executor)
        models, inputs = chosen(proxy, fitted), {"proxy": fitted.content}
        tokenizer = models[0].path
    else:
        assert proxy.model is not None
        folder = resolve_model(proxy.model, proxy.revision)
        tokenizer = resolve_tokenizer(proxy, folder)
        models, inputs = [InputFile(folder)], {"proxy": model_digest(folder)}
    inputs |= {"documents": documents.text_content, "tokenizer": CorpusTokenizer.load(tokenizer).digest}
    extra: dict[str, InputFile] = {}
    if manifest.reference is not None:
        folder = reference_folder(manifest.reference, inputs["tokenizer"])
        extra, inputs["reference"] = {"reference": InputFile(folder)}, model_digest(folder)
    proxies = {f"model-{fold}": model for fold, model in enumerate(models)}
    shards = [
        Shard(index, {"documents": file} | proxies | extra, inputs)
        for index, file in enumerate(documents.files("documents"))
    ]
    weights = [model.path for model in [models[0], *extra.values()] if not is_counted(model.path)]
    per_token = 2.0 * sum(map(count_weights, weights)) or None
    stage = Stage("score", VERSION, run, unit="tokens", accelerated=bool(weights), flops=per_token)
    config = stage_config(manifest, str(tokenizer), lambda config: output_folder(stage, config, inputs, work))
    record = run_stage(stage, config, shards, inputs, work, executor)
    write_pointer(proxy_pointer(work, manifest), record.directory)
    if not record.counters.get("documents"):
        raise UserError(
            "no document can be scored: the proxy's tokenizer is lossy on all of them",
            where=tokenizer,
            hint="choose a proxy with a byte-level tokenizer, or `proxy: auto`",
        )
    return record


def stage_config(manifest: Manifest, tokenizer: str, folder: Callable[[Config], Path]) -> ScoreStageConfig:
    """Return the stage's configuration, with `proxy.dtype: auto` resolved.

    `auto` means the number format of scores that are published or begun: scores made on another machine are used as
    they are, and a killed run goes on as it began. Otherwise see `proxy_dtype`.

    Args:
        manifest: the manifest.
        tokenizer: folder or file of the tokenizer.
        folder: the output folder of a configuration.
    """
    proxy = manifest.proxy
    configs = [ScoreStageConfig(score=manifest.score, dtype=d, tokenizer=tokenizer) for d in DTYPES]
    if proxy.dtype == "auto" and not proxy.made_here:
        for name, state in (("record.json", "published"), (BEGUN, "begun")):
            for config in configs:
                if (folder(config) / name).exists():
                    log(f"score        scores in {config.dtype} are {state} already (proxy.dtype: auto)")
                    return config
    dtype = proxy_dtype(proxy, "score")
    return next(config for config in configs if config.dtype == dtype)


def resolve_tokenizer(proxy: ProxyConfig, folder: Path) -> Path:
    """Return the folder of the manifest's tokenizer, or of the model if it has its own."""
    return resolve_model(proxy.tokenizer, files=TOKENIZER_FILES) if proxy.tokenizer else folder


def reference_folder(reference: ReferenceConfig, tokenizer: str) -> Path:
    """Return the folder of the reference model.

    Raises:
        UserError: its tokenizer differs from the proxy's (by digest), so their losses are not comparable.
    """
    folder = resolve_model(reference.model, reference.revision)
    if CorpusTokenizer.load(folder).digest != tokenizer:
        raise UserError(
            "the reference model has another tokenizer than the proxy", where=folder,
            hint="choose two models of the same family, or train one with the tokenizer of the other",
        )  # fmt: skip
    return folder


# ------------------------------------------------------------------------------------------------- the scores


def run(config: ScoreStageConfig, source: Shard, out: Path) -> Counters:
    """Write `scores.parquet` and `quarantine.parquet` of one shard of documents.

    A killed worker's successor goes on within the shard (`Parts`).
    """
    from pipeline.scoring.table import ROW_GROUP, SCORES, SCORES_WITH_TOP

    documents = read_table(source.files["documents"])
    tokenizer = _tokenizer(config.tokenizer or _folders(source)[0])
    while (parts := Parts(out, len(documents))).done < len(documents):
        if parts.done:
            log(f"score        shard {source.index} goes on after {parts.done:,} of {len(documents):,} documents")
        _score_rest(config, source, documents, parts)
    write_tables(
        out / "scores.parquet",
        SCORES_WITH_TOP if config.score.store_top else SCORES,
        parts.tables("scores"),
        metadata=_metadata(config, source, tokenizer),
        row_group=ROW_GROUP,
    )
    if rejected := list(parts.tables("quarantine")):
        write_tables(out / "quarantine.parquet", QUARANTINE, rejected)
    names = ("documents", "documents.holding_added_tokens", "tokens", "scorable", "not_scorable")
    return dict.fromkeys(names, 0) | parts.counters()


def _score_rest(config: ScoreStageConfig, source: Shard, documents: pa.Table, parts: Parts) -> None:
    """Score the documents that no part holds yet.

    While the model scores one group of documents, the next is tokenized and the previous one is written in the
    background: tokenizing and writing a million tokens takes seconds of a core, about a third of the time in which a 1B
    model on a GPU scores them.
    """
    folders, reference = _folders(source), source.files.get("reference")
    tokenizer = _tokenizer(config.tokenizer or folders[0])
    limit = GROUP_CHARACTERS_COUNTED if is_counted(folders[0]) else GROUP_CHARACTERS[torch_device()]
    with ThreadPoolExecutor(1) as background:
        written: Future[None] = background.submit(lambda: None)
        for kept, lossy in _ahead(partial(_tokenized, tokenizer), _groups(documents, parts.done, limit)):
            scored = _scored([row for row, _ in kept], [ids for _, ids in kept], folders, tokenizer, config)
            if reference is not None:
                scored = _with_reference(scored, str(reference.path), config)
            written.result()
            written = background.submit(_add, parts, kept, lossy, scored, tokenizer, config)
        written.result()
    parts.publish()


def _folders(source: Shard) -> list[str]:
    """Return the folders of the proxies, by fold."""
    return [str(file.path) for name, file in source.files.items() if name.startswith("model-")]


def _add(
    parts: Parts, kept: Sequence[Tokenized], lossy: Sequence[dict[str, Any]], scored: Sequence[ScoredDocument],
    tokenizer: CorpusTokenizer, config: ScoreStageConfig,
) -> None:  # fmt: skip
    """Add the rows of one group of documents to the shard's parts."""
    from pipeline.scoring.table import scores_table

    least = config.score.min_context_tokens
    tables = {"scores": scores_table(scored, min_context_tokens=least, with_top=config.score.store_top)}
    tokens = sum(len(ids) for _, ids in kept)
    scorable = sum(max(0, len(ids) - least) for _, ids in kept)
    counters = {
        "documents": len(kept),
        "documents.holding_added_tokens": sum(tokenizer.holds_added_token(row["text"]) for row, _ in kept),
        "tokens": tokens,
        "scorable": scorable,
        "not_scorable": tokens - scorable,
    }
    if lossy:
        tables["quarantine"] = quarantine_table(_rejected(row) for row in lossy)
        counters["quarantined.tokenizer_not_lossless"] = len(lossy)
    parts.add(Rows(len(kept) + len(lossy), tables, counters, tokens))


def _ahead(function: Callable[[ItemT], ResultT], items: Iterable[ItemT]) -> Iterator[ResultT]:
    """Yield the function's result for every item, in order; a thread computes the next one ahead of the caller."""
    with ThreadPoolExecutor(1) as thread:
        pending: list[Future[ResultT]] = []
        for item in items:
            pending.append(thread.submit(function, item))
            if len(pending) == 2:
                yield pending.pop(0).result()
        for last in pending:
            yield last.result()


def _groups(documents: pa.Table, start: int, limit: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of the documents table from `start` on, in groups of at least `limit` characters of text.

    Groups are the same from wherever one starts.
    """
    first, size = 0, 0
    for row, characters in enumerate(pc.utf8_length(documents["text"]).to_pylist(), 1):
        size += characters
        if size >= limit or row == len(documents):
            if row > start:
                begin = max(first, start)
                yield documents.slice(begin, row - begin).to_pylist()
            first, size = row, 0


def _tokenized(
    tokenizer: CorpusTokenizer, group: Sequence[dict[str, Any]]
) -> tuple[list[Tokenized], list[dict[str, Any]]]:
    """Return the rows with their token ids, and the rows whose tokens do not reproduce their bytes."""
    ids = tokenizer.encode_batch([row["text"] for row in group])
    lossless = tokenizer.are_lossless([row["text"] for row in group], ids)
    kept = [(row, i) for row, i, good in zip(group, ids, lossless, strict=True) if good]
    return kept, [row for row, good in zip(group, lossless, strict=True) if not good]


def _scored(
    rows: Sequence[Mapping[str, Any]], ids: Sequence[Any], folders: Sequence[str], tokenizer: CorpusTokenizer,
    config: ScoreStageConfig,
) -> list[ScoredDocument]:  # fmt: skip
    """Return the documents in the order of the rows, each scored by its fold's proxy or by the others' counts."""
    from pipeline.scoring.count_proxy import score_by_counts
    from pipeline.scoring.table import ScoredDocument

    if is_counted(folders[0]):
        counted = [row["split"] == "train" for row in rows]
        scores = score_by_counts(_counts(folders[0]), ids, counted, config.score)
    else:
        scores = _scored_by_folds(rows, ids, folders, config)
    return [
        ScoredDocument(row["doc_id"], row["split"], i, ends, row["fields"], s)
        for row, i, ends, s in zip(rows, ids, tokenizer.ends_of_each(ids), scores, strict=True)
    ]


def _scored_by_folds(
    rows: Sequence[Mapping[str, Any]], ids: Sequence[Any], folders: Sequence[str], config: ScoreStageConfig
) -> list[PositionScores]:
    from pipeline.scoring.documents import score_documents

    scores: dict[int, PositionScores] = {}
    for fold, folder in enumerate(folders):
        mine = [n for n, row in enumerate(rows) if fold_of(row["doc_id"], len(folders)) == fold]
        if mine:
            proxy = _proxy(folder, config.tokenizer or folder, config.dtype)
            names = [f"{rows[n]['doc_id']} ({rows[n]['source_file']}, row {rows[n]['source_row']})" for n in mine]
            scores |= dict(zip(mine, score_documents(proxy, [ids[n] for n in mine], names, config.score), strict=True))
    return [scores[n] for n in range(len(rows))]


def _with_reference(scored: Sequence[ScoredDocument], folder: str, config: ScoreStageConfig) -> list[ScoredDocument]:
    """Return the documents with the reference model's scores of the same tokens."""
    from pipeline.scoring.documents import score_documents

    proxy = _proxy(folder, folder, config.dtype)
    names = [f"{document.doc_id} (reference)" for document in scored]
    scores = score_documents(proxy, [document.token_ids for document in scored], names, config.score)
    return [replace(document, reference=of) for document, of in zip(scored, scores, strict=True)]


def _rejected(row: Mapping[str, Any]) -> Rejected:
    detail = f"document {row['doc_id']}: token bytes do not concatenate to the text"
    return Rejected(
        row["source_file"], row["source_row"], row["text"].encode(), "tokenizer_not_lossless", detail
    )  # fmt: skip


def _metadata(config: ScoreStageConfig, source: Shard, tokenizer: CorpusTokenizer) -> dict[str, str]:
    import torch
    import transformers

    return {
        "rpt.stage": "score",
        "rpt.tokenizer": tokenizer.digest,
        "rpt.proxy": source.details["proxy"],
        "rpt.documents": source.details["documents"],
        "rpt.dtype": config.dtype,
        "rpt.score": json.dumps(config.score.identity(), sort_keys=True),
        "rpt.bos": "none" if tokenizer.bos_id is None else f"id {tokenizer.bos_id} before every window, not a position",
        "rpt.versions": json.dumps({"torch": torch.__version__, "transformers": transformers.__version__}),
    }


@lru_cache(maxsize=4)
def _tokenizer(path: str) -> CorpusTokenizer:
    """Load once per worker process."""
    return CorpusTokenizer.load(path)


@lru_cache(maxsize=4)
def _proxy(folder: str, tokenizer: str, dtype: str) -> Proxy:
    """Load once per worker process."""
    from pipeline.scoring.proxy import load_proxy

    return load_proxy(Path(folder), _tokenizer(tokenizer), dtype)


@lru_cache(maxsize=1)
def _counts(folder: str) -> CountTables:
    """Open once per worker process."""
    return open_tables(Path(folder))
