"""Scores a shard of documents in parts as small as possible, to be killed: `python scoring_worker.py WORK MODEL`."""

from __future__ import annotations

import sys
from pathlib import Path

import pipeline.core.parts
import stages.score
from pipeline.core.artifact import Record
from tests.scoring.models import TEXTS
from tests.stages.published import InProcess
from tests.stages.test_score import ingested, manifest

DOCUMENTS = 80


def score_in_parts(work: Path, model: Path) -> Record:
    """Scores of one shard, a part a document or two."""
    pipeline.core.parts.SECONDS = 0.0
    stages.score.GROUP_CHARACTERS = dict.fromkeys(("cpu", "cuda"), 100)
    texts = [TEXTS[n % len(TEXTS)] + f" number {n}" * (n % 5) for n in range(DOCUMENTS)]
    documents = ingested(work, texts, per_shard=DOCUMENTS)
    return stages.score.score(manifest({"model": str(model)}), documents, work=work, executor=InProcess())


if __name__ == "__main__":
    score_in_parts(Path(sys.argv[1]), Path(sys.argv[2]))
