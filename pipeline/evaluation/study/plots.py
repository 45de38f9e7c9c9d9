"""Plot of the accuracy of every arm of a study, as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.evaluation.plots import COLOURS, new_figure, save_svg


def draw_arms(study: Mapping[str, Any], path: Path) -> None:
    """Draw the accuracy of every reading of every arm, with intervals, by band."""
    figure, axes = new_figure(height=0.34 * len(study["arms"]) * 2 + 1.4)
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
    save_svg(figure, path)
