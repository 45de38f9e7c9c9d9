"""TensorBoard's log of a run: the curves that matter first, their intervals in one chart, settings and responses.

The events lie in the run's folder itself, so that `tensorboard --logdir runs` calls the run by its name. Tags are those
of `metrics.jsonl` (docs/metrics.md), some of them below `1 learning/` or `9 intervals/`: TensorBoard sorts by name, and
would begin with `compute/`. The tab "Custom scalars" has the same curves in groups, accuracy with its interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from pipeline.core.invisible import escape_invisible
from pipeline.grpo.run.trackers import leaves, read_examples
from pipeline.task.reward import REASONS

FIRST = ("reward/mean", "groups/zero_variance", "policy/entropy", "response/length", "grad_norm", "loss", "lr")
"""Metrics that are shown first, besides held-out accuracy."""
SHOWN = 8
"""Responses of a step that are shown."""


class TensorBoardLog:
    """A log that writes events for TensorBoard into a run's folder."""

    def __init__(self, run: Path, resumed_step: int | None) -> None:
        """Open the log at `resumed_step`, the step of the checkpoint resumed from; None starts over.

        Args:
            run: the run's folder; its `recipe.yaml`, if it exists, becomes the hyper-parameters.
            resumed_step: events after this step are purged.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._run, self._has_layout = run, False
        self._writer = SummaryWriter(str(run), purge_step=0 if resumed_step is None else resumed_step + 1)
        if resumed_step is None and (run / "recipe.yaml").is_file():
            self._write_settings(yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8")))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics measured after `step` updates, and responses of the step if they were saved."""
        if not self._has_layout:
            self._writer.add_custom_scalars(layout(metrics))
            self._has_layout = True
        for name, value in metrics.items():
            self._writer.add_scalar(tag(name), value, step)
        saved = self._run / "rollouts" / f"step-{step - 1:06d}.parquet"
        if saved.is_file():
            self._writer.add_text("responses", _as_markdown(read_examples(saved).head(SHOWN)), step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _write_settings(self, recipe: Mapping[str, Any]) -> None:
        """Write the recipe as text and as hyper-parameters."""
        from torch.utils.tensorboard.summary import hparams

        self._writer.add_text("recipe", _block(yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)), 0)
        values = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in leaves(recipe)
            if value is not None
        }
        events: Any = self._writer.file_writer  # `add_hparams` would write them as a run of their own
        for summary in hparams(values, {tag("reward/mean"): 0.0}):
            events.add_summary(summary)


def tag(name: str) -> str:
    """Return the tag of a metric.

    Example:
        >>> tag("reward/mean"), tag("eval/hard/reasoning_low"), tag("compute/flops")
        ('1 learning/reward/mean', '9 intervals/eval/hard/reasoning_low', 'compute/flops')
    """
    if name.startswith("eval/"):
        return f"9 intervals/{name}" if name.endswith(("_low", "_high")) else f"1 learning/{name}"
    return f"1 learning/{name}" if name in FIRST else name


def layout(metrics: Iterable[str]) -> dict[str, dict[str, list[Any]]]:
    """Return the groups of charts of the tab "Custom scalars".

    Args:
        metrics: names of the first metrics written, among them the held-out accuracy of every band.
    """
    measured = [name for name in metrics if name.startswith("eval/") and not name.endswith(("_low", "_high"))]
    accuracy = {
        f"held-out accuracy, {name.removeprefix('eval/').replace('/', ', ')}": [
            "Margin",
            [tag(f"{name}{end}") for end in ("", "_low", "_high")],
        ]
        for name in measured
    }

    def lines(*names: str) -> list[Any]:
        return ["Multiline", [tag(name) for name in names]]

    return {
        "Learning": {"reward": lines("reward/mean"), **accuracy},
        "Groups": {"equal rewards": lines("groups/zero_variance", "groups/all_right", "groups/all_wrong")},
        "Responses": {
            "outcomes": lines(*(f"reward/{reason}" for reason in REASONS)),
            "length, tokens": lines("response/length"),
            "policy's entropy, nats": lines("policy/entropy"),
        },
        "Updates": {"gradient norm": lines("grad_norm"), "loss": lines("loss"), "gap": lines("sampler/logprob_gap")},
        "Time": {"seconds": lines(*(f"seconds/{part}" for part in ("sample", "score", "update", "sync", "step")))},
    }


def _as_markdown(rows: pl.DataFrame) -> str:
    """Return responses as text in which nothing is markup."""
    shown = [
        f"{row['site_id']}  reward {row['reward']:g}, {row['reason']}\n"
        f"context     …{row['context'][-200:]}\nresponse    {row['response']}\ntruth       {row['target']}"
        for row in rows.iter_rows(named=True)
    ]
    return _block("\n\n".join(shown))


def _block(text: str) -> str:
    """Return text as an indented block of Markdown, which no text in it can end."""
    return "\n".join(f"    {line}" for line in escape_invisible(text).split("\n"))
