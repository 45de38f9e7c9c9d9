"""TensorBoard's events as its own reader finds them."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from pipeline.grpo.run.run_folder import MetricsLog
from pipeline.grpo.run.trackers import COLUMNS

METRICS = {"reward/mean": 0.5, "compute/flops": 1e9, "eval/hard/reasoning": 0.25, "eval/hard/reasoning_low": 0.125}
METRICS["eval/hard/reasoning_high"] = 0.375


@pytest.fixture
def events(tmp_path: Path) -> EventAccumulator:
    """What is read of a run of two steps, the second resumed after the first; a response wants to be markup."""
    (tmp_path / "recipe.yaml").write_text(json.dumps({"name": "toy", "optimizer": {"lr": 0.1, "betas": [0.9, 0.95]}}))
    (tmp_path / "rollouts").mkdir()
    values: dict[str, list[object]] = {name: ["x"] for name in COLUMNS}
    values |= {"step": [0], "reward": [1.0], "advantage": [1.0], "target": [b" 4"], "prediction": [b" 4"]}
    values |= {"length": [3], "response": ["\n\n<script>window.pwned=1</script>\u202e"], "context": ["2 + 2 ="]}
    pl.DataFrame(values).select(COLUMNS).write_parquet(tmp_path / "rollouts" / "step-000000.parquet")
    for resumed, steps in ((None, (0, 1, 2)), (1, (2,))):
        log = MetricsLog(tmp_path, resumed)
        for step in steps:
            log.write(step, METRICS | {"reward/mean": 0.5 if resumed is None else 0.75})
        log.close()
    return EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()


def test_the_curves_that_matter_sort_first(events: EventAccumulator) -> None:
    tags = sorted(events.Tags()["scalars"])
    assert tags[:2] == ["1 learning/eval/hard/reasoning", "1 learning/reward/mean"]
    assert tags[2:] == [
        "9 intervals/eval/hard/reasoning_high", "9 intervals/eval/hard/reasoning_low", "compute/flops",
    ]  # fmt: skip
    values = [(event.step, event.value) for event in events.Scalars("1 learning/reward/mean")]
    assert values == [(0, 0.5), (1, 0.5), (2, 0.75)], "a step that was taken again counts once"


def test_accuracy_and_its_interval_are_one_chart(events: EventAccumulator) -> None:
    (tensor,) = events.Tensors("custom_scalars__config__")[:1]
    layout = layout_pb2.Layout.FromString(tensor.tensor_proto.string_val[0])
    charts = {chart.title: chart for category in layout.category for chart in category.chart}
    (series,) = charts["held-out accuracy, hard, reasoning"].margin.series
    assert (series.value, series.lower, series.upper) == (
        "1 learning/eval/hard/reasoning",
        "9 intervals/eval/hard/reasoning_low",
        "9 intervals/eval/hard/reasoning_high",
    )
    assert "1 learning/reward/mean" in charts["reward"].multiline.tag


def test_settings_and_responses_are_there(events: EventAccumulator) -> None:
    texts = {
        name: events.Tensors(name)[0].tensor_proto.string_val[0].decode()
        for name in ("responses/text_summary", "recipe/text_summary")
    }
    assert "    name: toy" in texts["recipe/text_summary"]
    response = texts["responses/text_summary"]
    assert all(line.startswith("    ") for line in response.split("\n")), "a block of code, whatever it says"
    assert "\u202e" not in response and "⟨U+202E⟩" in response
    assert any(name.startswith("_hparams_") for name in events.summary_metadata)
