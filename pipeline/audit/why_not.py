"""Why positions were not kept: each part of the rule on every position, and how many positions each rule drops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.config.selection import SelectConfig
from pipeline.core.artifact import Record
from pipeline.selection.explain import holds, in_words, parts_of_rule, typed, values
from pipeline.selection.later_rules import FAILS, HOLDS, later_rules, verdicts
from pipeline.selection.metadata import rule_columns
from pipeline.selection.where import Column

OF_HEAT_MAP = {"entropy", "entropy_partial", "nll", "rank", "field", "token_class"}
"""Columns that a heat map has anyway, so that a part need not repeat their values."""

VALUE_SHOWN = 300
"""Maximum number of characters of the values that decide a part of the rule."""


def part_columns(where: str, columns: Mapping[str, Column], shown: pl.DataFrame) -> list[dict[str, Any]]:
    """Return the parts of a rule on some positions, as `parts` of a heat map.

    Returns:
        Per part its `text`, one character of `holds` per position (`HOLDS` or `FAILS`), and its `values`: `columns` of
        the heat map, or the distinct `names` and the index `of` each position's.
    """
    shown = typed(shown, columns)
    made = []
    for part in parts_of_rule(where, columns):
        marks = "".join(HOLDS if held else FAILS for held in holds(part, shown))
        decided: dict[str, Any] = {"columns": list(part.columns)}
        if not set(part.columns) <= OF_HEAT_MAP:
            rows = zip(*(values(shown[name]) for name in part.columns), strict=True)
            words = [in_words(dict(zip(part.columns, row, strict=True)))[:VALUE_SHOWN] for row in rows]
            number = {word: n for n, word in enumerate(dict.fromkeys(words))}
            decided = {"names": list(number), "of": [number[word] for word in words]}
        made.append({"text": part.text, "holds": marks, "values": decided})
    return made


def later_columns(select: Record, positions: pl.DataFrame, shown: slice) -> list[dict[str, Any]]:
    """Return the rules after `where` on some positions of a document, as `parts` of a heat map.

    Args:
        select: Record of the selection.
        positions: All positions of the document, with the columns of `later_rules.verdicts`.
        shown: Which of them are shown.
    """
    rules = later_rules(select.config, select.counters)
    marks = verdicts(rules, select.config, positions)
    return [
        {"text": rule.text, "holds": line[shown], "values": {"text": f"dropped {rule.dropped:,} of the corpus"}}
        for rule, line in zip(rules, marks, strict=True)
    ]


class RuleCounts:
    """Number of selectable positions on which each part of the rule holds, over all frames added so far."""

    def __init__(self, rule: SelectConfig) -> None:
        self._columns = rule_columns(rule.metadata)
        self._where = {"train": rule.where, "validation": rule.validation_where}
        self._parts = {split: parts_of_rule(where, self._columns) for split, where in self._where.items()}
        self._counts = {split: np.zeros((len(parts), 3), dtype=np.int64) for split, parts in self._parts.items()}

    def add(self, frame: pl.DataFrame) -> None:
        """Count a frame of `decisions`."""
        selectable = typed(frame.filter("selectable"), self._columns)
        for split, parts in self._parts.items():
            rows = selectable.filter(pl.col("split") == split)
            held_KN = np.array([holds(part, rows).to_numpy() for part in parts], dtype=bool).reshape(len(parts), -1)
            self._counts[split] += _counted(held_KN)

    def summary(self, select: Record) -> dict[str, Any]:
        """Return `parts` of the rule by split, and `later`: the rules after it.

        A part has its `text` and numbers of selectable positions: it `holds`, it `fails`, and it `fails_alone`, so that
        the rule without it would let them through. A later rule has its `text`, `reason` and how many it `dropped`.
        """
        parts = {
            split: [
                {"text": part.text} | dict(zip(("holds", "fails", "fails_alone"), counts, strict=True))
                for part, counts in zip(self._parts[split], self._counts[split].tolist(), strict=True)
            ]
            for split in self._parts
        }
        return {"parts": parts, "later": [vars(rule) for rule in later_rules(select.config, select.counters)]}


def _counted(held_KN: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the counts [K, 3] of K parts on N positions: holds, fails, fails alone."""
    alone_N = (~held_KN).sum(axis=0) == 1
    return np.stack([held_KN.sum(axis=1), (~held_KN).sum(axis=1), (~held_KN & alone_N).sum(axis=1)], axis=1)
