"""The rules of a selection that come after `where`, as lines beside the parts of `where`.

A site id, a document or the whole corpus decides them. What they dropped is counted in the record of the selection;
which of several dropped one position is known where only one can have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

KEYS = {
    "flagged": "exclude",
    "document_cap": "max_per_document",
    "not_drawn": "strategy",
    "near_duplicate": "thin",
    "top_fraction": "top_fraction",
    "strata": "strata",
    "mixture": "mixture",
    "corpus_cap": "max_sites",
}
"""Key of `select` by the reason for which it drops a position, in the order in which the rules apply."""

OF_TRAINING = tuple(reason for reason in KEYS if reason not in ("flagged", "document_cap"))
"""Reasons that never drop a position of validation documents."""

HOLDS, FAILS, UNKNOWN = "1", "0", "-"


@dataclass(frozen=True)
class LaterRule:
    """A rule after `where`."""

    text: str
    """`max_per_document: 64`, as in a manifest."""
    reason: str
    dropped: int
    """Positions of the whole corpus that it dropped."""


def later_rules(config: Mapping[str, Any], counters: Mapping[str, int]) -> list[LaterRule]:
    """Return the rules after `where` that a selection has, in the order in which they apply.

    Args:
        config: configuration of the selection.
        counters: counters of its record.

    Example:
        >>> later_rules({"max_per_document": 6, "strategy": "rule"}, {"dropped.document_cap": 10})
        [LaterRule(text='max_per_document: 6', reason='document_cap', dropped=10)]
    """
    made = []
    for reason, key in KEYS.items():
        dropped, value = counters.get(f"dropped.{reason}", 0), config.get(key)
        if value not in (None, "rule") or dropped:
            given = {name: part for name, part in value.items() if part} if isinstance(value, Mapping) else value
            text = key if value is None else f"{key}: {given if isinstance(given, str) else json.dumps(given)}"
            made.append(LaterRule(text, reason, dropped))
    return made


def verdicts(rules: list[LaterRule], config: Mapping[str, Any], positions: pl.DataFrame) -> list[str]:
    """Return for each rule one character per position: `HOLDS`, `FAILS`, or `UNKNOWN` where it was not reached.

    Which of several rules dropped a position is unknown too, unless it is the cap of its document or only one of them
    dropped any.

    Args:
        rules: the result of `later_rules`.
        config: configuration of the selection.
        positions: positions of whole documents: `doc_id`, `split`, `entropy`, `passes` (`where` lets it through) and
            `kept`.
    """
    frame = positions.with_row_index("row")
    kept, passed = frame["kept"].to_list(), frame["passes"].to_list()
    capped = _beyond_cap(frame, config.get("max_per_document"))
    train = (frame["split"] == "train").to_list()
    lines = [[HOLDS if is_kept else UNKNOWN for is_kept in kept] for _ in rules]
    reasons = [rule.reason for rule in rules]
    for t in (t for t, is_kept in enumerate(kept) if passed[t] and not is_kept):
        possible = [
            n
            for n, rule in enumerate(rules)
            if rule.dropped and (train[t] or rule.reason not in OF_TRAINING) and rule.reason != "document_cap"
        ]
        if capped[t] and "document_cap" in reasons and "flagged" not in (reasons[n] for n in possible):
            failed: int | None = reasons.index("document_cap")
        else:
            failed = possible[0] if len(possible) == 1 else None
        if failed is not None:
            for n in range(failed):
                lines[n][t] = HOLDS
            lines[failed][t] = FAILS
    return ["".join(line) for line in lines]


def _beyond_cap(frame: pl.DataFrame, most: int | None) -> list[bool]:
    """Return whether a position that passes `where` is beyond the cap of its document, as `_cap_documents` decides."""
    if most is None:
        return [False] * frame.height
    order = pl.col("entropy").rank("ordinal", descending=True).over("doc_id")
    beyond = frame.filter("passes").filter(order > most)["row"]
    return pl.int_range(frame.height, eager=True).is_in(beyond.cast(pl.Int64).to_list()).to_list()
