"""Progress on a terminal: a bar with rate and time left; plain lines where nobody watches."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)


@contextlib.contextmanager
def progress(title: str, total: int, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yields `advance(steps, units)`: `steps` of `total` are done, with `units` of work in them (for the rate)."""
    start, units_done = time.monotonic(), 0

    def rate() -> str:
        return f"{units_done / max(time.monotonic() - start, 1e-9):,.0f} {unit}/s" if units_done else ""

    if not console.is_terminal:

        def advance_quietly(steps: int, units: int) -> None:
            nonlocal units_done
            units_done += units

        yield advance_quietly
        return

    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(title, total=total, rate="")

        def advance(steps: int, units: int) -> None:
            nonlocal units_done
            units_done += units
            bars.update(task, advance=steps, rate=rate())

        yield advance


def say(line: str) -> None:
    """One line to the person who runs this (standard error: standard output is for results)."""
    console.print(line, markup=False, soft_wrap=True)
    sys.stderr.flush()
