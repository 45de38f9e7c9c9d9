"""The curves of a run: every metric of `metrics.jsonl` by step, and what is derived from several of them."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pipeline.audit.board.downsample import Floats
from pipeline.task.reward import REASONS

MAX_STEP = 2**40
NAMES = 500
"""Metrics of a run that are kept; a file with more names is not one of ours."""


class Curves:
    """Metrics by name, each with the steps at which it was measured. Shape: N measurements."""

    def __init__(self) -> None:
        self._steps: dict[str, array[int]] = {}
        self._values: dict[str, array[float]] = {}
        self.steps = array("q")

    def add(self, rows: Iterable[Mapping[str, Any]]) -> int:
        """Add lines of `metrics.jsonl` and return how many had no step. Values that are no finite numbers are left out.

        A line replaces what is known of its step and later ones.
        """
        without = 0
        for row in rows:
            step = row.get("step")
            if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < MAX_STEP:
                without += 1
                continue
            if self.steps and step <= self.steps[-1]:
                self._forget_from(step)
            self.steps.append(step)
            for name, value in row.items():
                if name != "step" and (number := _finite(value)) is not None:
                    self._append(name, step, number)
        return without

    def of(self, name: str) -> tuple[Floats, Floats]:
        """Return the steps [N] and values [N] of a metric, or of a derived one (`DERIVED`); empty if there are none."""
        if derive := DERIVED.get(name):
            return derive(self)
        if name not in self._steps:
            return np.empty(0), np.empty(0)
        return np.array(self._steps[name], dtype=np.float64), np.array(self._values[name])

    def together(self, names: Iterable[str]) -> tuple[Floats, dict[str, Floats]]:
        """Return the steps [N] at which any of the metrics was measured, and their values [N] there, 0 if missing."""
        found = {name: self.of(name) for name in names}
        step_N = np.unique(np.concatenate([np.empty(0), *(steps for steps, _ in found.values())]))
        values = {}
        for name, (steps, measured) in found.items():
            values[name] = np.zeros(len(step_N))
            values[name][np.searchsorted(step_N, steps)] = measured
        return step_N, values

    def last(self, name: str) -> float | None:
        """Return the newest value of a metric."""
        values = self.of(name)[1]
        return float(values[-1]) if len(values) else None

    def _append(self, name: str, step: int, number: float) -> None:
        if name not in self._steps:
            if len(self._steps) >= NAMES:
                return
            self._steps[name], self._values[name] = array("q"), array("d")
        self._steps[name].append(step)
        self._values[name].append(number)

    def _forget_from(self, step: int) -> None:
        del self.steps[bisect_left(self.steps, step) :]
        for name, steps in self._steps.items():
            first = bisect_left(steps, step)
            del steps[first:], self._values[name][first:]


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _outcome_share(reason: str) -> Any:
    """Return the function that derives the share of a step's responses with an outcome."""

    def derive(curves: Curves) -> tuple[Floats, Floats]:
        step_N, counts = curves.together(f"reward/{name}" for name in REASONS)
        all_N = sum(counts.values(), np.zeros(len(step_N)))
        return step_N, np.divide(counts[f"reward/{reason}"], all_N, out=np.zeros(len(step_N)), where=all_N > 0)

    return derive


def _with_gradient(curves: Curves) -> tuple[Floats, Floats]:
    step_N, equal_N = curves.of("groups/zero_variance")
    return step_N, 1 - equal_N


DERIVED = {
    **{f"share/{reason}": _outcome_share(reason) for reason in REASONS},
    "share/gradient": _with_gradient,
}
"""Metrics that are computed from others: shares of outcomes, and the share of groups whose rewards differ."""
