"""The pages of `rpt browse`: each URL describes a page completely and is answered from an `AppState`."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from pipeline.audit.board.handlers import RunPages
from pipeline.audit.browse.app_state import WAIT_SECONDS, AppState
from pipeline.audit.browse.compare import Comparison
from pipeline.audit.browse.document import TOKENS_SHOWN, changes
from pipeline.audit.browse.documents import ORDERS, PAGE
from pipeline.audit.browse.flag_pages import FlagPages
from pipeline.audit.browse.found import GAINED, LOST, TEMPLATE
from pipeline.audit.browse.position_pages import PositionPages
from pipeline.audit.browse.query import SPLITS, is_position, number_of, page_number, split_of
from pipeline.audit.browse.rendering import asset, environment, url
from pipeline.audit.browse.search import FACET, place_of, search
from pipeline.audit.browse.security import LOOPBACK, RequestGuard
from pipeline.audit.browse.token_pages import TokenPages
from pipeline.audit.browse.whatif import chart, manifest_lines, threshold_of, with_threshold
from pipeline.config.errors import UserError

VALUES_SHOWN = 8
"""Values of a facet that are seen at once; the others unfold."""


def create_app(state: AppState, hosts: Collection[str] = LOOPBACK) -> RequestGuard:
    """Return the web application.

    Args:
        state: The data that the pages show.
        hosts: Host names that the server accepts.
    """
    pages = Pages(state)
    routes = [
        Route("/", pages.home),
        Route("/documents", pages.documents),
        Route("/documents/{doc_id}", pages.document),
        Route("/documents/{doc_id}/heat-map", pages.heat_map),
        Route("/what-if", pages.what_if),
        Route("/compare", pages.compare),
        Route("/compare/selections", pages.selections),
        Route("/compare/{doc_id}", pages.compare_document),
        *pages.list_routes(),
        *pages.run_routes(),
        Route("/assets/{name}", asset),
    ]
    handlers: dict[Any, Callable[..., Any]] = {HTTPException: pages.http_error, UserError: pages.user_error}
    return RequestGuard(Starlette(routes=routes, exception_handlers=handlers), hosts)


class Pages:
    """Request handlers, one method per page."""

    def __init__(self, state: AppState) -> None:
        self._state = state
        self._token = secrets.token_urlsafe(32)
        self._templates = environment(state=state, token=self._token, SPLITS=SPLITS, TEMPLATE=TEMPLATE)
        self._templates.globals["document_url"] = self.document_url

    def run_routes(self) -> list[Route]:
        """Return the routes of the Run tab; none without a run."""
        return RunPages(self._state.runs, self._templates, "base.html").routes() if self._state.runs else []

    def list_routes(self) -> list[Route]:
        """Return the routes of the lists of positions, tokens and flags."""
        lists = (PositionPages(self._state, self._page), TokenPages(self._state, self._page))
        flags = FlagPages(self._state, self._token, self._page)
        return [route for pages in (*lists, flags) for route in pages.routes()]

    def document_url(self, doc_id: str, position: int, rule: str = "") -> str:
        """Return the URL of a position, on the part of its document that has it."""
        rule = "" if rule == self._state.current.name else rule
        return url(f"/documents/{doc_id}", position=position, rule=rule)

    # --------------------------------------------------------------------------------------------- documents

    def home(self, request: Request) -> Response:
        """Redirect to the list of documents."""
        return RedirectResponse("/documents")

    def documents(self, request: Request) -> Response:
        """Show a page of the documents that match a filter."""
        parameters, state = request.query_params, self._state
        if place := place_of(state, parameters.get("text", "").strip()):
            path = f"/documents/{place.doc_id}"
            return RedirectResponse(url(path, position=place.position), 303)
        criteria, sampled_only, found = search(state, parameters)
        pages = max(1, -(-len(found) // PAGE))
        page = min(page_number(parameters), pages)
        rows = [state.row(int(number)) for number in found[(page - 1) * PAGE : page * PAGE]]
        return self._page(
            "documents.html",
            request,
            criteria=criteria,
            rows=rows,
            found=len(found),
            sites=int(state.finder.kept_D[found].sum()),
            page=page,
            pages=pages,
            orders=ORDERS,
            sampled_only=sampled_only,
            levels=state.finder.levels(criteria, found, WAIT_SECONDS),
            FACET=FACET,
            VALUES_SHOWN=VALUES_SHOWN,
        )

    def document(self, request: Request) -> Response:
        """Show a document and, given `position`, one of its tokens as the trainer sees it."""
        row, rule = self._document_and_rule(request)
        self._state.rule(rule, row["split"])
        site = self._site(request, row, rule)
        first = _first_shown(request.query_params)
        return self._page("document.html", request, row=row, rule=rule, site=site, first=first, shown=TOKENS_SHOWN)

    def heat_map(self, request: Request) -> Response:
        """Return the input of the heat-map component as JSON."""
        row, rule = self._document_and_rule(request)
        document = self._state.document(row["document"])
        verdict = self._state.verdict(document, rule)
        against = request.query_params.get("against")
        first = min(_first_shown(request.query_params), max(len(document) - 1, 0))
        proxy = self._state.proxy_tokenizer if self._state.has_top else None
        shown = document.heat_map(verdict, first, proxy)
        if against:
            shown["change"] = changes(self._state.verdict(document, against), verdict)
        sampled = self._state.sampled().get(row["doc_id"], ())
        shown["rollouts"] = [position - first for position in sampled if 0 <= position - first < len(shown["tokens"])]
        return JSONResponse(shown)

    def _document_and_rule(self, request: Request) -> tuple[dict[str, Any], str]:
        """Return the document and the rule that a URL names."""
        number = self._state.store.document_of.get(request.path_params["doc_id"])
        if number is None:
            raise HTTPException(404, "No document of this corpus has this id.")
        return self._state.row(number), request.query_params.get("rule") or self._state.current.name

    def _site(self, request: Request, row: Mapping[str, Any], rule: str) -> dict[str, Any] | None:
        position, tokens = request.query_params.get("position", ""), row["tokens"]
        if not position:
            return None
        if not is_position(position, tokens):
            raise HTTPException(404, f"This document has {tokens:,} tokens: positions 0 to {tokens - 1:,}.")
        document = self._state.document(row["document"])
        change = self._state.change(document, int(position), rule)
        return self._state.site(document, int(position)) | {"change": change}

    # -------------------------------------------------------------------------------------- rules, compared

    def what_if(self, request: Request) -> Response:
        """Compare what another rule would keep with what the current selection keeps."""
        parameters, state = request.query_params, self._state
        split = split_of(parameters)
        current = state.current.where(split)
        where = " ".join(parameters.get("where", current).split()) or current
        if (threshold := number_of(parameters, "entropy", 100)) is not None:
            where = with_threshold(where, threshold)
        problem, made = "", None
        try:
            made = state.compare(state.current.name, where, split)
        except UserError as error:
            problem = str(error)
        first = state.current.name
        return self._page(
            "what_if.html", request, split=split, where=where, made=made, problem=problem, first=first, second=where,
            threshold=threshold_of(where), lines=manifest_lines(split, where),
            chart=chart(state.store, split, state.bands, made.kept_B if made else None),
            missing="" if problem else state.missing(where, split),
            **self._changes(made, first, where, split, parameters),
        )  # fmt: skip

    def compare(self, request: Request) -> Response:
        """Compare two rules or selections."""
        parameters, state = request.query_params, self._state
        split = split_of(parameters)
        others = [name for name in state.selections if name != state.current.name]
        first = parameters.get("a_rule", "").strip() or parameters.get("a") or state.current.name
        second = parameters.get("b_rule", "").strip() or parameters.get("b") or (others[0] if others else "")
        second = second or state.current.where(split)
        problem, made = "", None
        try:
            made = state.compare(first, second, split)
        except UserError as error:
            problem = str(error)
        return self._page(
            "compare.html", request, split=split, first=first, second=second, made=made, problem=problem,
            missing=[] if problem else list(filter(None, (state.missing(rule, split) for rule in (first, second)))),
            example=state.missing(with_threshold(state.current.where(split), 2), split),
            **self._changes(made, first, second, split, parameters),
        )  # fmt: skip

    def _changes(
        self, made: Comparison | None, first: str, second: str, split: str, parameters: QueryParams
    ) -> dict[str, Any]:
        """Return the changed documents, and the gained and lost tokens once the counts are exact."""
        state = self._state
        changed = state.changed(made, page_number(parameters)) if made else None
        found = {}
        if made and made.exact:
            found = {outcome: state.changed_tokens(first, second, split, outcome) for outcome in (GAINED, LOST)}
        return {"changed": changed, "changed_tokens": found}

    def compare_document(self, request: Request) -> Response:
        """Show one document under two rules."""
        row, _ = self._document_and_rule(request)
        first = request.query_params.get("a") or self._state.current.name
        second = request.query_params.get("b") or self._state.current.where(row["split"])
        for rule in (first, second):
            self._state.rule(rule, row["split"])
        return self._page(
            "compare_document.html",
            request,
            row=row,
            first=first,
            second=second,
            begin=_first_shown(request.query_params),
            shown=TOKENS_SHOWN,
        )

    def selections(self, request: Request) -> Response:
        """Return the names of the selections that exist now as JSON, with a sentence about each."""
        state = self._state
        found = [
            {"name": name, "words": f"{made.where('train')} ({made.record.counters['kept.train']:,} sites)"}
            for name, made in state.selections.items()
        ]
        return JSONResponse({"current": state.current.name, "selections": found})

    # ------------------------------------------------------------------------------------------------ errors

    def http_error(self, request: Request, error: HTTPException) -> Response:
        """Show an HTTP error such as 403 or 404."""
        return self._page("error.html", request, error.status_code, code=error.status_code, detail=error.detail)

    def user_error(self, request: Request, error: UserError) -> Response:
        """Show what is wrong with a request, and how to fix it."""
        return self._page("error.html", request, 400, code=400, detail=str(error))

    def _page(self, template: str, request: Request, status: int = 200, /, **values: Any) -> Response:
        html = self._templates.get_template(template).render(
            path=request.url.path, query=request.query_params, **values
        )
        return HTMLResponse(html, status)


def _first_shown(parameters: QueryParams) -> int:
    """Return the first token that a page of a document shows: `first`, or that of the part that has `position`."""
    first = number_of(parameters, "first", 1e9)
    return (
        int(number_of(parameters, "position", 1e9) or 0) // TOKENS_SHOWN * TOKENS_SHOWN if first is None else int(first)
    )
