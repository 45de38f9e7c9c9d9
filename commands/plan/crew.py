"""The workers of `rpt plan`: they try the stages on a sample, and their measurements give the costs of a stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.core.executor import LocalExecutor
from pipeline.core.hardware import cores, gpus
from pipeline.shards.cost import Trial, wall_seconds


@dataclass(frozen=True)
class Team:
    """The measurements of the workers of one trial."""

    trials: list[Trial]
    start: float
    """Seconds before the last worker was ready."""

    def counts(self, name: str) -> list[int]:
        """Return the counts of this name from all trials."""
        return [count for trial in self.trials for count in trial.counts[name]]

    @property
    def busy(self) -> float:
        """The sum of the seconds that each worker worked."""
        return sum(trial.elapsed for trial in self.trials)


class Crew:
    """The local workers that a run would have."""

    def __init__(self, workers: int | None) -> None:
        self.executor = LocalExecutor(workers)
        self.light = workers or cores()
        self.scoring = workers or len(gpus()) or cores()

    def run(self, function: Callable[[Any], Trial], parts: Sequence[Any], *, accelerated: bool = False) -> Team:
        """Run the function on every part and measure how long the workers take to start."""
        begin = time.monotonic()
        trials = list(self.executor.map(function, parts, accelerated=accelerated))
        return Team(trials, max(0.0, time.monotonic() - begin - max(trial.elapsed for trial in trials)))

    def hours(self, busy: float, *, accelerated: bool = False) -> float:
        """Return GPU-hours if workers use GPUs, else core-hours."""
        workers = self.scoring if accelerated else self.light
        each = 1 if accelerated and gpus() else max(1, cores() // workers)
        return busy * each / 3600

    def stage(
        self, name: str, unit: str, count: float, busy: float, shards: int, team: Team, share: float, *,
        accelerated: bool = False, passes: int = 1,
    ) -> dict[str, Any]:  # fmt: skip
        """Return a stage's costs: `busy` seconds of work in `shards`, of which `team` did one part in `share`."""
        workers = self.scoring if accelerated else self.light
        return {
            "stage": name,
            "count": count,
            "unit": unit,
            "seconds": passes * team.start + wall_seconds(busy, shards, workers),
            "worker_seconds": busy,
            "hours": self.hours(busy, accelerated=accelerated),
            "of": "GPU" if accelerated and gpus() else "core",
            "bytes": round(sum(trial.bytes for trial in team.trials) * share),
        }
