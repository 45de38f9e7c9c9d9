"""The funnel from source records to training examples, with the number lost for every reason."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.audit.lineage import Lineage
from pipeline.core.artifact import Counters, Record


@dataclass(frozen=True)
class Step:
    """What remains after a stage.

    `count` = `count` of the step before − Σ `lost`, if both steps have the same unit.
    """

    stage: str
    name: str
    unit: str
    count: int
    lost: dict[str, int] = field(default_factory=dict)
    """Number lost by reason: `duplicate`, `where`, …, `quarantined: <reason>`."""


def funnel(lineage: Lineage) -> list[Step]:
    """Return the steps from the records of the source to the rows of the shards."""
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
    """Return how much a stage lost by reason, zeros included: a rule that never applied is information too."""
    dropped = {n.removeprefix("dropped."): c for n, c in counters.items() if n.startswith("dropped.")}
    quarantined = {
        n.replace("quarantined.", "quarantined: "): c for n, c in counters.items() if n.startswith("quarantined.")
    }
    return dropped | quarantined


def kept(counters: Counters) -> int:
    """Return the number kept in both splits together."""
    return counters["kept.train"] + counters["kept.validation"]


def shard_bytes(record: Record | None) -> int:
    """Return the total size of the files of a record, in bytes."""
    return sum(entry.bytes for done in record.completions for entry in done.files.values()) if record else 0
