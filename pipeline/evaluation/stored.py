"""What a stored evaluation observed: reads `evaluation.json` and `responses.parquet` of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.config.errors import UserError
from pipeline.config.selection import BandsConfig
from pipeline.evaluation.gate import Observed
from pipeline.evaluation.responses import KNOWN
from pipeline.task.gate import Known

AGAIN = "run `rpt evaluate` again"


@dataclass(frozen=True)
class Evaluation:
    """A stored evaluation of one policy: its answers at N sites and the sets of sites it is reported for."""

    policy: str
    observed: Observed
    entropy_N: list[float]
    """Entropy that decides the bands, in nats."""
    sets: dict[str, list[int]]
    """Indices of the sites of each set."""
    bands: BandsConfig
    summaries: dict[str, Any]
    """The figures of each set, as in `evaluation.json`."""


def read_evaluation(folder: Path, policy: str | None) -> Evaluation:
    """Return what an evaluation observed of a policy; None: of the last one, which is the trained one.

    Raises:
        UserError: there is no evaluation, it is damaged or of an earlier version, or it has no such policy.
    """
    report = _report(folder / "evaluation.json")
    policies = report["policies"]
    name = policies[-1] if policy is None else policy
    if name not in policies:
        raise UserError(f"the evaluation has no policy {name!r}", where=folder, hint=f"it has {', '.join(policies)}")
    rows = _rows(folder / "responses.parquet").filter(pl.col("policy") == name, pl.col("sample") == 0)
    direct, reasoning = (rows.filter(reading=reading) for reading in ("direct", "reasoning"))
    both = direct.join(reasoning, on="site_id", suffix="_reasoning", maintain_order="left")
    if not len(both) or len(both) != len(direct) or both["own_entropy"].null_count():
        raise UserError("the evaluation lacks answers of the policy", where=folder, hint=AGAIN)
    known = [
        Known(
            row["own_entropy"],
            row["own_logprob"],
            row["own_margin"],
            len(row["prompt_ids"]),
            row["prediction"] or b"",
            row["context_end"],
        )
        for row in both.iter_rows(named=True)
    ]
    observed = Observed.of(
        known,
        both["hit"].to_list(),
        both["hit_reasoning"].to_list(),
        both["length_reasoning"].to_list(),
        both["doc_id"].to_list(),
    )
    member = both["sets"].to_list()
    sets = {key: [n for n, own in enumerate(member) if key in own] for key in report["sets"]}
    bands = next(iter(report["sets"].values()))["bands"]
    above = BandsConfig(**{band: found["above"] for band, found in bands.items()})
    return Evaluation(name, observed, both["entropy"].to_list(), sets, above, report["sets"])


def _report(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError("the run has not been evaluated", where=path, hint="run `rpt evaluate` first")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        whole = bool(report["policies"]) and all("bands" in found for found in report["sets"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise UserError("not an evaluation of this version of rpt", where=path, hint=AGAIN)
    return dict(report)


def _rows(path: Path) -> pl.DataFrame:
    try:
        rows = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError("cannot read the responses", where=path, hint=AGAIN) from error
    missing = [field.name for field in KNOWN if field.name not in rows.columns]
    if missing:
        raise UserError(f"an earlier version of rpt wrote the responses: no {missing[0]}", where=path, hint=AGAIN)
    return rows
