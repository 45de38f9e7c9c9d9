"""The pictures of a study, as SVG: accuracy of every arm, and accuracy over training compute."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.evaluation.picture import COLOURS


def draw_scaling(study: Mapping[str, Any], path: Path) -> None:
    """Points (mean over seeds), the fitted law, and its extrapolation dashed."""
    import numpy as np

    figure, axes = _figure()
    for (band, found), colour in zip(study["scaling"].items(), COLOURS, strict=False):
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
    _save(figure, path)


def draw_arms(study: Mapping[str, Any], path: Path) -> None:
    """Accuracy of every reading of every arm, with intervals, by band."""
    figure, axes = _figure(height=0.34 * len(study["arms"]) * 2 + 1.4)
    readings = study["sets"][study["headline"]]["accuracy"]
    for shift, (band, colour) in zip((-0.22, 0.0, 0.22), zip(study["bands"], COLOURS, strict=False), strict=False):
        for row, bands in enumerate(readings.values()):
            if (own := bands[band]) is not None:
                value, low, high = (100 * own[name] for name in ("value", "low", "high"))
                label = band if row == 0 else None
                axes.errorbar(
                    value, row + shift, xerr=[[value - low], [high - value]], fmt="o", ms=4, lw=1.2, color=colour,
                    label=label,
                )  # fmt: skip
    axes.set_yticks(range(len(readings)), list(readings))
    axes.invert_yaxis()
    axes.set(xlabel=f"held-out next-token accuracy, % (where {study['where']})", xlim=(0, 100))
    axes.grid(axis="x", color="#dddddd", lw=0.6)
    axes.legend(frameon=False, loc="lower right")
    _save(figure, path)


def _figure(height: float = 4.8) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "rpt"}):  # the same study gives the same file
        figure.savefig(path, metadata={"Date": None})
