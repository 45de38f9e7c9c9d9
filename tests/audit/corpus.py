"""A small corpus of real and of hostile text: ingested, selected and made into shards by the real stages.

Only its scores are made by hand: ordinary documents are cut by a byte-level tokenizer, hostile ones into words.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from commands.inspect.audit import audit, compare
from pipeline.audit.lineage import Lineage, lineage_of
from pipeline.config.manifest import Manifest
from pipeline.core.artifact import Counters, Record, Shard, write_pointer
from pipeline.core.parquet import parquet_writer, read_table
from pipeline.core.pointers import proxy_pointer
from pipeline.core.stage import Stage, run_stage
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.scoring.table import SCORES_WITH_TOP, token_fields
from stages.certificate import certify
from stages.ingest import ingest
from stages.materialize import materialize
from stages.score import ScoreStageConfig
from stages.select import select
from tests.stages.published import InProcess
from tests.toys import byte_level_tokenizer, problems, write_jsonl

RUN = "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=2><b onclick=pwned=3>b</b> {{ 7*7 }}"
HOSTILE = (
    RUN,
    "right to left: \u202eevil\u202c \u2066isolate\u2069 שלום עולם and back, \u200bzero\u200d width\ufeff marks",
    "control: \x1b[31mred\x1b[0m \x07 bell \x7f delete \x0c feed \x85 next \u2028 line \u2029 end, \u0301mark",
    "long: " + "A" * 10_240 + " end of the long token, and some words after it, so that it has a site",
)
"""Texts that try to run, to turn the page around, or to break its layout."""

RARE = "".join(chr(0x4E00 + 97 * i) for i in range(40))
"""Characters that are several tokens."""

QUARANTINED = (
    b'{"problem": "</script><script>window.pwned=4</script>\x1b[31m, broken',
    b'{"problem": "\\ud800", "solution": "a lone surrogate"}',
    b"\xff\xfe not UTF-8 \xe2\x80",
)
LEAKED = "how many moons <b> circle the seventh planet of a red star"
"""In the evaluation set, and in two documents, one of which the other nearly is."""
WHERE = "entropy > 1.0 AND field = 'solution'"
OTHER = "entropy > 1.3"
TOP = 4


@dataclass(frozen=True)
class Audited:
    """Where everything lies."""

    folder: Path
    path: Path
    """The manifest's."""
    manifest: Manifest
    work: Path
    lineage: Lineage
    other: Lineage
    report: Path
    comparison: Path

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.report.parent / "audit.json").read_text(encoding="utf-8"))


def build(folder: Path) -> Audited:
    """The corpus, two selections of it, the report of the first and the comparison of both, under `folder`."""
    rows = _rows()
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    lines[10:10] = QUARANTINED
    write_jsonl(folder / "evaluation.jsonl", [{"text": LEAKED}])
    source = folder / "corpus <b>.jsonl"
    source.write_bytes(b"\n".join([*lines, *lines[:2]]) + b"\n")
    tokenizer = byte_level_tokenizer(folder / "tokenizer", [row["problem"] + row["solution"] for row in rows])
    work = folder / "work"

    def manifest(where: str) -> Manifest:
        return Manifest.model_validate(manifest_of(source, tokenizer, where))

    path = folder / "toy.yaml"
    path.write_text(json.dumps(manifest_of(source, tokenizer, WHERE)), encoding="utf-8")
    first, second = manifest(WHERE), manifest(OTHER)
    documents = ingest(first, source=None, work=work / "toy", executor=InProcess())
    scores = score(first, documents, work / "toy")
    select(second, documents, scores, work=work / "toy", executor=InProcess())
    sites = select(first, documents, scores, work=work / "toy", executor=InProcess())
    certify(first, documents, scores, sites, work=work / "toy", executor=InProcess(), accept=True)
    materialize(first, documents, scores, sites, work=work / "toy", executor=InProcess())
    report = audit(first, work=work)
    comparison = compare(first, [f"select.where={OTHER}"], path=path, overrides=(), work=work)
    lineages = (lineage_of(work / "toy", each) for each in (first, second))
    return Audited(folder, path, first, work, *lineages, report, comparison)


