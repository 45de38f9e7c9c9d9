"""Plots of training runs: held-out reasoning accuracy over steps, with direct accuracy, and over compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.grpo.run.metrics import read_metrics

COLOURS = ("#0072b2", "#e69f00", "#d55e00", "#009e73")
"""Okabe and Ito's palette, which stays distinguishable for colour-blind readers and in grey."""


@dataclass(frozen=True)
class Point:
    """Held-out accuracy at a step, with its interval."""

    step: int
    value: float
    low: float
    high: float


def read_progress(metrics: Path, bands: Sequence[str]) -> dict[str, list[Point]]:
    """Read the evaluations that a training run logged, by band and step.

    Args:
        metrics: JSON lines; lines with `step` and `eval/<band>/reasoning`, `…_low`, `…_high` count. A step that a
            resumed run logged twice counts once, as logged last; the unfinished last line of a killed run is left out.
        bands: Bands to read.
    """
    rows = read_metrics(metrics)
    series: dict[str, list[Point]] = {}
    for band in bands:
        key = f"eval/{band}/reasoning"
        by_step = {
            row["step"]: Point(row["step"], row[key], row[f"{key}_low"], row[f"{key}_high"])
            for row in rows
            if key in row
        }
        if by_step:
            series[band] = [by_step[step] for step in sorted(by_step)]
    return series


def draw_progress(
    series: Mapping[str, Sequence[Point]], direct: Mapping[str, float], folder: Path, title: str
) -> list[Path]:
    """Draw `accuracy.png` and `accuracy.svg` and return their paths; a panel a band, because bands may coincide.

    Args:
        series: Reasoning accuracy over steps, by band.
        direct: Direct accuracy of the untrained policy, by band; drawn as dashed lines.
        folder: Output folder.
        title: Title of the plot.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.9 * len(series) + 0.5, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(series), sharey=True, squeeze=False)[0]
    for axes, (band, points), colour in zip(panels, series.items(), COLOURS, strict=False):
        steps = [point.step for point in points]
        axes.fill_between(
            steps, [100 * p.low for p in points], [100 * p.high for p in points], color=colour, alpha=0.12, lw=0
        )
        axes.plot(steps, [100 * p.value for p in points], color=colour, lw=2, marker="o", ms=4, label="reasoning")
        if band in direct:
            axes.axhline(100 * direct[band], color="#555555", lw=1.4, ls=(0, (5, 3)), label="direct before")
        axes.set_xlabel("training step")
        axes.set_title(band, loc="left", fontsize=11)
        axes.grid(axis="y", color="#dddddd", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9, loc="best")
    panels[0].set_ylabel("held-out accuracy, % [95 % interval]")
    panels[0].set_ylim(0, None)  # last: a limit that is set earlier would not grow with the other panels
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    paths = [folder / "accuracy.png", folder / "accuracy.svg"]
    with matplotlib.rc_context({"svg.hashsalt": "rpt"}):  # makes the ids in the SVG reproducible
        figure.savefig(paths[0], dpi=150, metadata={"Software": None})
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def draw_scaling(scaling: Mapping[str, Any], path: Path) -> None:
    """Draw measured points (means over seeds), the fitted law and its dotted extrapolation."""
    import numpy as np

    figure, axes = new_figure()
    for (band, found), colour in zip(scaling.items(), COLOURS, strict=False):
        points_N = [(c, p) for c, p in found["points"] if c > 0]
        if not points_N:
            continue
        compute_N, accuracy_N = np.array(points_N).T
        axes.plot(compute_N, 100 * accuracy_N, "o", color=colour, ms=4, label=band)
        if law := found["law"]:
            for begin, end, style in (
                (compute_N.min(), compute_N.max(), "-"),
                (compute_N.max(), 10 * compute_N.max(), ":"),
            ):
                at_M = np.geomspace(begin, end, 60)
                curve_M = (
                    law["amplitude"]["value"] * (at_M / law["unit"]) ** -law["alpha"]["value"] + law["plateau"]["value"]
                )
                axes.plot(at_M, 100 * curve_M, style, color=colour, lw=1.4)
    axes.set(xlabel="training FLOPs (dotted: extrapolated)", ylabel="held-out reasoning accuracy, %", ylim=(0, 100))
    if axes.lines:
        axes.set_xscale("log")
        axes.legend(frameon=False)
    save_svg(figure, path)


def new_figure(height: float = 4.8) -> tuple[Any, Any]:
    """Return a figure and its axes; no display is needed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_svg(figure: Any, path: Path) -> None:
    """Write a figure as SVG; the same figure always gives the same bytes."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "rpt"}):
        figure.savefig(path, metadata={"Date": None})
