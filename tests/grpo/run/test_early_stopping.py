from __future__ import annotations

import json

import pytest

from pipeline.config.errors import UserError
from pipeline.config.recipe import Recipe
from pipeline.config.training import StopConfig
from pipeline.grpo.run.early_stopping import EarlyStopping

FINE = {
    "groups/zero_variance": 0.5,
    "groups/all_right": 0.2,
    "groups/all_wrong": 0.3,
    "policy/entropy": 0.4,
    "grad_norm": 1.0,
    "sampler/logprob_gap": 0.05,
    "groups/sampled": 2,
    "response/boxed": 8,
    "reward/mean": 0.5,
    "reward/match": 4,
    "reward/mismatch": 4,
    "reward/unfinished": 0,
}
DEAD = FINE | {"groups/zero_variance": 1.0, "groups/all_right": 0.0, "groups/all_wrong": 1.0, "reward/mean": 0.0}
DEAD |= {"reward/match": 0, "reward/mismatch": 2, "reward/unfinished": 6}
FLAT = FINE | {"policy/entropy": 1e-6}
APART, FAR = FINE | {"sampler/logprob_gap": 0.25}, FINE | {"sampler/logprob_gap": 2.0}
RULES = StopConfig(
    grad_norm=50, dead_reward_steps=3, entropy=1e-3, entropy_steps=2, logprob_gap=0.25, logprob_gap_warning=0.2
)


def recipe(rules: StopConfig) -> Recipe:
    return Recipe.model_validate(
        {"name": "toy", "policy": {"model": "m"}, "rollout": {"max_new_tokens": 64}, "budget": {"stop": rules}}
    )


def seen(steps: list[dict[str, float]], rules: StopConfig = RULES) -> int:
    """Steps until the run stops."""
    watch = EarlyStopping()
    for number, metrics in enumerate(steps, start=1):
        watch = EarlyStopping.of(json.loads(json.dumps(watch.state())))  # as a checkpoint between any two steps
        try:
            watch.update(metrics, recipe(rules))
        except UserError:
            return number
    return 0


@pytest.mark.parametrize(
    ("steps", "stops"),
    [
        ([FINE] * 9, 0),
        ([FINE, FINE | {"grad_norm": 51.0}], 2),
        ([DEAD] * 2 + [FINE] + [DEAD] * 2, 0),  # only steps in a row count
        ([DEAD] * 2 + [FINE] + [DEAD] * 3, 6),
        ([FLAT, FINE, FLAT, FLAT], 4),
        ([FINE, APART, FAR], 3),  # a gap that equals the limit does not exceed it
    ],
)
def test_rules_by_hand(steps: list[dict[str, float]], stops: int) -> None:
    assert seen(steps) == stops
    off = StopConfig(grad_norm=None, dead_reward_steps=None, entropy=None, entropy_steps=2, logprob_gap=None)
    assert seen(steps, off) == 0


def test_the_message_names_what_the_dead_steps_sampled_and_what_may_help() -> None:
    watch = EarlyStopping()
    for step in (DEAD, FINE, DEAD, DEAD):  # what was sampled before a group had a gradient is forgotten
        watch.update(step, recipe(RULES))
    with pytest.raises(UserError) as stopped:
        watch.update(DEAD, recipe(RULES))
    assert stopped.value.message == (
        "no group had unequal rewards for 3 steps: 18 of 24 were cut at 64 tokens; 6 of 24 box a wrong prediction"
    )
    assert stopped.value.where == "rule `budget.stop.dead_reward_steps`"
    assert stopped.value.hint.startswith("raise `rollout.max_new_tokens`")
    before = EarlyStopping.of({"dead": 2, "collapsed": 0, "apart": 0})  # of a checkpoint that counted no outcomes
    with pytest.raises(UserError, match="for 3 steps: 6 of 8 were cut"):
        before.update(DEAD, recipe(RULES))


def test_a_metric_that_is_not_measured_stops_nothing() -> None:
    without_norm = {name: value for name, value in FINE.items() if name != "grad_norm"}
    EarlyStopping().update(without_norm, recipe(RULES))  # fp32 without ZeRO does not tell


def test_by_default_two_nats_between_trainer_and_sampler_stop_a_run() -> None:
    with pytest.raises(UserError, match=r"differ by 2 nats a token.*budget\.stop\.logprob_gap"):
        EarlyStopping().update(FAR, recipe(StopConfig()))


def test_a_gap_far_below_the_limit_is_warned_of_once() -> None:
    watch, default = EarlyStopping(), StopConfig()
    assert default.logprob_gap_warning is not None and default.logprob_gap is not None
    assert 0.05 < default.logprob_gap_warning <= default.logprob_gap / 5, "above what bfloat16 makes, far below a stop"
    said = [watch.update(metrics, recipe(default)) for metrics in (FINE, APART, APART, FINE, APART)]
    assert [bool(warning) for warning in said] == [False, True, False, False, True]
    assert "differ by 0.25 nats a token" in str(said[1])
    assert not EarlyStopping().update(APART, recipe(StopConfig(logprob_gap_warning=None)))
