"""The lists of positions of `rpt browse`: what a rule keeps, gains or loses, by token and one line for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.audit.browse.app_state import AppState
from pipeline.audit.browse.found import KEPT, OUTCOMES, Found, Narrowed
from pipeline.audit.browse.query import number_of, page_number, split_of
from pipeline.selection.sites import BANDS

LINES = 50
"""Positions per page."""

TOKENS = 24
"""Most frequent tokens above the lines."""

CONTEXT = 60
"""Bytes of text on each side of a token."""

ORDERS = {"hardest": "most uncertain first", "loss": "highest loss first", "corpus": "in corpus order"}

_SORTED: dict[str, dict[str, Any]] = {
    "hardest": {"by": ["entropy", "document", "position"], "descending": [True, False, False]},
    "loss": {"by": ["nll", "document", "position"], "descending": [True, False, False]},
    "corpus": {"by": ["document", "position"]},
}


class PositionPages:
    """Request handlers of the lists of positions.

    Args:
        state: The data that the pages show.
        page: Renders a template: `page(template, request, **values)`.
    """

    def __init__(self, state: AppState, page: Callable[..., Response]) -> None:
        self._state, self._page = state, page

    def routes(self) -> list[Route]:
        """Return the routes of the pages."""
        return [Route("/positions", self.positions), Route("/damage", self.damage)]

    def damage(self, request: Request) -> Response:
        """List control characters and U+FFFD with the sites that have them."""
        return self._page("damage.html", request, damage=self._state.damage)

    def positions(self, request: Request) -> Response:
        """List the positions that a rule keeps, or that differ from another rule, narrowed by what they are."""
        parameters, state = request.query_params, self._state
        narrowed = narrowed_by(parameters)
        first, second = (parameters.get(name) or state.current.name for name in ("a", "b"))
        found = state.positions(first, second, narrowed)
        order = parameters.get("order", "hardest")
        order = order if order in ORDERS else "hardest"
        pages = max(1, -(-found.frame.height // LINES))
        page = min(page_number(parameters), pages)
        return self._page(
            "positions.html", request, narrowed=narrowed, first=first, second=second, found=found, order=order,
            orders=ORDERS, outcomes=OUTCOMES, page=page, pages=pages, lines=self._lines(found, order, page),
            tokens=found.by_token().head(TOKENS).to_dicts(),
        )  # fmt: skip

    def _lines(self, found: Found, order: str, page: int) -> list[dict[str, Any]]:
        """Return one page of positions with the text around them."""
        store = self._state.store
        shown = found.frame.sort(**_SORTED[order])[(page - 1) * LINES : page * LINES]
        lines = []
        for row in shown.iter_rows(named=True):
            before, after = store.around(row["document"], row["byte_offset"], row["byte_end"], CONTEXT)
            lines.append(row | {"before": before, "after": after, "doc_id": store.documents["doc_id"][row["document"]]})
        return lines


def narrowed_by(parameters: QueryParams) -> Narrowed:
    """Return the list of positions that query parameters describe."""
    outcome, band = parameters.get("outcome", ""), parameters.get("band", "")
    return Narrowed(
        split=split_of(parameters),
        outcome=outcome if outcome in OUTCOMES else KEPT,
        band=band if band in ("none", *BANDS) else "",
        low=number_of(parameters, "low", 1e6),
        high=number_of(parameters, "high", 1e6),
        **{name: parameters.get(name, "") for name in ("field", "token_class", "token", "doc_id", "text")},
    )
