"""The requests for rollouts: a list by step, reward, outcome, band and text, and a site at two steps."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.audit.board.rollout_index import BAND_NAMES, OUTCOMES
from pipeline.audit.board.rollout_search import ORDERS, Query
from pipeline.audit.board.rollout_view import SAMPLES_SHOWN, entries, site_rollouts
from pipeline.audit.board.run import READ_SECONDS, Run

PAGE = 20
"""Rollouts per page."""


class RolloutPages:
    """Request handlers over the rollouts of some runs.

    Args:
        runs: By name, at least one.
        page: Renders a template for a request.
    """

    def __init__(self, runs: Mapping[str, Run], page: Callable[..., Response]) -> None:
        self._runs, self._page = runs, page

    def routes(self) -> list[Route]:
        """Return the routes of the pages."""
        return [Route("/run/rollouts", self.rollouts), Route("/run/site", self.site)]

    def rollouts(self, request: Request) -> Response:
        """Show a page of the rollouts that match a query."""
        run, parameters = self._run(request), request.query_params
        complete = run.rollouts.refresh(READ_SECONDS)
        query = query_of(parameters)
        found = run.finder.find(query)
        pages = max(1, -(-len(found.rows) // PAGE))
        number = min(max(integer(parameters, "page") or 1, 1), pages)
        rows = found.rows[(number - 1) * PAGE : number * PAGE].tolist()
        return self._page(
            "rollouts.html", request, run=run.name, offered=list(self._runs), criteria=query, orders=ORDERS,
            outcomes=OUTCOMES, bands=BAND_NAMES, entries=entries(run.rollouts, found.rollouts, rows),
            found=len(found.rows), all=len(found.rollouts), page=number, pages=pages,
            searched=(found.searched, found.files), indexed=run.rollouts.progress,
            unfinished=not complete or found.searched < found.files, unreadable=run.rollouts.unreadable,
        )  # fmt: skip

    def site(self, request: Request) -> Response:
        """Show the rollouts at one site at two steps, by default at the first and the last one that has some."""
        run, parameters = self._run(request), request.query_params
        complete = run.rollouts.refresh(READ_SECONDS)
        site_id = parameters.get("site", "")
        by_step = site_rollouts(run.rollouts, site_id)
        if not by_step:
            if not complete:
                raise HTTPException(404, "No rollout of this site is read yet. Reload the page in a moment.")
            raise HTTPException(404, "No rollout of this site is stored.")
        steps = list(by_step)
        first, last = (integer(parameters, name) for name in ("first", "last"))
        shown = [first if first in by_step else steps[0], last if last in by_step else steps[-1]]
        sides = {
            step: entries(run.rollouts, run.rollouts.rollouts(), by_step[step][:SAMPLES_SHOWN].tolist())
            for step in shown
        }
        return self._page(
            "run_site.html", request, run=run.name, site_id=site_id, steps=steps, shown=shown,
            sides=list(sides.values()), place=re.fullmatch("([0-9a-f]{32})-([0-9]+)", site_id),
        )  # fmt: skip

    def _run(self, request: Request) -> Run:
        """Return the run that a request names, or the first."""
        name = request.query_params.get("run") or next(iter(self._runs))
        if name not in self._runs:
            raise HTTPException(404, f"No run of this name was opened: {name[:100]!r}.")
        return self._runs[name]


def query_of(parameters: QueryParams) -> Query:
    """Return the query that the parameters of a request describe; what is no number counts as not given."""
    return Query(
        text=parameters.get("text", ""),
        step=integer(parameters, "step"),
        site=parameters.get("site", "").strip(),
        outcome=parameters.get("outcome", ""),
        band=parameters.get("band", ""),
        least=_number(parameters, "least"),
        most=_number(parameters, "most"),
        order=parameters.get("order", "newest"),
    )


def integer(parameters: QueryParams, name: str) -> int | None:
    """Return a parameter as a whole number; None if it is none."""
    text = parameters.get(name, "").strip()
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else None


def _number(parameters: QueryParams, name: str) -> float | None:
    try:
        number = float(parameters.get(name, ""))
    except ValueError:
        return None
    return number if number == number else None
