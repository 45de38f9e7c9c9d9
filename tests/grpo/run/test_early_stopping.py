from __future__ import annotations

import json

import pytest

from pipeline.config.errors import UserError
from pipeline.config.training import StopConfig
from pipeline.grpo.run.early_stopping import EarlyStopping

FINE = {
    "groups/zero_variance": 0.5,
    "groups/all_right": 0.2,
    "groups/all_wrong": 0.3,
    "policy/entropy": 0.4,
    "grad_norm": 1.0,
    "sampler/logprob_gap": 0.05,
}
DEAD = FINE | {"groups/zero_variance": 1.0, "groups/all_right": 0.0, "groups/all_wrong": 1.0}
FLAT = FINE | {"policy/entropy": 1e-6}
APART, FAR = FINE | {"sampler/logprob_gap": 0.25}, FINE | {"sampler/logprob_gap": 2.0}
RULES = StopConfig(
    grad_norm=50, dead_reward_steps=3, entropy=1e-3, entropy_steps=2, logprob_gap=0.25, logprob_gap_warning=0.2
)


def seen(steps: list[dict[str, float]], rules: StopConfig = RULES) -> int:
    """Steps until the run stops."""
    watch = EarlyStopping()
    for number, metrics in enumerate(steps, start=1):
        watch = EarlyStopping(**json.loads(json.dumps(watch.state())))  # as a checkpoint between any two steps
        try:
            watch.update(metrics, rules)
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


def test_the_message_names_the_rule_and_what_may_mend_it() -> None:
    watch = EarlyStopping(dead=2)
    with pytest.raises(UserError, match=r"for 3 steps: responses are always wrong.*dead_reward_steps.*rpt screen"):
        watch.update(DEAD, RULES)
    without_norm = {name: value for name, value in FINE.items() if name != "grad_norm"}
    EarlyStopping().update(without_norm, RULES)  # fp32 without ZeRO does not tell


def test_by_default_two_nats_between_trainer_and_sampler_stop_a_run() -> None:
    with pytest.raises(UserError, match=r"differ by 2 nats a token.*budget\.stop\.logprob_gap"):
        EarlyStopping().update(FAR, StopConfig())


def test_a_gap_far_below_the_limit_is_warned_of_once() -> None:
    watch, default = EarlyStopping(), StopConfig()
    assert default.logprob_gap_warning is not None and default.logprob_gap is not None
    assert 0.05 < default.logprob_gap_warning <= default.logprob_gap / 5, "above what bfloat16 makes, far below a stop"
    said = [watch.update(metrics, default) for metrics in (FINE, APART, APART, FINE, APART)]
    assert [bool(warning) for warning in said] == [False, True, False, False, True]
    assert "differ by 0.25 nats a token" in str(said[1])
    assert not EarlyStopping().update(APART, StopConfig(logprob_gap_warning=None))
