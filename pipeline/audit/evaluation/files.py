"""The report of an evaluation in a folder, as a page, Markdown and pictures, and on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.audit.evaluation.page import evaluation_page
from pipeline.core.files import replace_text
from pipeline.core.progress import results, wrapped
from pipeline.evaluation.plots import Point, draw_progress, draw_scaling, read_progress
from pipeline.evaluation.report import Table, blocks, brief, markdown

PAGE = "report.html"


def write_report(report: Mapping[str, Any], metrics: Path | None, out: Path) -> None:
    """Write the pictures, the Markdown page, which shows them, and the HTML report."""
    write_page(report, metrics, out)
    pictures = _draw(report, metrics, out)
    if report["scaling"]:
        draw_scaling(report["scaling"], out / "scaling.svg")
        pictures.append(out / "scaling.svg")
    shown = tuple(path.name for path in pictures if path.name != "accuracy.svg")
    (out / "evaluation.md").write_text(markdown(report, shown), encoding="utf-8")


def write_page(report: Mapping[str, Any], metrics: Path | None, out: Path) -> None:
    """Write the HTML report, with the accuracy during training if the run measured it."""
    replace_text(out / PAGE, evaluation_page(report, _progress(report, metrics)))


def _progress(report: Mapping[str, Any], metrics: Path | None) -> dict[str, list[Point]]:
    """Return accuracy by reasoning during training, by band; empty if the run did not measure it."""
    bands = list(next(iter(report["sets"].values()))["bands"])
    return read_progress(metrics, bands) if metrics and metrics.exists() else {}


def _draw(report: Mapping[str, Any], metrics: Path | None, out: Path) -> list[Path]:
    """Draw accuracy over training steps, if the run measured it, and return the paths."""
    if not (series := _progress(report, metrics)):
        return []
    before = next(iter(report["sets"].values()))["readings"][f"direct {report['policies'][0]}"]["accuracy"]
    direct = {band: estimate["value"] for band, estimate in before.items() if estimate}
    return draw_progress(series, direct, out, f"{report['recipe']}: reasoning on held-out documents")


def print_report(report: Mapping[str, Any], out: Path, *, full: bool) -> None:
    """Print the whole report, or what a first look needs and where the rest is."""
    console = results()
    for block in blocks(report) if full else brief(report):
        if isinstance(block, Table):
            console.print(block.terminal())
        else:
            console.print("\n".join(wrapped(line, console.width) for line in block), soft_wrap=True)
        console.print()
    rest = "" if full else "All positions, differences, outcomes and responses, or --full: "
    console.print(wrapped(f"{rest}{out / PAGE}", console.width), soft_wrap=True)
