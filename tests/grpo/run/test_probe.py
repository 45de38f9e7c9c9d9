from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.grpo.run.probe import SampleCounts, judge
from pipeline.task.reward import REASONS


def dead(boxed: int = 512, **reasons: int) -> SampleCounts:
    """64 groups of 8, none of them with unequal rewards."""
    assert sum(reasons.values()) == 512
    return SampleCounts(64, 0, boxed, reasons)


@pytest.mark.parametrize(
    ("counts", "causes", "keys"),
    [
        # SmolLM2-135M-Instruct, as it was measured: it paraphrases the problem and boxes nothing
        (
            dead(0, unfinished=400, missing=112),
            ["0 of 512 responses have a `\\boxed{…}`", "400 of 512 were cut at 64 tokens"],
            ["rpt warmup", "task.prefill", "task.template", "task.thinking", "rollout.max_new_tokens"],
        ),
        (dead(0, missing=512), ["0 of 512 responses have a"], ["rpt warmup"]),
        (dead(25, missing=512), ["25 of 512 responses have a"], ["rpt warmup"]),
        (dead(26, missing=512), ["512 of 512 box nothing, or not where a box counts"], ["task.thinking: free"]),
        (dead(26, empty=512), ["512 of 512 box nothing"], ["rpt warmup"]),
        (dead(500, unfinished=512), ["512 of 512 were cut"], ["rollout.max_new_tokens", "task.thinking: none"]),
        (dead(mismatch=500, off_boundary=12), ["512 of 512 box a wrong"], ["sites.where", "rpt screen"]),
        (dead(longer_than_continuation=512), ["512 of 512 box a wrong"], ["pass_rate > 0"]),
        (dead(match=512), ["512 of 512 are right"], ["harder sites", "pass_rate < 1"]),
        (
            dead(match=256, mismatch=256),
            ["256 of 512 box a wrong", "256 of 512 are right"],
            ["easier sites", "rollout.temperature"],
        ),
        # less than a tenth is not named
        (dead(mismatch=461, unfinished=51), ["461 of 512 box a wrong"], ["sites.where"]),
        (dead(mismatch=460, unfinished=52), ["460 of 512", "52 of 512 were cut"], ["sites.where", "max_new_tokens"]),
    ],
)
def test_advice_follows_what_was_seen(counts: SampleCounts, causes: list[str], keys: list[str]) -> None:
    verdict = judge(counts, 64, "tags")
    assert verdict.learns == "no"
    assert len(verdict.causes) == len(verdict.advice) == len(causes)
    assert all(found.startswith(begin) for found, begin in zip(verdict.causes, causes, strict=True)), verdict.causes
    assert all(key in "; ".join(verdict.advice) for key in keys)


@pytest.mark.parametrize(
    ("thinking", "free", "none"), [("tags", True, True), ("free", False, True), ("none", False, False)]
)
def test_no_mode_is_advised_that_is_set(thinking: str, free: bool, none: bool) -> None:
    for boxed in (0, 512):
        said = "; ".join(judge(dead(boxed, unfinished=256, missing=256), 64, thinking).advice)
        assert ("task.thinking: free" in said, "task.thinking: none" in said) == (free, none)
        assert "rpt warmup" in said and "rollout.max_new_tokens" in said


def test_a_policy_of_the_right_difficulty_is_not_commented_on() -> None:
    verdict = judge(SampleCounts(64, 4, 512, {"match": 4, "mismatch": 508}), 64, "tags")  # 6 % of the groups
    assert (verdict.learns, verdict.causes, verdict.advice) == ("yes", (), ())


def test_few_gradients_are_warned_of() -> None:
    verdict = judge(SampleCounts(64, 3, 512, {"match": 3, "mismatch": 509}), 64, "tags")  # 5 % of 64 are 3.2
    assert verdict.learns == "hardly" and verdict.causes == ("509 of 512 box a wrong prediction",)


def test_rewards_that_differ_without_anything_right_are_warned_of() -> None:
    verdict = judge(SampleCounts(8, 8, 32, {"mismatch": 32}), 64, "tags")  # a penalty for length, or a dense reward
    assert verdict.learns == "hardly" and verdict.causes[0].startswith("no response is right")


@given(
    st.integers(1, 99),
    st.integers(0, 99),
    st.fixed_dictionaries({reason: st.integers(0, 999) for reason in REASONS}),
    st.integers(0, 999),
)
def test_nobody_is_stopped_without_a_reason_or_with_a_gradient(
    groups: int, unequal: int, reasons: dict[str, int], boxed: int
) -> None:
    counts = SampleCounts(groups, min(unequal, groups), boxed, reasons | {"match": reasons["match"] + 1})
    verdict = judge(counts, 64, "tags")
    assert (verdict.learns == "no") == (counts.unequal == 0)
    assert verdict.learns == "yes" or (verdict.causes and verdict.advice)


def test_counts_come_from_the_metrics_and_add_up() -> None:
    metrics = {
        "groups/sampled": 3,
        "groups/zero_variance": 2 / 3,
        "response/boxed": 5,
        "reward/mean": 0.25,
        "reward/match": 2,
        "reward/missing": 4,
    }
    one = SampleCounts.of(metrics)
    assert one == SampleCounts(3, 1, 5, {"match": 2, "missing": 4})
    assert one.plus(SampleCounts(1, 0, 0, {"empty": 2})) == SampleCounts(
        4, 1, 5, {"match": 2, "missing": 4, "empty": 2}
    )
    assert SampleCounts().plus(one) == one and one.responses == 6
