"""Picture of a gate: accuracy of the readings by band, and calibration, as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.evaluation.plots import COLOURS, save_svg

READINGS = ("direct", "reasoning", "hybrid", "oracle")


def draw_gate(by_band: Mapping[str, Any], calibration: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the readings of a set of sites with their intervals, and how often thinking paid against what was expected.

    Args:
        by_band: Figures of `summarize_hybrid`.
        calibration: Bins of `gate.calibration`.
        path: The SVG file.
        title: What the sites are.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    bands = {name: band for name, band in by_band.items() if band is not None}
    for shift, name, colour in zip((-0.27, -0.09, 0.09, 0.27), READINGS, (*COLOURS[:3], "#888888"), strict=True):
        value = [100 * band[name]["value"] for band in bands.values()]
        below = [v - 100 * band[name]["low"] for v, band in zip(value, bands.values(), strict=True)]
        above = [100 * band[name]["high"] - v for v, band in zip(value, bands.values(), strict=True)]
        places = [n + shift for n in range(len(bands))]
        left.bar(places, value, 0.17, yerr=[below, above], color=colour, label=name, error_kw={"lw": 1})
    labels = [f"{name}\nthinks at {100 * band['thinks']['value']:.0f} %" for name, band in bands.items()]
    left.set_xticks(range(len(bands)), labels)
    left.set(ylabel="accuracy, % (95 % intervals)")
    left.set_title(title, loc="left", fontsize=11)
    left.legend(frameon=False, ncols=4, fontsize=9)
    left.set_ylim(0, 1.25 * left.get_ylim()[1])
    right.plot([0, 100], [0, 100], color="#bbbbbb", lw=1)
    expected, observed = ([100 * each[name] for each in calibration] for name in ("expected", "observed"))
    right.plot(expected, observed, "o-", color=COLOURS[0], ms=4, lw=1)
    right.set(xlabel="expected to pay, %", ylabel="paid, %", xlim=(0, 100), ylim=(0, 100))
    right.set_title("where one answer is right", loc="left", fontsize=11)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    save_svg(figure, path)
