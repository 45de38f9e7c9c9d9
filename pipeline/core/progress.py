"""Progress of a stage: a live bar on a terminal, plain lines elsewhere, first after ten seconds.

    score  12 of 40 shards, 8 running, 20 waiting, 9,270,000 tokens, 41,200 tokens/s, MFU 43 %, 6 min left

A rate counts finished shards and what workers report of running ones, over the time since the stage began, which
includes the start of the workers. MFU
(model FLOPs utilisation) is that rate's share of the workers' dense bf16 peak, at two floating-point operations per
weight and token; it is shown where the peak is known (`hardware.PEAK_FLOPS`).
"""

from __future__ import annotations

import contextlib
import os
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from pipeline.core.hardware import peak_flops

FIRST_LINES = (10.0, 20.0)
LINE_EVERY = 30.0
"""Seconds before each of the first plain lines, and between later ones."""

PIPED_WIDTH = 100
"""Columns of tables and sentences that do not go to a terminal."""
INDENT = 13
"""Columns of the command's name before a line, under which its further lines do not reach."""
PART = "RPT_PART"
"""Environment variable that is set for a command which another one runs as a part of itself."""

console = Console(stderr=True, highlight=False)


def results() -> Console:
    """Return the console for results: standard output, as wide as the terminal, or `PIPED_WIDTH` without one."""
    wide = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, markup=False, width=None if wide else PIPED_WIDTH)


@dataclass
class Throughput:
    """Counts of a stage in progress: steps done, units of work, time since it began."""

    total: int
    unit: str
    """Unit of the rate."""
    flops: float | None = None
    """Floating-point operations per unit, if that is known."""
    steps: str = "shards"
    """Name of the things that `total` counts."""
    done: int = 0
    units: int = 0
    within: Callable[[], tuple[float, int]] = lambda: (0.0, 0)
    """Returns what has been done of unfinished steps: steps, with fractions, and units of work."""
    begin: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._before = self.within()  # by an earlier run, which was interrupted

    def advance(self, steps: int, units: int) -> None:
        """Count `steps` more finished steps with `units` of work."""
        self.done += steps
        self.units += units

    def describe(self, devices: Sequence[str] = (), now: float | None = None) -> str:
        """Return a line with the steps by state, the rate, the MFU and the time left.

        Args:
            devices: devices of the running workers. Each is busy with one step, which counts as half done if nothing is
                known `within` steps.
            now: time in seconds on the clock of `time.monotonic`; by default the current one.

        Example:
            >>> meter = Throughput(total=10, unit="tokens", flops=2e9, done=4, units=40_000_000, begin=0.0)
            >>> meter.describe(["NVIDIA H200", "NVIDIA H200"], now=100.0)
            '4 of 10 shards, 2 running, 4 waiting, 40,000,000 tokens, 400,000 tokens/s, MFU 40 %, 1 min 40 s left'
        """
        seconds = max((time.monotonic() if now is None else now) - self.begin, 1e-9)
        running = min(len(devices), self.total - self.done)
        parts = [f"{self.done} of {self.total} {self.steps}"]
        if devices:
            parts += [f"{running} running", f"{self.total - self.done - running} waiting"]
        steps, units = self.within()
        units += self.units
        rate = (units - self._before[1]) / seconds
        if rate > 0:
            parts += [f"{units:,} {self.unit}", f"{rate:,.0f} {self.unit}/s"]
            peak = peak_flops(devices)
            if self.flops and peak:
                parts.append(f"MFU {100 * rate * self.flops / peak:.0f} %")
        finished = self.done + (steps or (running / 2 if self.done else 0))
        if finished > self._before[0]:
            parts.append(f"{duration(seconds * (self.total - finished) / (finished - self._before[0]))} left")
        return ", ".join(parts)


def duration(seconds: float) -> str:
    """Return a duration in the two largest units that it has.

    Example:
        >>> duration(42), duration(100), duration(7_500), duration(200_000)
        ('42 s', '1 min 40 s', '2 h 5 min', '2 d 7 h')
    """
    whole = round(seconds)
    steps = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    for (large, name), (small, below) in pairwise(steps):
        if whole >= large:
            rest = whole % large // small
            return f"{whole // large} {name}" + (f" {rest} {below}" if rest else "")
    return f"{whole} s"


