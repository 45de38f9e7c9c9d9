"""The HTML report of an evaluation: one offline file in the look of the audit, made from the JSON report alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from pipeline.audit.evaluation.charts import axis_end, dots, forecasts, progress
from pipeline.audit.report import render
from pipeline.evaluation.headline import headline
from pipeline.evaluation.plots import Point
from pipeline.evaluation.report import (
    about,
    accuracy_table,
    difference_table,
    forecast_table,
    hybrid_table,
    in_words,
    objections_of,
    other_tables,
    sample_table,
    sentences,
    title_of,
)

STYLE = "evaluation.css"


def evaluation_page(report: Mapping[str, Any], series: Mapping[str, Sequence[Point]]) -> str:
    """Return the report as one HTML file that loads nothing and may run no script but its own.

    Args:
        report: The JSON report.
        series: Accuracy by reasoning during training, by band; empty if it was not measured.
    """
    summaries, foretold = list(report["sets"].values()), report.get("foretold")
    before = summaries[0]["readings"][f"direct {report['policies'][0]}"]["accuracy"]
    highest = axis_end([point.high for points in series.values() for point in points])
    return render(
        "evaluation.html.j2",
        extra_styles=(STYLE,),
        report=report,
        headline=headline(report),
        about=list(about(report)),
        sets=[_set(summary) for summary in summaries],
        curves={
            band: progress(points, before[band]["value"] if before.get(band) else None, max(highest, _direct(before)))
            for band, points in series.items()
        },
        foretold={"chart": forecasts(foretold["bins"]), "table": forecast_table(foretold)} if foretold else None,
        patterns=_patterns(report.get("patterns")),
        others=list(other_tables(report)),
        objections=objections_of(report["scaling"]),
        examples=report.get("examples", []),
    )


def _set(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the charts, tables and sentences of a set of sites."""
    found = [
        estimate for reading in summary["readings"].values() for estimate in reading["accuracy"].values() if estimate
    ]
    highest, blue = axis_end([estimate["high"] for estimate in found]), _thoughtful(summary["readings"])
    return {
        "title": title_of(summary),
        "sites": summary["sites"],
        "bands": {
            name: {
                "above": band["above"],
                "sites": band["sites"],
                "chart": dots({n: r["accuracy"][name] for n, r in summary["readings"].items()}, blue, highest),
            }
            for name, band in summary["bands"].items()
        },
        "tables": [
            accuracy_table(summary),
            difference_table(summary),
            *([hybrid_table(summary)] if summary["hybrid"] else []),
            *([sample_table(summary)] if summary["samples"] else []),
        ],
        "sentences": list(sentences(summary)),
    }


def _thoughtful(readings: Mapping[str, Any]) -> list[str]:
    return [name for name in readings if name.startswith("reasoning")]


def _patterns(found: Mapping[str, Any] | None) -> Markup | None:
    """Return the chart of the keywords in two policies' responses; None if there are none."""
    if not found or not in_words(found["groups"]):
        return None
    rows = {
        f"{group} {found[when]}": own[when] for group, own in found["groups"].items() for when in ("before", "after")
    }
    blue = [f"{group} {found['after']}" for group in found["groups"]]
    return dots(rows, blue, axis_end([estimate["high"] for estimate in rows.values()]))


def _direct(accuracy: Mapping[str, Any]) -> float:
    """Return the end of an axis on which direct accuracy is seen."""
    return axis_end([estimate["value"] for estimate in accuracy.values() if estimate])
