"""What the script of the Run tab draws: the charts of one or several runs, as JSON values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.audit.board.panels import PANELS, Panel
from pipeline.audit.board.run import Run


def payload(runs: Sequence[Run], since: str = "") -> dict[str, Any]:
    """Return summaries and charts of runs.

    Args:
        runs: Whose metrics are read up to their present end.
        since: `version` of the last answer; if nothing changed, the charts are left out.

    Returns:
        `version`; `more`, true if the metrics were not read to their end; `runs`, a summary each; `charts` in the order
        of the page, each with `key`, `title`, `unit`, `note`, `stacked` and `series`. The series of a single run are
        the curves of a chart. Several runs are drawn over each other, so each curve has a chart of its own, in which
        the series are the runs.
    """
    more = sum(run.refresh() for run in runs) > 0
    version = "|".join(run.version for run in runs)
    answer: dict[str, Any] = {"version": version, "more": more, "runs": [run.summary() for run in runs]}
    if version != since:
        answer["charts"] = charts(runs)
    return answer


def charts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the charts of what has been read of the runs, as `payload` describes them."""
    drawn = [run.charts() for run in runs]
    if len(runs) == 1:
        return [_chart(panel) | {"series": drawn[0][panel.key]} for panel in PANELS if panel.key in drawn[0]]
    return [chart for panel in PANELS for chart in _overlaid(panel, [run.name for run in runs], drawn)]


def _chart(panel: Panel) -> dict[str, Any]:
    return {name: getattr(panel, name) for name in ("key", "title", "unit", "note", "stacked")}


def _overlaid(
    panel: Panel, names: Sequence[str], drawn: Sequence[Mapping[str, list[dict[str, Any]]]]
) -> Iterator[dict[str, Any]]:
    """Yield a chart for each curve of a panel, with a series for each run that has it."""
    for slot, curve in enumerate(panel.curves):
        series = [
            own | {"label": name, "slot": number}
            for number, (name, found) in enumerate(zip(names, drawn, strict=True))
            for own in found.get(panel.key, [])
            if own["slot"] == slot
        ]
        if series:
            is_all = len(panel.curves) == 1 or curve.label == panel.title.lower()
            title = panel.title if is_all else f"{panel.title}: {curve.label}"
            chart = {"key": f"{panel.key}-{slot}", "title": title, "stacked": False, "series": series}
            yield _chart(panel) | chart
