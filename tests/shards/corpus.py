"""A corpus as selection leaves it: problems with solutions, and the places where characters begin as sites."""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.config.manifest import MaterializeConfig
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.selection.sites import SITES
from pipeline.shards.examples import Examples, examples
from pipeline.shards.writer import write_shards
from tests.selection.tables import documents_of
from tests.toys import byte_level_tokenizer, problems

STEP = 1 / 1024
TIES = (1.0, 1.0 + STEP, float(np.nextafter(np.float32(1.0 + STEP), np.float32(2))), 1.0 + 2 * STEP, 1.25, 1.2500001)
"""Scores at which a rule's `>` and `>=`, or rounding up and down, part: on a step of the shards' grid, just above."""


@lru_cache(maxsize=1)
def texts() -> tuple[str, ...]:
    """Forty documents of some 900 bytes."""
    lines = [" ".join((row["problem"], row["solution"])) for row in problems(320)]
    return tuple("\n".join(lines[begin : begin + 8]) for begin in range(0, len(lines), 8))


def made(folder: Path, share: float = 0.2, max_context_tokens: int = 200) -> Examples:
    """Training examples of one token in five; each tenth document is held out."""
    tokenizer = CorpusTokenizer.load(byte_level_tokenizer(folder / "tokenizer", list(texts())))
    documents, rng, rows = documents_of(texts()), random.Random(0), []
    for n, (doc_id, text) in enumerate(zip(documents["doc_id"].to_pylist(), texts(), strict=True)):
        data, starts = text.encode(), [0, *tokenizer.ends(tokenizer.encode(text)).tolist()[:-1]]
        for t, start in enumerate(starts):
            if data[start] & 0xC0 != 0x80 and rng.random() < share:
                scores = {"entropy": 1 + rng.random(), "nll": rng.expovariate(1)}
                if len(rows) % 4 == 0:
                    scores = dict.fromkeys(scores, TIES[len(rows) // 4 % len(TIES)])
                rows.append(
                    scores
                    | {
                        "site_id": f"{doc_id}-{t}",
                        "doc_id": doc_id,
                        "position": t,
                        "byte_offset": start,
                        "field": "solution",
                        "rank": rng.randrange(5),
                        "token_class": rng.choice(["word_start", "word_part", "digit"]),
                        "band": "hard" if scores["entropy"] > 1.5 else "medium",
                        "split": "validation" if n % 10 == 0 else "train",
                    }
                )
    config = MaterializeConfig(policy_tokenizer=str(folder), max_context_tokens=max_context_tokens)
    return examples(config, tokenizer, documents, pa.Table.from_pylist(rows, schema=SITES))


def shard_of(folder: Path, row_group: int = 256) -> Path:
    """`folder` with a written train.parquet and validation.parquet."""
    out = folder / "shards"
    out.mkdir()
    write_shards(out, made(folder), row_group, {"rpt.version": "1"})
    return out
