"""The Run tab as one HTML file that opens offline, with the figures as they are now."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from pipeline.audit.board.handlers import run_view
from pipeline.audit.board.rollout_search import ORDERS
from pipeline.audit.board.rollout_view import of_step
from pipeline.audit.board.run import Run
from pipeline.audit.browse.rendering import ASSETS, environment
from pipeline.audit.report import content_policy, embedded

STYLES = ("base.css", "browse.css", "board.css")
SCRIPTS = ("theme.js", "charts.js", "run.js")
EXPORTED_ORDERS = ("best", "worst", "longest", "shortest")


def offline_page(runs: Sequence[Run]) -> str:
    """Return the page of some runs as HTML that contains its styles, script and data, and loads nothing.

    The rollouts are those of the newest stored step of the first run, ten in each order, as without a server
    they cannot be sorted.
    """
    for run in runs:
        while run.refresh():
            pass
    style, script = _joined(STYLES), _joined(SCRIPTS)
    view = run_view(runs, "best")
    first = runs[0]
    return (
        environment()
        .get_template("run_export.html")
        .render(
            **view,
            base="export_base.html",
            board_title=", ".join(run.name for run in runs),
            offered=[],
            source="",
            style=style,
            script=script,
            policy=content_policy(style, script),
            payload=embedded({"charts": view["charts"]}),
            lists=[(ORDERS[order], of_step(first.rollouts, first.finder, order)) for order in EXPORTED_ORDERS],
        )
    )


def _joined(names: Sequence[str]) -> str:
    folder = files("pipeline.audit")
    return "\n".join(folder.joinpath(ASSETS[name], name).read_text(encoding="utf-8") for name in names)
