"""The flags of `rpt browse`: list, set and remove them one by one or in bulk, and take them to a manifest."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection

import pyarrow.parquet as pq
import yaml
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from pipeline.audit.browse.app_state import AppState
from pipeline.audit.browse.position_pages import narrowed_by
from pipeline.audit.browse.query import is_position, page_number
from pipeline.audit.browse.search import search
from pipeline.audit.browse.security import may_write, read_form
from pipeline.config.errors import UserError

PAGE = 100
"""Flags per page."""

MOST = 100_000
"""Maximum number of sites that one request flags."""


class FlagPages:
    """Request handlers of flags, the only ones that write.

    Args:
        state: The data that the pages show.
        token: Secret of the forms of this server.
        page: Renders a template: `page(template, request, **values)`.
    """

    def __init__(self, state: AppState, token: str, page: Callable[..., Response]) -> None:
        self._state, self._token, self._page = state, token, page

    def routes(self) -> list[Route]:
        """Return the routes of the pages."""
        return [
            Route("/flags", self.flags),
            Route("/flags", self.flag, methods=["POST"]),
            Route("/flags/all", self.flag_all, methods=["POST"]),
            Route("/flags.csv", self.flags_csv),
            Route("/flags.parquet", self.flags_parquet),
        ]

    def flags(self, request: Request) -> Response:
        """List the flags, newest first, with the line that takes them to a manifest."""
        flags = list(self._state.flags.all().values())[::-1]
        pages = max(1, -(-len(flags) // PAGE))
        page = min(page_number(request.query_params), pages)
        lines = yaml.safe_dump({"select": {"exclude": str(self._state.flags.path)}}, allow_unicode=True, width=1000)
        shown = flags[(page - 1) * PAGE : page * PAGE]
        return self._page("flags.html", request, flags=shown, count=len(flags), page=page, pages=pages, lines=lines)

    async def flag(self, request: Request) -> Response:
        """Flag a site or remove its flag."""
        form = await self._form(request)
        doc_id, position = form.get("doc_id", ""), form.get("position", "")
        number = self._state.store.document_of.get(doc_id)
        if number is None or not is_position(position, self._state.store.documents["tokens"][number]):
            raise HTTPException(404, "No such position in this corpus.")
        self._state.flags.set(doc_id, int(position), _note(form))
        back = "/flags" if form.get("back") == "/flags" else f"/documents/{doc_id}?position={position}"
        return RedirectResponse(back, 303)

    async def flag_all(self, request: Request) -> Response:
        """Flag all positions of a list, all sites of a document or of the documents that a search finds."""
        form = await self._form(request)
        kind, query = form.get("of", ""), QueryParams(form.get("query", ""))
        sites = await run_in_threadpool(self._sites, kind, query)
        if len(sites) > MOST:
            raise UserError(
                "too many sites to flag one by one", where=f"{len(sites):,}", hint="exclude them in `select.where`"
            )
        await run_in_threadpool(self._state.flags.set_all, sites, _note(form))
        return RedirectResponse("/flags", 303)

    def _sites(self, kind: str, query: QueryParams) -> Collection[tuple[str, int]]:
        state = self._state
        if kind == "positions":
            first, second = (query.get(name) or state.current.name for name in ("a", "b"))
            found = state.positions(first, second, narrowed_by(query))
            if not found.complete:
                raise UserError("only a part of these positions was read", hint="narrow the list, then flag it")
            doc_ids = state.store.documents["doc_id"].gather(found.frame["document"])
            return list(zip(doc_ids, found.frame["position"], strict=True))
        if kind == "search":
            doc_ids = state.store.documents["doc_id"].gather(search(state, query).found)
            return state.sites_of(doc_ids.to_list())
        if kind == "document" and query.get("doc_id", "") in state.store.document_of:
            return state.sites_of([query["doc_id"]])
        raise HTTPException(404, "There is no such list of sites.")

    async def _form(self, request: Request) -> dict[str, str]:
        form = await read_form(request)
        if not may_write(request, self._token, form.get("token", "")):
            raise HTTPException(
                403, "This form is not from a page of this server, or the server was restarted. Reload."
            )
        return form

    def flags_csv(self, request: Request) -> Response:
        """Download the flags as CSV for spreadsheets, without formulas."""
        return self._download(self._state.flags.csv(), "text/csv", "csv")

    def flags_parquet(self, request: Request) -> Response:
        """Download the flags as Parquet."""
        out = io.BytesIO()
        pq.write_table(self._state.flags.table(), out)
        return self._download(out.getvalue(), "application/vnd.apache.parquet", "parquet")

    def _download(self, content: bytes, media_type: str, suffix: str) -> Response:
        name = f"{self._state.manifest.name}-flags.{suffix}"
        return Response(
            content, media_type=media_type, headers={"Content-Disposition": f'attachment; filename="{name}"'}
        )


def _note(form: dict[str, str]) -> str | None:
    """Return the note of a form; None if the flags are to be removed."""
    return None if form.get("action") == "remove" else form.get("note", "").strip()
