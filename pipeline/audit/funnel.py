"""The funnel: from records to training examples, with every reason for which something was lost, from the records."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.audit.lineage import Lineage
from pipeline.core.artifact import Counters, Record


@dataclass(frozen=True)
class Step:
    """What is left after a stage. `count` = the step before − Σ `lost`, wherever the unit is the same."""

    stage: str
    name: str
    unit: str
    count: int
    lost: dict[str, int] = field(default_factory=dict)
    """By reason: `duplicate`, `where`, …, quarantined ones as `quarantined: <reason>`."""


def funnel(lineage: Lineage) -> list[Step]:
    """From the records of the source to the rows of the shards."""
    ingest, score, select = (record.counters for record in (lineage.ingest, lineage.score, lineage.select))
    steps = [
        Step("ingest", "records of the source", "documents", ingest["records"]),
        Step("ingest", "documents", "documents", ingest["documents"], losses(ingest)),
        Step("score", "documents with scores", "documents", score["documents"], losses(score)),
        Step("score", "tokens of these documents", "positions", select["tokens"]),
        Step("select", "sites selected", "positions", kept(select), losses(select)),
    ]
    if lineage.materialize is not None:
        made = lineage.materialize.counters
        steps.append(Step("materialize", "training examples in shards", "positions", kept(made), losses(made)))
    return steps


def losses(counters: Counters) -> dict[str, int]:
    """By reason what a stage lost, the zeros too: a reason that was asked and never applied is news as well."""
    dropped = {n.removeprefix("dropped."): c for n, c in counters.items() if n.startswith("dropped.")}
    quarantined = {
        n.replace("quarantined.", "quarantined: "): c for n, c in counters.items() if n.startswith("quarantined.")
    }
    return dropped | quarantined


def kept(counters: Counters) -> int:
    """Over both splits."""
    return counters["kept.train"] + counters["kept.validation"]


def shard_bytes(record: Record | None) -> int:
    """Size of everything a stage has published."""
    return sum(entry.bytes for done in record.completions for entry in done.files.values()) if record else 0
