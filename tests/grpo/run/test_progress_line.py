"""The lines of a training run: only what was measured, seldom, and never too wide."""

from __future__ import annotations

from pipeline.grpo.run.metrics import ProgressLine, ending_lines

STEP = {
    "reward/mean": 0.3125,
    "groups/zero_variance": 0.296875,  # 19 of 64 groups
    "grad_norm": 0.4151,
    "policy/entropy": 0.612,
    "response/length": 22.4,
    "seconds/step": 3.86,
}
EVALUATED = {"eval/easy/reasoning": 0.2534, "eval/easy/reasoning_low": 0.2, "eval/hard/reasoning": 0.5684}


def test_a_line_says_what_the_step_measured() -> None:
    progress = ProgressLine(0, 60)
    progress._begin = progress._said = 100.0
    assert progress.lines(20, STEP, now=180.0) == [
        # 80 s for 20 steps, so 160 s for the 40 that are left
        "step 20/60  reward 0.312  70 % taught  grad 0.42  entropy 0.61  22 tokens  3.9 s/step  3 min left"
    ]


def test_accuracy_stands_only_at_the_step_that_measured_it() -> None:
    progress = ProgressLine(0, 60)
    assert progress.lines(0, EVALUATED) == ["step  0/60  held-out accuracy by reasoning: easy 25.3 %, hard 56.8 %"]
    (line,) = progress.lines(1, STEP)
    assert "held-out" not in line
    assert len(progress.lines(2, STEP | EVALUATED, now=progress._said + 1)) == 1, "measured, but no line is due"
    assert len(progress.lines(3, STEP | EVALUATED, now=progress._said + 100)) == 2


def test_the_end_tells_the_first_and_the_last_value() -> None:
    rows = [
        {"step": 0, "eval/easy/reasoning": 0.177, "eval/hard/reasoning": 0.0, "eval/hard/reasoning_low": 0.0},
        {"step": 1, "reward/mean": 0.018},
        {"step": 20, "reward/mean": 0.4, "eval/easy/reasoning": 0.5, "eval/hard/reasoning": 0.6},
        {"step": 40, "reward/mean": 0.5, "eval/easy/reasoning": 0.273, "eval/hard/reasoning": 0.53},
        {"step": 41, "reward/mean": 0.562},
    ]
    assert ending_lines(rows) == [
        "reward 0.018 → 0.562 in 41 steps",
        "held-out accuracy: easy 17.7 → 27.3 %, hard 0.0 → 53.0 %",
    ]
    assert ending_lines([{"step": 1, "loss": 2.0}]) == ending_lines([]) == []


def test_supervised_steps_tell_the_loss() -> None:
    (line,) = ProgressLine(0, 2).lines(2, {"loss": 1.23456, "seconds/step": 0.2})
    assert line.startswith("step 2/2  loss 1.235  0.2 s/step  0 s left")


def test_long_runs_print_few_lines() -> None:
    """A step of four seconds gives a tenth of the steps; one of half an hour a line each."""
    for seconds, most in ((4.0, 12), (0.01, 2), (1800.0, 60)):
        progress = ProgressLine(0, 60)
        begin = progress._begin
        told = [line for step in range(1, 61) for line in progress.lines(step, STEP, now=begin + seconds * step)]
        assert 2 <= len(told) <= most, (seconds, len(told))
        assert told[0].startswith("step  1/60") and told[-1].startswith("step 60/60"), "the first and the last"
        assert max(map(len, told)) <= 100
