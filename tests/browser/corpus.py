"""A small corpus with scores made by hand, half of it hostile, selected by the real stage."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.audit.browse.column_index import ColumnIndex, Slices
from pipeline.audit.browse.rules import ASK, Where
from pipeline.config.manifest import Manifest
from pipeline.core.artifact import Record
from pipeline.corpus.documents import DOCUMENTS, doc_id
from pipeline.scoring.table import SCORES_WITH_TOP
from stages.score import ScoreStageConfig
from stages.select import select
from tests.stages.published import InProcess, cut, publish_tables
from tests.toys import byte_level_tokenizer, problems

HOSTILE = (
    "</script><script>window.pwned=1</script> <img src=x onerror=window.pwned=2> <b onclick=pwned=3>b</b> {{ 7*7 }}",
    "right to left: \u202eevil\u202c \u2066isolate\u2069 שלום עולם and back, with \u200bzero\u200d width\ufeff marks",
    "control: \x1b[31mred\x1b[0m \x07 bell \x7f delete \x0c form feed \x85 next line, combining \u0301\u0301\u0301",
    "long: " + "A" * 10_240 + " end of the long token, and some words after it so that it has a site",
)
"""Texts that try to run, to turn the page around, or to break its layout."""

LONG = " ".join(f"long{i}" for i in range(2_600))
"""A text of more tokens than a page of the heat map has."""

HOSTILE_NAME = '"><script>window.pwned=4</script>.jsonl'
TIES = (1.0, 1 + 1 / 1024, float(np.nextafter(np.float32(1 + 1 / 1024), np.float32(2))), 1.25, 0.5, 1.5)
"""Entropies that rules are equal to: on a step of the index's grid and of the shards', between two of the former, just
above. Every document has one, so that `>` and `>=` keep different positions."""

HOSTILE_VALUE = '"><script>window.pwned=7</script> & <b onclick=pwned=8>\u202eb</b>'
DOMAINS = (
    ["Maths -> Algebra -> Equations", "Maths -> Algebra", "Physics"],
    ["Maths -> Geometry"],
    [f"Maths -> {HOSTILE_VALUE}", "Maths -> Algebra"],
    [],
)
"""Paths in lists, as OmniMATH has them."""

TOP = 4
METADATA = {"difficulty": "number"}


@dataclass(frozen=True)
class Built:
    """Everything that the live page needs of one corpus."""

    manifest: Manifest
    work: Path
    run: Path
    documents: Record
    scores: Record
    capped: Record
    current: Record
    site_with_rollouts: str
    hostile_ids: tuple[str, ...]


def build(folder: Path, shard_documents: int = 15) -> Built:
    """The corpus, its scores, two selections (one of them capped) and a run with rollouts, under `folder`."""
    texts = [f"{row['problem']}\n{row['solution']}" for row in problems(40)]
    tokenizer = byte_level_tokenizer(folder / "tokenizer", [*texts, *HOSTILE])
    documents = _documents([*texts[:20], *HOSTILE, *texts[20:39], LONG])
    scores = _scores(documents)
    work = folder / "work" / "toy"

    def manifest(**rule: object) -> Manifest:
        return Manifest.model_validate(
            {
                "name": "toy",
                "corpus": {"source": "toys"},
                "proxy": {"model": str(tokenizer)},
                "select": {"metadata": METADATA, "where": "entropy > 1.0 AND field = 'solution'", **rule},
                "materialize": {"policy_tokenizer": str(tokenizer)},
            }
        )

    plain = manifest()
    made_with = ScoreStageConfig(score=plain.score, dtype="float32", tokenizer=None)
    ingest = publish_tables(
        work, "ingest", [{"documents": part} for part in cut(documents, shard_documents)], plain.corpus
    )
    scored = publish_tables(work, "score", [{"scores": part} for part in cut(scores, shard_documents)], made_with)
    capped = select(manifest(max_per_document=2), ingest, scored, work=work, executor=InProcess())
    current = select(manifest(), ingest, scored, work=work, executor=InProcess())
    site = str(pq.read_table(current.files("sites")[0].path)["site_id"][0].as_py())
    run = folder / "run"
    _write_rollouts(run, site)
    hostile = tuple(doc_id(text) for text in HOSTILE)
    return Built(manifest(), work, run, ingest, scored, capped, current, site, hostile)


def _documents(texts: list[str]) -> pa.Table:
    rows = [
        {
            "doc_id": doc_id(text),
            "text": text,
            "split": "validation" if i % 5 == 4 else "train",
            "fields": [],
            "source_file": HOSTILE_NAME if text in HOSTILE else f"part-{i % 2}.jsonl",
            "source_row": i,
            "meta": json.dumps(
                {"difficulty": i % 3, "note": "</script><script>window.pwned=5</script>", "domain": DOMAINS[i % 4]}
            ),
        }
        for i, text in enumerate(texts)
    ]
    return pa.Table.from_pylist(rows, schema=DOCUMENTS)


def _scores(documents: pa.Table) -> pa.Table:
    """Words as tokens; the first three positions of a document are not scorable."""
    rng = random.Random(0)
    rows = []
    for row in documents.to_pylist():
        words = row["text"].split(" ")
        tokens = [word if i == 0 else f" {word}" for i, word in enumerate(words)]
        ends = [len("".join(tokens[: i + 1]).encode()) for i in range(len(tokens))]
        entropy = [None if i < 3 else round(rng.expovariate(1.2), 4) for i in range(len(tokens))]
        for i in range(3 + len(rows) % 4, len(tokens), 4):
            entropy[i] = TIES[(i + len(rows)) // 4 % len(TIES)]
        top = [[None] * TOP if e is None else [65, 66, 67, 68] for e in entropy]
        likely = [[None] * TOP if e is None else [-0.4, -1.5, -2.5, -4.0] for e in entropy]
        rows.append(
            {
                "doc_id": row["doc_id"],
                "split": row["split"],
                "token_ids": list(range(len(tokens))),
                "token_ends": ends,
                "field": ["problem" if i < len(tokens) // 2 else "solution" for i in range(len(tokens))],
                "entropy": entropy,
                "entropy_partial": [None if e is None else 0.9 * e for e in entropy],
                "nll": [None if e is None else round(e * rng.random() * 2, 4) for e in entropy],
                "rank": [None if e is None else rng.randint(0, 20) for e in entropy],
                "reference_nll": [None if e is None else round(e / 2, 4) for e in entropy],
                "top_ids": [n for ids in top for n in ids],
                "top_logprobs": [p for ps in likely for p in ps],
            }
        )
    return pa.Table.from_pylist(rows, schema=SCORES_WITH_TOP)


def _write_rollouts(run: Path, site_id: str) -> None:
    from pipeline.grpo.rollout.rollouts import ROLLOUTS

    blank = {
        pa.int32(): 0,
        pa.string(): "",
        pa.large_string(): "",
        pa.binary(): b"",
        pa.float32(): 0.0,
        pa.bool_(): True,
        pa.list_(pa.int32()): [],
    }
    empty = {field.name: blank.get(field.type) for field in ROLLOUTS}
    rows = [
        empty | {"step": 7, "site_id": site_id, "response": "<script>window.pwned=6</script> so \\boxed{x}",
                 "reward": 1.0, "reason": "correct", "advantage": 1.5, "length": 9},
        empty | {"step": 7, "site_id": site_id, "sample": 1, "response": "wait, no", "reason": "no_answer",
                 "length": 2},
        empty | {"step": 7, "site_id": "another-1", "response": "elsewhere"},
    ]  # fmt: skip
    (run / "rollouts").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=ROLLOUTS), run / "rollouts" / "step-000007.parquet")


class Halting:
    """A rule that answers so many questions, and the others when it is let."""

    cuts, asks_cell = (), False

    def __init__(self, rule: Where, questions: int) -> None:
        self.rule, self.left, self.let = rule, threading.Semaphore(questions), threading.Event()

    def decide(self, cells: pl.DataFrame, entropy_G: np.ndarray) -> np.ndarray:
        return np.full((cells.height, len(entropy_G)), ASK, dtype=np.int8)

    def ask(self, store: ColumnIndex, slices: Slices, cell: Mapping[str, str]) -> np.ndarray:
        if not self.left.acquire(blocking=False):
            self.let.wait()
        return self.rule.ask(store, slices, cell)
