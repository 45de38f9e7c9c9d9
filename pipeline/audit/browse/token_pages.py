"""The tokens that are selected most often, and those that the proxy finds hardest, with links to their positions."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.audit.browse.app_state import AppState
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
        selected, everything = (state.tokens(rule, split) for rule in (state.current.name, ALL))
        # Sites of other shards than those of the positions are left out, so that both columns are of the same text.
        shard_D = state.store.documents["shard"]
        read = shard_D.gather(everything.frame["document"]).unique()
        sites = selected.frame.filter(shard_D.gather(selected.frame["document"]).is_in(read.implode()))
        of_sites = sites.group_by("token").agg(pl.len().alias("sites"))
        by_token = everything.by_token().join(of_sites, on="token", how="left", maintain_order="left")
        by_token = by_token.with_columns(pl.col("sites").fill_null(0))
        most = by_token.filter(pl.col("sites") > 0).sort("sites", "token", descending=[True, False])
        hardest = by_token.filter(pl.col("positions") >= RARE).sort("nll", "token", descending=[True, False])
        return self._page(
            "tokens.html", request, split=split, most=most.head(TOKENS_SHOWN).to_dicts(), rare=RARE, all=ALL,
            hardest=hardest.head(TOKENS_SHOWN).to_dicts(), complete=selected.complete and everything.complete,
        )  # fmt: skip
