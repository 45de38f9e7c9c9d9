"""A training run as the Run tab shows it, read from the files in its folder; nothing is read again that did not change.

The folder may belong to a run that trains at this moment, or be a copy from another machine.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.audit.board.curves import Curves
from pipeline.audit.board.panels import PANELS, drawn
from pipeline.audit.board.rollout_index import RolloutIndex
from pipeline.audit.board.rollout_search import RolloutFinder
from pipeline.audit.board.tail import JsonLines
from pipeline.config.errors import UserError
from pipeline.selection.sites import BANDS

METRICS = "metrics.jsonl"
MAX_FILE = 64 << 20
"""Bytes of the largest recipe or evaluation that is read."""
READ_SECONDS = 0.1
"""Seconds that a page spends on files of rollouts that were not read yet; the next one goes on."""
RECENT = 20
"""Steps whose mean duration foretells the time left."""


class SmallFile:
    """A file that is read again only when its size or time of change differs."""

    def __init__(self, path: Path, parse: Any) -> None:
        self._path, self._parse = path, parse
        self._seen: tuple[int, int] | None = None
        self._value: Any = None

    def value(self) -> Any:
        """Return the parsed content; None if there is no file, or none that can be parsed."""
        try:
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_size)
        except OSError:
            return None
        if seen != self._seen:
            self._value, self._seen = self._read(status.st_size), seen
        return self._value

    def _read(self, size: int) -> Any:
        try:
            return self._parse(self._path.read_bytes()) if size <= MAX_FILE else None
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            return None


class Run:
    """A run's folder, under a name that is unique on the page."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.curves = Curves()
        self.rollouts = RolloutIndex(folder)
        self.finder = RolloutFinder(self.rollouts)
        self._lines = JsonLines(folder / METRICS)
        self._recipe = SmallFile(folder / "recipe.yaml", yaml.safe_load)
        self._evaluation = SmallFile(folder / "evaluation" / "evaluation.json", json.loads)
        self._lock = threading.Lock()
        self._generation = self._without_step = 0
        self._drawn: tuple[str, dict[str, list[dict[str, Any]]]] = ("", {})

    def refresh(self) -> bool:
        """Read what was added to the metrics and rollouts; return True if there is more to read at once."""
        all_rollouts = self.rollouts.refresh(READ_SECONDS)
        with self._lock:
            added = self._lines.read()
            if added.restarted:
                self.curves, self._without_step = Curves(), 0
                self._generation += 1
            self._without_step += self.curves.add(added.rows)
            return added.more or not all_rollouts

    @property
    def version(self) -> str:
        """Return a text that differs whenever the charts do."""
        direct = ",".join(f"{band}={value}" for band, value in sorted(self.direct.items()))
        read = f"{self._generation}-{self._lines.offset}-{self.rollouts.progress}"
        return f"{read}-{self.finished:d}-{self.planned_steps}-{direct}"

    @property
    def finished(self) -> bool:
        """Return True if the run took all its steps and exported its policy."""
        return (self.folder / "policy").is_dir()

    @property
    def planned_steps(self) -> int | None:
        """Return the steps of the whole run, as its recipe says; None without a recipe."""
        steps = _inside(self._recipe.value(), "budget", "steps")
        return steps if isinstance(steps, int) else None

    @property
    def direct(self) -> dict[str, float]:
        """Return the direct accuracy of the policy before training by band, if `rpt evaluate` has measured it."""
        evaluation = self._evaluation.value()
        policies = _inside(evaluation, "policies")
        if not isinstance(policies, list) or not policies:
            return {}
        readings = _inside(evaluation, "sets", "headline", "readings", f"direct {policies[0]}", "accuracy")
        values = {band: _inside(readings, band, "value") for band in ("all", *BANDS)}
        return {band: float(value) for band, value in values.items() if isinstance(value, int | float)}

    def charts(self) -> dict[str, list[dict[str, Any]]]:
        """Return the curves of every chart that has any, by the chart's key."""
        with self._lock:
            version = self.version
            if self._drawn[0] != version:
                made = {panel.key: drawn(panel, self.curves, self.direct) for panel in PANELS}
                self._drawn = (version, {key: curves for key, curves in made.items() if curves})
            return self._drawn[1]

    def summary(self) -> dict[str, Any]:
        """Return where the run stands, as JSON values: its step, its newest figures, how old they are, time left."""
        with self._lock:
            step = self.curves.steps[-1] if len(self.curves.steps) else None
            accuracy = {band: self._interval(band) for band in ("all", *BANDS)}
            return {
                "name": self.name,
                "step": step,
                "steps": self.planned_steps,
                "finished": self.finished,
                "age": self._age(),
                "left": self._seconds_left(step),
                "reward": self.curves.last("reward/mean"),
                "gradient": self.curves.last("share/gradient"),
                "tokens": self.curves.last("tokens/per_second"),
                "accuracy": {band: found for band, found in accuracy.items() if found},
                "unreadable": self._lines.unreadable + self._without_step,
            }

    def _interval(self, band: str) -> list[float] | None:
        """Return the newest held-out accuracy of a band with its interval, and the direct baseline if it is known."""
        name = f"eval/{band}/reasoning"
        found = [self.curves.last(metric) for metric in (name, f"{name}_low", f"{name}_high")]
        values = [value for value in found if value is not None]
        return values if len(values) == len(found) else None

    def _age(self) -> float | None:
        try:
            return max(0.0, time.time() - (self.folder / METRICS).stat().st_mtime)
        except OSError:
            return None

    def _seconds_left(self, step: int | None) -> float | None:
        seconds = self.curves.of("seconds/step")[1][-RECENT:]
        planned = self.planned_steps
        if self.finished or step is None or planned is None or not len(seconds):
            return None
        return float(seconds.mean()) * max(planned - step, 0)


def open_runs(folders: Sequence[Path]) -> list[Run]:
    """Return the runs in these folders, each under the shortest name that tells it from the others.

    Raises:
        UserError: a folder does not exist, or the same one is given twice.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(
                "no such folder of a run", where=folder, hint="give folders that `rpt train` made: runs/NAME"
            )
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise UserError("a run is given twice", where=", ".join(map(str, folders)), hint="give every run once")
    return [Run(path, _name(path, paths)) for path in paths]


def _name(path: Path, paths: Sequence[Path]) -> str:
    """Return the end of a path that no other one has.

    Example:
        >>> _name(Path("/a/demo"), [Path("/a/demo"), Path("/b/demo")]), _name(Path("/a/x"), [Path("/a/x")])
        ('a/demo', 'x')
    """
    for parts in range(1, len(path.parts)):
        name = "/".join(path.parts[-parts:])
        if sum(other.parts[-parts:] == path.parts[-parts:] for other in paths) == 1:
            return name
    return str(path)


def _inside(value: Any, *keys: str) -> Any:
    """Return the value under nested keys; None where there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
