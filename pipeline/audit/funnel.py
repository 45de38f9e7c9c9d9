"""The funnel from source records to training examples, with the number lost for every reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from pipeline.core.artifact import Counters, Record
from pipeline.core.invisible import escape_invisible

IN_WORDS = {
    "duplicate": "equal to an earlier document",
    "not_sampled": "not in the sample (corpus.sample)",
    "not_scorable": "too little context before it",
    "inside_character": "begins inside a character",
    "where": "the rule does not keep it",
    "flagged": "named in a list of flags",
    "document_cap": "its document has enough sites",
    "not_drawn": "not among the positions drawn at random",
    "near_duplicate": "nearly equal to another site",
    "top_fraction": "not among the hardest",
    "strata": "its stratum has enough sites",
    "mixture": "its source has enough sites",
    "corpus_cap": "the corpus has enough sites",
    "not_a_policy_boundary": "no token of the policy begins there",
    "policy_tokenizer_not_lossless": "the policy's tokenizer changes its document",
}
"""Reasons of a loss in words, where the name alone does not say it."""

SCORED = "documents with scores"


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


def funnel(records: Mapping[str, Record]) -> list[Step]:
    """Return the steps from the records of the source as far as stages have run, at most to the rows of the shards.

    Args:
        records: Records of `ingest`, `score`, `select` and `materialize`, or the first of them; others are ignored.
    """
    of = {stage: record.counters for stage, record in records.items()}
    steps = [
        Step("ingest", "records of the source", "documents", of["ingest"]["records"]),
        Step("ingest", "documents", "documents", of["ingest"]["documents"], losses(of["ingest"])),
    ]
    if score := of.get("score"):
        steps += [
            Step("score", SCORED, "documents", score["documents"], losses(score)),
            Step("score", "tokens of these documents", "positions", score["tokens"]),
        ]
    if select := of.get("select"):
        steps.append(Step("select", "sites selected", "positions", kept(select), losses(select)))
    if made := of.get("materialize"):
        steps.append(Step("materialize", "training examples in shards", "positions", kept(made), losses(made)))
    return steps


def funnel_table(title: str, steps: Sequence[Mapping[str, Any]]) -> Table:
    """Return the funnel as a table with shares of the records or of the tokens, without reasons that lost nothing.

    Args:
        title: What was made.
        steps: Fields of `Step`, in order.
    """
    table = Table("", title=title, title_justify="left", caption_justify="left", box=SIMPLE_HEAD, show_edge=False)
    for name in ("count", "share"):
        table.add_column(name, justify="right")
    whole: dict[str, int] = {}
    for step in steps:
        first = whole.setdefault(step["unit"], step["count"])
        if step["name"] == SCORED and not any(step["lost"].values()):
            continue  # as many as the row above says
        for reason, lost in step["lost"].items():
            if lost:
                told = f": {IN_WORDS[reason]}" if reason in IN_WORDS else ""
                label = f"  − {escape_invisible(reason)}{told}"
                table.add_row(label, f"{lost:,}", percent(lost, first), style="dim")
        table.add_row(step["name"], f"{step['count']:,}", percent(step["count"], first))
    return table


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


def percent(part: float, whole: float) -> str:
    """Format a share in percent.

    Example:
        >>> percent(1, 8), percent(0, 0), percent(1, 100_000), percent(3, 3)
        ('12.5 %', '–', '< 0.1 %', '100 %')
    """
    if not whole:
        return "–"
    value = 100 * part / whole
    if part == whole:
        return "100 %"
    return f"{value:.1f} %" if value >= 0.1 or not value else "< 0.1 %"