def counted(number: int, noun: str) -> str:
    """Return a count with its noun, singular or plural.

    Example:
        >>> counted(1, "site"), counted(1200, "site")
        ('1 site', '1,200 sites')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def quantity(number: float) -> str:
    """Return a large number in words, with two or three digits.

    Example:
        >>> quantity(831_000), quantity(134_500_000), quantity(1_543_714_304), quantity(14_770_000_000)
        ('0.8 million', '134 million', '1.5 billion', '14.8 billion')
    """
    size, unit = (number / 1e9, "billion") if number >= 1e9 else (number / 1e6, "million")
    return f"{size:.1f} {unit}" if size < 100 else f"{size:.0f} {unit}"


@contextlib.contextmanager
def progress_bar(
    title: str, meter: Throughput, devices: Callable[[], Sequence[str]] = tuple
) -> Iterator[Callable[[int, int], None]]:
    """Show `meter` while the block runs; yield its `advance`."""
    if console.is_terminal:
        columns = (TextColumn("{task.description:<12}"), BarColumn(20), _MeterColumn(meter, devices))
        with Progress(*columns, console=console, transient=True, refresh_per_second=2) as bars:
            bars.add_task(title, total=meter.total)
            yield meter.advance
        return
    over = threading.Event()

    def lines() -> None:
        pauses = iter(FIRST_LINES)
        while not over.wait(next(pauses, LINE_EVERY)):
            log(f"{title:<12} {meter.describe(devices())}")

    thread = threading.Thread(target=lines, daemon=True)
    thread.start()
    try:
        yield meter.advance
    finally:
        over.set()
        thread.join()


class _MeterColumn(ProgressColumn):
    """Column that shows the meter's line and updates the bar beside it."""

    max_refresh = 1.0

    def __init__(self, meter: Throughput, devices: Callable[[], Sequence[str]]) -> None:
        super().__init__()
        self.meter, self.devices = meter, devices

    def render(self, task: Task) -> Text:
        """Return the meter's line, and set the task's count from the meter."""
        task.completed = self.meter.done
        return Text(self.meter.describe(self.devices()))


def log(line: str) -> None:
    """Print one line to standard error, because standard output is for results.

    On a terminal it is wrapped between words. Elsewhere it stays whole, so that `grep` finds its words.
    """
    shown = wrapped(line, console.width) if console.is_terminal else line
    console.print(shown, markup=False, soft_wrap=True)
    sys.stderr.flush()


def say_next(command: str, why: str) -> None:
    """Print the line that ends a command: what to run or open next; nothing in a command that is a part of another."""
    if PART not in os.environ:
        log(f"next: {command}   ({why})")


def wrapped(line: str, width: int) -> str:
    """Return a line broken between words; a path or another long word stays whole, and a number with its percent sign.

    Later lines are indented.

    Example:
        >>> print(wrapped("score        done in 2 s: 100 tokens", 30))
        score        done in 2 s: 100
                     tokens
        >>> print(wrapped("error: source file not found: corpus.jsonl", 30))
        error: source file not found:
          corpus.jsonl
        >>> print(wrapped("Rose: hard 6.7 → 13.5 %, easy 10.0 → 17.3 %.", 43))
        Rose: hard 6.7 → 13.5 %, easy 10.0 →
          17.3 %.
    """
    named = line[INDENT - 1 : INDENT] == " " and line[INDENT : INDENT + 1].strip() != ""
    indent = " " * (INDENT if named else 2)
    parts = textwrap.wrap(
        line.replace(" %", "\u00a0%"),
        max(width, 2 * INDENT),
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(parts).replace("\u00a0%", " %")


def quiet_libraries() -> None:
    """Silence progress bars and deprecation warnings of libraries; other warnings and errors stay.

    Call it before the libraries are imported. Child processes inherit the variables.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # also disables the bars for reading and writing weights
    warnings.filterwarnings("ignore", category=FutureWarning)  # libraries' uses of each other
