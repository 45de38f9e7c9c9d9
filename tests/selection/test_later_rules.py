"""Which rule after `where` dropped a position, by hand."""

from __future__ import annotations

import polars as pl

from pipeline.selection.later_rules import KEYS, later_rules, verdicts
from pipeline.selection.sites import REASONS

PASSES = [True, True, True, True, False]


def frame(kept: list[bool], split: str = "train") -> pl.DataFrame:
    return pl.DataFrame(
        {"doc_id": "d", "split": split, "entropy": [3.0, 1.5, 2.0, 1.2, 0.1], "passes": PASSES, "kept": kept}
    )


def test_every_reason_after_where_has_its_key() -> None:
    assert tuple(KEYS) == REASONS[REASONS.index("where") + 1 :]


def test_the_cap_of_a_document_is_told_from_the_rules_over_the_corpus() -> None:
    config = {"max_per_document": 2, "max_sites": 100, "strategy": "rule", "thin": None}
    rules = later_rules(config, {"dropped.document_cap": 7, "dropped.corpus_cap": 3, "dropped.thin": 0})
    assert [rule.text for rule in rules] == ["max_per_document: 2", "max_sites: 100"]
    # 3.0 and 2.0 are within the cap; 2.0 was dropped by the only other rule that dropped any
    assert verdicts(rules, config, frame([True, False, False, False, False])) == ["1010-", "1-0--"]


def test_one_of_several_rules_is_not_guessed() -> None:
    config = {"max_sites": 9, "top_fraction": 0.5}
    rules = later_rules(config, {"dropped.top_fraction": 1, "dropped.corpus_cap": 1})
    assert verdicts(rules, config, frame([True, False, False, False, False])) == ["1----", "1----"]


def test_validation_is_not_dropped_by_rules_over_the_corpus() -> None:
    config = {"exclude": "flags.parquet", "max_sites": 9}
    rules = later_rules(config, {"dropped.flagged": 1, "dropped.corpus_cap": 1})
    assert verdicts(rules, config, frame([True, False, True, True, False], "validation")) == ["1011-", "1-11-"]
