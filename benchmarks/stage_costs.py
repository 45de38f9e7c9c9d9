"""Processor time and memory of `rpt data` and its workers, stage by stage, over several attempts.

Stages are told apart by the lines with which the command says that one is done: its workers have ended by then, and
the system has charged their time to it.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

LOOK_EVERY, SAVE_EVERY = 0.1, 2.0
"""Seconds between two looks at the processes, and between two notes of what was measured."""
REST = "report"
"""What the command does after its last stage."""


@dataclass
class Cost:
    """What a stage took, or what all took until now."""

    worker_s: float = 0.0
    driver_s: float = 0.0
    wall_s: float = 0.0
    worker_bytes: int = 0
    driver_bytes: int = 0

    def add(self, other: Cost) -> None:
        self.worker_s += other.worker_s
        self.driver_s += other.driver_s
        self.wall_s += other.wall_s
        self.worker_bytes = max(self.worker_bytes, other.worker_bytes)
        self.driver_bytes = max(self.driver_bytes, other.driver_bytes)


TICKS = os.sysconf("SC_CLK_TCK")
"""Units of processor time in a second."""


def times(process: int) -> tuple[float, float]:
    """Return processor seconds of a process, and of its children that have ended."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    own, system, children, of_children = map(int, fields[11:15])
    return (own + system) / TICKS, (children + of_children) / TICKS


def anonymous(process: int) -> int:
    """Return bytes of memory of a process that no file backs."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return sum(int(lines[name].split()[0]) << 10 for name in ("RssAnon", "RssShmem") if name in lines)


def children(process: int) -> Iterator[int]:
    """Yield the processes that any thread of a process has started."""
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            yield from map(int, path.read_text().split())


@dataclass
class Meter:
    """Measures the command and its workers, stage by stage, over several attempts."""

    path: Path
    stages: dict[str, Cost] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)
    open: Cost = field(default_factory=Cost)
    """What was measured since the last stage ended, by attempts that were killed."""
    runs: int = 0

    @classmethod
    def at(cls, path: Path) -> Meter:
        """Return the meter that was kept in a file, or a new one."""
        meter = cls(path)
        if path.exists():
            kept = json.loads(path.read_text())
            meter.stages = {name: Cost(**cost) for name, cost in kept["stages"].items()}
            meter.shards, meter.open, meter.runs = kept["shards"], Cost(**kept["open"]), kept["runs"]
        return meter

    def begin(self, process: int) -> None:
        """Begin an attempt."""
        self.process, self.begun, self.runs = process, time.monotonic(), self.runs + 1
        self._now, self._last, self._lock = Cost(), Cost(), threading.Lock()
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()

    def _watch(self) -> None:
        saved = time.monotonic()
        while not self._over.wait(LOOK_EVERY):
            with self._lock:
                self._look()
                if time.monotonic() - saved >= SAVE_EVERY:
                    self._save()
                    saved = time.monotonic()

    def _look(self) -> None:
        """Read what the processes have taken until now."""
        with suppress(OSError):  # the command has ended
            driver_s, worker_s = times(self.process)
            here = anonymous(self.process)
            self._now.driver_bytes = max(self._now.driver_bytes, here)
            for child in children(self.process):
                with suppress(OSError):
                    worker_s += sum(times(child))
                    self._now.worker_bytes = max(self._now.worker_bytes, anonymous(child))
            self._now.driver_s = max(self._now.driver_s, driver_s)
            self._now.worker_s = max(self._now.worker_s, worker_s)
        self._now.wall_s = time.monotonic() - self.begun

    def _since(self) -> Cost:
        now, last = self._now, self._last
        spent = Cost(now.worker_s - last.worker_s, now.driver_s - last.driver_s, now.wall_s - last.wall_s)
        spent.worker_bytes, spent.driver_bytes = now.worker_bytes, now.driver_bytes
        return spent

    def _save(self) -> None:
        waiting = Cost(**asdict(self.open))
        waiting.add(self._since())
        stages = {name: asdict(cost) for name, cost in self.stages.items()}
        kept = {"stages": stages, "shards": self.shards, "open": asdict(waiting), "runs": self.runs}
        self.path.with_suffix(".new").write_text(json.dumps(kept))
        self.path.with_suffix(".new").replace(self.path)

    def ended(self, stage: str, done: bool, shards: int = 0) -> None:
        """Count what was taken since the last call for a stage; for the rest, if another attempt had done it."""
        with self._lock:
            self._look()
            spent = self._since()
            if done:
                spent.add(self.open)
                self.open = Cost()
                self.shards[stage] = shards
            self.stages.setdefault(stage if done else REST, Cost()).add(spent)
            self._last = Cost(self._now.worker_s, self._now.driver_s, self._now.wall_s)
            self._now.worker_bytes = self._now.driver_bytes = 0
            self._save()

    def end(self, total_s: float, finished: bool) -> None:
        """End an attempt, whose command and workers took so many processor seconds altogether."""
        self._over.set()
        self._watcher.join()
        self._now.driver_s = max(self._now.driver_s, total_s - self._now.worker_s)
        if finished:
            self.ended(REST, done=True)
        else:
            self._save()


_LINE = re.compile(r"^(\w+) +(done in [\d.]+ s: .*?([\d,]+) shards?|up to date .*)$")


def follow(lines: IO[str], meter: Meter) -> list[str]:
    """Tell the meter of the stages that end by what the command logs; return its last lines."""
    last: list[str] = []
    for line in lines:
        sys.stderr.write(line)
        last = [*last[-20:], line]
        if found := _LINE.match(line.strip()):
            meter.ended(found[1], found[3] is not None, int((found[3] or "0").replace(",", "")))
    return last
