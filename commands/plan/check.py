"""How far off a plan was: what a finished run of the same manifest made, beside what the plan foresees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.manifest import Manifest
from pipeline.core.marks import is_pulled
from pipeline.core.workspace import Output, outputs, states, with_ancestors

COUNTERS = {
    "ingest": ("documents",),
    "score": ("tokens",),
    "select": ("kept.train", "kept.validation"),
    "materialize": ("kept.train", "kept.validation"),
}
"""What a plan counts, by the counters of a stage's record. How much a proxy was fitted is not compared."""

COMPARED = ("count", "worker_seconds", "bytes")


def made_by_run(planned: Sequence[Mapping[str, Any]], manifest: Manifest, work: Path) -> list[dict[str, Any]]:
    """Return what a run of a manifest has made of the stages of its plan, as JSON values.

    Args:
        planned: `stages` of the plan.
        manifest: the manifest, with its overrides applied.
        work: the manifest's folder.

    Returns:
        A row for each stage that is up to date and was made on this machine, its inner passes included. `off` has,
        for `count`, `worker_seconds` and `bytes`, by what share the run exceeded the plan.
    """
    found = outputs(work)
    mine = {s.stage: s.output for s in states(manifest, work, {}) if s.state == "up to date" and s.output}
    passes = [output for output in found if output.stage not in mine]
    rows = []
    for stage in dict.fromkeys(each["stage"] for each in planned):
        output = mine.get(stage)
        if output is None or output.record is None or is_pulled(output.record):
            continue
        plan = [each for each in planned if each["stage"] == stage]  # two for a proxy of `auto`
        made = list(with_ancestors([output], [*passes, output]).values())
        row = _made(stage, plan[0]["unit"], output, made)
        sums = {name: sum(each[name] for each in plan) for name in COMPARED}
        off = {name: row[name] / sums[name] - 1 for name in COMPARED if row[name] is not None and sums[name]}
        rows.append(row | {"off": off})
    return rows


def _made(stage: str, unit: str, output: Output, made: Sequence[Output]) -> dict[str, Any]:
    """Return the row of a stage without what is off."""
    counters = output.record.counters if output.record else {}
    count = sum(counters[name] for name in COUNTERS[stage]) if stage in COUNTERS else None
    return {
        "stage": stage,
        "count": count,
        "unit": unit,
        "worker_seconds": sum(each.record.summary.seconds for each in made if each.record),
        "bytes": sum(each.bytes for each in made),
    }