def manifest_of(source: Path, tokenizer: Path, where: str) -> dict[str, Any]:
    return {
        "name": "toy",
        "corpus": {
            "source": str(source),
            "text": "{problem}\n{solution}",
            "validation": {"documents": 12},
            "shard_documents": 15,
            "near_duplicates": {"threshold": 0.8, "words": 3, "within_training": True},
            "decontaminate": [{"source": str(source.parent / "evaluation.jsonl"), "ngram": 5}],
        },
        "proxy": {"model": str(tokenizer)},
        "score": {"store_top": True, "min_context_tokens": 3},
        "select": {
            "where": where,
            "validation_where": "0.5 < entropy",
            "max_per_document": 6,
            "certificate": {"least_tokens": 100, "names_and_digits": 0.01},
        },
        "materialize": {"policy_tokenizer": str(tokenizer)},
    }


def _rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        row | {"level": str(i % 3), "score": i % 2, "note": f"note {i}"} for i, row in enumerate(problems(50))
    ]
    rows.append({"problem": RARE, "solution": f"{RARE[::-1]}.", "level": "0", "score": 0, "note": "rare"})
    for i, end in enumerate(("seven", "eight")):
        tale = " ".join(f"{word} {n}" for n, word in enumerate("abcdefghijklmnopqrstuvwxyz"))
        rows.append({"problem": tale, "solution": end, "level": "0", "score": 0, "note": f"tale {i}"})
        rows.append({"problem": LEAKED, "solution": end * 3, "level": "0", "score": 0, "note": f"leak {i}"})
    rows += [{"problem": text, "solution": RUN, "level": RUN[:40], "score": 7, "note": RUN} for text in HOSTILE]
    return rows


def score(manifest: Manifest, documents: Record, work: Path) -> Record:
    """Publish scores as the stage would: its configuration, its counters, its table, its pointer."""
    tokenizer = CorpusTokenizer.load(manifest.proxy.model or "")

    def run(config: ScoreStageConfig, shard: Shard, out: Path) -> Counters:
        rows = [_scored(row, tokenizer) for row in read_table(shard.files["documents"]).to_pylist()]
        with parquet_writer(out / "scores.parquet", SCORES_WITH_TOP) as writer:
            writer.write_table(pa.Table.from_pylist(rows, schema=SCORES_WITH_TOP))
        tokens = sum(len(row["token_ids"]) for row in rows)
        scorable = sum(e is not None for row in rows for e in row["entropy"])
        counts = {"documents": len(rows), "tokens": tokens, "scorable": scorable, "not_scorable": tokens - scorable}
        return counts

    files = enumerate(documents.files("documents"))
    shards = [Shard(index, {"documents": file}, {}) for index, file in files]
    config = ScoreStageConfig(score=manifest.score, dtype="float32", tokenizer=None)
    record = run_stage(Stage("score", 1, run), config, shards, {"documents": documents.content}, work, InProcess())
    write_pointer(proxy_pointer(work, manifest), record.directory)
    return record


def _scored(row: dict[str, Any], tokenizer: CorpusTokenizer) -> dict[str, Any]:
    rng = random.Random(row["doc_id"])
    words = row["text"].replace(" ", "\0 ").split("\0")
    hostile = row["text"].endswith(RUN)
    ids = [1000 + rng.randrange(10**6) for _ in words] if hostile else tokenizer.encode(row["text"]).tolist()
    sizes = [len(word.encode()) for word in words] if hostile else None
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))] if sizes else tokenizer.ends(ids).tolist()
    entropy = [None if t < 3 else round(rng.expovariate(1.0), 3) for t in range(len(ids))]
    return {
        "doc_id": row["doc_id"],
        "split": row["split"],
        "token_ids": ids,
        "token_ends": ends,
        "field": token_fields([ends], [row["fields"]]).to_pylist(),
        "entropy": entropy,
        "entropy_partial": [None if e is None else 0.9 * e for e in entropy],
        "nll": [None if e is None else e * rng.random() * 2 for e in entropy],
        "rank": [None if e is None else int(rng.expovariate(0.1)) for e in entropy],
        "reference_nll": [None] * len(entropy),
        "top_ids": [None if e is None else 65 + k for e in entropy for k in range(TOP)],
        "top_logprobs": [None if e is None else -0.5 - k for e in entropy for k in range(TOP)],
    }
