"""Three sentences by hand: what rose, what did not, and against what; clear is what the interval says."""

from __future__ import annotations

from typing import Any

from pipeline.config.selection import BandsConfig
from pipeline.evaluation.accuracy import summarize, table_order
from pipeline.evaluation.headline import headline
from tests.evaluation.scripted import site
from tests.evaluation.test_accuracy import reading

POLICIES = ["before", "after"]
SITES = [site(f"d{i}", 5, 2.0 if i < 40 else 0.7, "x", ["x"]) for i in range(80)]
"""Forty hard sites, and forty that are only easy, each of its own document."""


def report_of(policies: list[str] = POLICIES, **hits: str) -> dict[str, Any]:
    """A report whose readings hit where a string has a 1."""
    readings = {name: reading(*name.split()[::-1], hits[name.replace(" ", "_")]) for name in table_order(policies)}
    summary = summarize(SITES, ["word"] * 80, {}, readings, {}, policies, BandsConfig(), "true")
    return {"policies": policies, "sets": {"all": summary}}


def test_what_rose_and_what_did_not() -> None:
    report = report_of(
        direct_before="0" * 30 + "1" * 10 + "1" * 40,  # hard 25 %, easy 50 of 80
        reasoning_before="0" * 80,
        reasoning_after="1" * 35 + "0" * 5 + "0" * 40,  # hard 87.5 %, easy 35 of 80
        direct_after="0" * 29 + "1" * 11 + "1" * 40,  # one more, which may be chance
    )
    rose, stayed, against = headline(report)
    assert rose == (
        "Accuracy rose with training: with thinking, hard 0.0 → 87.5 %, medium 0.0 → 87.5 %, easy 0.0 → 43.8 %."
    )
    assert stayed == (
        "No clear change: without thinking, hard 25.0 → 27.5 %, medium 25.0 → 27.5 %, easy 62.5 → 63.7 %."
    )
    assert against == (
        "Against the untrained policy without thinking, thinking is ahead by 62.5 points at hard, 62.5 points at "
        "medium; not clearly different at easy."
    )


def test_what_fell_is_said_and_nothing_that_rose_as_well() -> None:
    all_right, all_wrong = "1" * 80, "0" * 80
    rose, stayed, against = headline(
        report_of(
            direct_before=all_right, reasoning_before=all_right, reasoning_after=all_wrong, direct_after=all_right
        )
    )
    assert rose == "No accuracy clearly rose with training."
    assert "Fell: with thinking, hard 100.0 → 0.0 %" in stayed
    assert "behind by 100.0 points at hard" in against


def test_other_policies_are_named_and_one_alone_is_compared_with_itself() -> None:
    half = "10" * 40
    rose, *_ = headline(
        report_of(["base", "ntp"], direct_base=half, reasoning_base="0" * 80, reasoning_ntp=half, direct_ntp=half)
    )
    assert rose.startswith("Accuracy rose from `base` to `ntp`: with thinking, hard 0.0 → 50.0 %")
    (against,) = headline(report_of(["base"], direct_base=half, reasoning_base=half))
    assert against == "Against `base` without thinking, thinking is not clearly different at hard, medium, easy."


def test_rl_is_not_credited_with_what_the_warm_up_did() -> None:
    half, most = "10" * 40, "1110" * 20
    report = report_of(
        ["before", "warm-up", "after"],
        **{"direct_before": most, "reasoning_before": "0" * 80, "direct_warm-up": half, "reasoning_warm-up": half},
        reasoning_after=half,
        direct_after="0" * 80,
    )
    assert len(headline(report)) == 3  # policies that the user named so
    rose, stayed, warmed, against = headline(report | {"warm_up": {"examples": 320}})
    assert rose == "No accuracy clearly rose with RL, after the warm-up."
    assert stayed == (
        "No clear change: with thinking, hard 50.0 → 50.0 %, medium 50.0 → 50.0 %, easy 50.0 → 50.0 %. "
        "Fell: without thinking, hard 50.0 → 0.0 %, medium 50.0 → 0.0 %, easy 50.0 → 0.0 %."
    )
    assert warmed == (
        "Accuracy rose with the warm-up alone: with thinking, hard 0.0 → 50.0 %, medium 0.0 → 50.0 %, "
        "easy 0.0 → 50.0 %. "
        "Fell: without thinking, hard 75.0 → 50.0 %, medium 75.0 → 50.0 %, easy 75.0 → 50.0 %."
    )
    assert "behind by 25.0 points at hard" in against


def test_without_sites() -> None:
    empty = {"sites": 0}
    assert headline({"policies": ["before"], "sets": {"all": empty}}) == ("No held-out site was measured.",)
