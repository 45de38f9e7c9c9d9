"""The table of an evaluation: every policy's answer at every site. All figures are computed from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.core.files import atomic_replacement
from pipeline.core.parquet import write_rows

if TYPE_CHECKING:
    from pipeline.evaluation.predictions import Prediction
    from pipeline.shards.reader import Site
    from pipeline.task.gate import Known

ANSWER = (
    pa.field("response_ids", pa.list_(pa.int32()), nullable=False),
    pa.field("response", pa.large_string(), nullable=False),
    pa.field("prediction", pa.binary()),
    pa.field("hit", pa.bool_(), nullable=False),
    pa.field("reason", pa.string(), nullable=False),
    pa.field("length", pa.int32(), nullable=False),
)
"""Columns of one answer, which `answer_row` fills. `response` is meant for readers: bytes that are not UTF-8 appear as
U+FFFD. `prediction` (null if there is none) and the ids are exact."""

KNOWN = (
    pa.field("own_entropy", pa.float64()),
    pa.field("own_logprob", pa.float64()),
    pa.field("own_margin", pa.float64()),
    pa.field("context_end", pa.string()),
)
"""Columns with what the policy knew before a thought (`Known` in `pipeline/task/gate.py`); null in all rows but the
direct ones. The other fields of `Known` are the number of `prompt_ids` and the `prediction` of such a row."""

RESPONSES = pa.schema(
    [
        pa.field("site_id", pa.string(), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("field", pa.string(), nullable=False),
        pa.field("token_class", pa.string(), nullable=False),
        pa.field("entropy", pa.float32(), nullable=False),
        pa.field("sets", pa.list_(pa.string()), nullable=False),
        pa.field("target", pa.binary(), nullable=False),
        pa.field("policy", pa.string(), nullable=False),
        pa.field("reading", pa.string(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("prompt_ids", pa.list_(pa.int32()), nullable=False),
        *ANSWER,
        *KNOWN,
    ]
)
"""Schema of the table: one row per answer. `sets`: the sets of sites (`headline`, `all`) that contain its site.
`reading`: `direct`, `reasoning`, or `sampled` for the `sample`-th of several responses."""


def answer_row(answer: Prediction) -> dict[str, Any]:
    """Return the values of the columns `ANSWER`."""
    return {
        "response_ids": answer.response_ids,
        "response": answer.response.decode("utf-8", errors="replace"),
        "prediction": answer.outcome.prediction,
        "hit": answer.hit,
        "reason": answer.outcome.reason,
        "length": len(answer.response_ids),
    }


def _known_row(known: Known | None) -> dict[str, Any]:
    return (
        dict.fromkeys([field.name for field in KNOWN])
        if known is None
        else {
            "own_entropy": known.entropy,
            "own_logprob": known.logprob,
            "own_margin": known.margin,
            "context_end": known.context_end,
        }
    )


def write_responses(
    path: Path,
    sites: Sequence[Site],
    classes: Sequence[str],
    sets: Mapping[str, Sequence[int]],
    answers: Sequence[tuple[str, str, Sequence[Sequence[Prediction]]]],
) -> None:
    """Write every answer at every site, one (policy, reading, answers [N, S]) after the other."""
    members = {name: set(chosen) for name, chosen in sets.items()}
    rows = (
        {
            "site_id": site.site_id,
            "doc_id": site.doc_id,
            "field": site.field,
            "token_class": token_class,
            "entropy": site.entropy,
            "sets": [name for name, chosen in members.items() if i in chosen],
            "target": site.target,
            "policy": policy,
            "reading": kind,
            "sample": sample,
            "prompt_ids": answer.prompt_ids,
            **answer_row(answer),
            **_known_row(answer.known),
        }
        for policy, kind, answers_NS in answers
        for i, (site, token_class, drawn) in enumerate(zip(sites, classes, answers_NS, strict=True))
        for sample, answer in enumerate(drawn)
    )
    with atomic_replacement(path) as temporary:
        write_rows(temporary, RESPONSES, rows)
