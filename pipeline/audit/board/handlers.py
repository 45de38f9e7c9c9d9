"""The requests of the Run tab, which `rpt browse` and `rpt board` answer alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from pipeline.audit.board.payload import payload
from pipeline.audit.board.rollout_handlers import RolloutPages, integer
from pipeline.audit.board.rollout_search import ORDERS
from pipeline.audit.board.rollout_view import of_step
from pipeline.audit.board.run import Run
from pipeline.selection.sites import BANDS


class RunPages:
    """Request handlers over some runs. They read files of these runs and write nothing.

    Args:
        runs: At least one.
        templates: Of both kinds of pages (`rendering.environment`).
        base: Template around the page: the header and footer of `rpt browse`, or of `rpt board`.
    """

    def __init__(self, runs: Sequence[Run], templates: Environment, base: str) -> None:
        self._runs = {run.name: run for run in runs}
        self._templates, self._base = templates, base

    def routes(self) -> list[Route]:
        """Return the routes of the pages."""
        of_rollouts = RolloutPages(self._runs, self._page).routes()
        return [Route("/run", self.run), Route("/run/data", self.data), *of_rollouts]

    def run(self, request: Request) -> Response:
        """Show the charts of one or several runs."""
        runs = self._chosen(request)
        source = f"/run/data?{urlencode([('run', run.name) for run in runs])}"
        order, step = request.query_params.get("order", "best"), integer(request.query_params, "step")
        view = run_view(runs, order, step)
        return self._page("run.html", request, **view, offered=list(self._runs), source=source)

    def data(self, request: Request) -> Response:
        """Return what the page draws as JSON, without the charts if they are those of version `since`."""
        return JSONResponse(payload(self._chosen(request), request.query_params.get("since", "")))

    def _chosen(self, request: Request) -> list[Run]:
        """Return the runs that a request names, in the order in which they were opened; all if it names none."""
        names = request.query_params.getlist("run")
        if unknown := [name for name in names if name not in self._runs]:
            raise HTTPException(404, f"No run of this name was opened: {unknown[0][:100]!r}.")
        return [run for name, run in self._runs.items() if not names or name in names]

    def _page(self, template: str, request: Request, **values: Any) -> Response:
        html = self._templates.get_template(template).render(
            path=request.url.path, query=request.query_params, base=self._base, **values
        )
        return HTMLResponse(html)


def run_view(runs: Sequence[Run], order: str, step: int | None = None) -> dict[str, Any]:
    """Return the values that the template of the Run tab needs of some runs, read up to their present end.

    Args:
        runs: At least one; the rollouts are those of the first.
        order: Of the rollouts (`rollout_search.ORDERS`).
        step: Whose rollouts are shown; by default the newest that has some.
    """
    shown = payload(runs)
    summaries = shown["runs"]
    return {
        "runs": summaries,
        "charts": shown["charts"],
        "chosen": [run.name for run in runs],
        "bands": [band for band in ("all", *BANDS) if any(band in summary["accuracy"] for summary in summaries)],
        "direct": runs[0].direct,
        "order": order,
        "orders": {name: title for name, title in ORDERS.items() if name not in ("newest", "oldest")},
        "asked_step": step,
        "indexed": runs[0].rollouts.progress,
        "of_step": of_step(runs[0].rollouts, runs[0].finder, order, step),
    }
