"""The tokens that are selected most often, and those that the proxy finds hardest, with links to their positions."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.audit.browse.app_state import AppState
from pipeline.audit.browse.found import Narrowed
from pipeline.audit.browse.query import split_of
from pipeline.audit.distributions import RARE, TOKENS_SHOWN

ALL = "true"
"""The rule that keeps all positions."""


class TokenPages:
    """Request handler of the page of tokens.

    Args:
        state: The data that the page shows.
        page: Renders a template: `page(template, request, **values)`.
    """

    def __init__(self, state: AppState, page: Callable[..., Response]) -> None:
        self._state, self._page = state, page

    def routes(self) -> list[Route]:
        """Return the route of the page."""
        return [Route("/tokens", self.tokens)]

    def tokens(self, request: Request) -> Response:
        """Show the tokens that the current selection has most often, and those of highest mean loss."""
        state, split = self._state, split_of(request.query_params)
        selected, everything = (state.positions(ALL, rule, Narrowed(split)) for rule in (state.current.name, ALL))
        by_token = everything.by_token()
        of_sites = selected.by_token().rename({"positions": "sites"}).select("token", "sites")
        most = (
            of_sites.join(by_token, on="token", how="left", maintain_order="left")
            if everything.complete
            else (selected.by_token().with_columns(sites=pl.col("positions")))
        )
        hardest = by_token.filter(pl.col("positions") >= RARE).sort("nll", "token", descending=[True, False])
        hardest = hardest.join(of_sites, on="token", how="left", maintain_order="left").with_columns(
            pl.col("sites").fill_null(0)
        )
        return self._page(
            "tokens.html", request, split=split, most=most.head(TOKENS_SHOWN).to_dicts(), rare=RARE, all=ALL,
            hardest=hardest.head(TOKENS_SHOWN).to_dicts(), complete=selected.complete and everything.complete,
        )  # fmt: skip
