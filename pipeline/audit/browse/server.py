"""The pages: what is asked by a URL, answered from a `Library`. A URL holds all there is to know of a page."""

from __future__ import annotations

import io
import re
import secrets
from collections.abc import Callable, Collection, Mapping
from importlib.resources import files
from typing import Any
from urllib.parse import urlencode

import pyarrow.parquet as pq
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from pipeline.audit.browse.app_state import SPLITS, AppState
from pipeline.audit.browse.document import TOKENS_SHOWN
from pipeline.audit.browse.documents import ORDERS, PAGE, Filter
from pipeline.audit.browse.security import LOOPBACK, RequestGuard, may_write, posted
from pipeline.audit.browse.whatif import chart, manifest_lines, threshold_of, with_threshold
from pipeline.audit.invisible import escape_invisible
from pipeline.config.errors import UserError

ASSETS = {
    "base.css": "assets",
    "heatmap.css": "assets",
    "heatmap.js": "assets",
    "theme.js": "assets",
    "browse.css": "browse/static",
    "browse.js": "browse/static",
    "icon.svg": "browse/static",
}
"""Every file that is served, and the folder of this wing that it lies in: nothing else has a URL."""

MEDIA = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def create_app(library: AppState, hosts: Collection[str] = LOOPBACK) -> RequestGuard:
    """The live page over one library.

    Args:
        library: what is shown.
        hosts: the names that the server answers under.
    """
    pages = Pages(library)
    routes = [
        Route("/", pages.home),
        Route("/documents", pages.documents),
        Route("/documents/{doc_id}", pages.document),
        Route("/documents/{doc_id}/heat-map", pages.heat_map),
        Route("/what-if", pages.what_if),
        Route("/compare", pages.compare),
        Route("/compare/{doc_id}", pages.compare_document),
        Route("/flags", pages.flags),
        Route("/flags", pages.flag, methods=["POST"]),
        Route("/flags.csv", pages.flags_csv),
        Route("/flags.parquet", pages.flags_parquet),
        Route("/assets/{name}", asset),
    ]
    handlers: dict[Any, Callable[..., Any]] = {HTTPException: pages.refusal, UserError: pages.mistake}
    return RequestGuard(Starlette(routes=routes, exception_handlers=handlers), hosts)


def asset(request: Request) -> Response:
    """A style sheet or a script."""
    name = request.path_params["name"]
    if name not in ASSETS:
        raise HTTPException(404)
    content = files("pipeline.audit").joinpath(ASSETS[name], name).read_bytes()
    return Response(content, media_type=MEDIA[name.rpartition(".")[2]])


class Pages:
    """One method a page."""

    def __init__(self, library: AppState) -> None:
        self._library = library
        self._token = secrets.token_urlsafe(32)
        self._templates = Environment(
            loader=PackageLoader("pipeline.audit.browse"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {"visible": escape_invisible, "commas": "{:,}".format, "signed": signed}
        self._templates.globals |= {"library": library, "token": self._token, "url": url, "SPLITS": SPLITS}

    # --------------------------------------------------------------------------------------------- documents

    def home(self, request: Request) -> Response:
        """The list of documents is where one begins."""
        return RedirectResponse("/documents")

    def documents(self, request: Request) -> Response:
        """Documents that match a filter, a page of them."""
        asked, library = request.query_params, self._library
        wanted = Filter(
            text=asked.get("text", ""),
            split=asked.get("split", ""),
            source=asked.get("source", ""),
            meta=asked.get("meta", "").strip(),
            least=_number(asked, "least", 0, 100),
            most=_number(asked, "most", 100, 100),
            order=asked.get("order", "corpus"),
        )
        found = library.finder.find(wanted)
        pages = max(1, -(-len(found) // PAGE))
        page = min(_page_number(asked), pages)
        rows = [library.row(int(number)) for number in found[(page - 1) * PAGE : page * PAGE]]
        return self._page(
            "documents.html", request, wanted=wanted, rows=rows, found=len(found), page=page, pages=pages, orders=ORDERS
        )

    def document(self, request: Request) -> Response:
        """A document, and with `position` one of its tokens as the trainer meets it."""
        row, rule = self._asked(request)
        self._library.rule(rule, row["split"])
        site = self._site(request, row)
        return self._page("document.html", request, row=row, rule=rule, site=site, shown=TOKENS_SHOWN)

    def heat_map(self, request: Request) -> Response:
        """What the heat-map component shows, as JSON."""
        row, rule = self._asked(request)
        document = self._library.document(row["document"])
        verdict = self._library.verdict(document, rule)
        first = min(int(_number(request.query_params, "first", 0, 1e9)), max(len(document) - 1, 0))
        proxy = self._library.proxy_tokenizer if self._library.has_top else None
        return JSONResponse(document.heat_map(verdict, first, proxy))

    def _asked(self, request: Request) -> tuple[dict[str, Any], str]:
        """The row of the document that a URL names, and the rule it is to be seen under."""
        number = self._library.store.document_of.get(request.path_params["doc_id"])
        if number is None:
            raise HTTPException(404, "No document of this corpus has that id.")
        return self._library.row(number), request.query_params.get("rule") or self._library.current.name

    def _site(self, request: Request, row: Mapping[str, Any]) -> dict[str, Any] | None:
        position, tokens = request.query_params.get("position", ""), row["tokens"]
        if not position:
            return None
        if not _is_position(position, tokens):
            raise HTTPException(404, f"This document has {tokens:,} tokens: positions 0 to {tokens - 1:,}.")
        return self._library.site(self._library.document(row["document"]), int(position))

    # -------------------------------------------------------------------------------------- rules, compared

    def what_if(self, request: Request) -> Response:
        """What another rule would keep, next to what the current selection keeps."""
        asked, library = request.query_params, self._library
        split = _split(asked)
        current = library.current.where(split)
        where = " ".join(asked.get("where", current).split()) or current
        if "entropy" in asked:
            where = with_threshold(where, _number(asked, "entropy", 1, 100))
        problem, made = "", None
        try:
            made = library.compare(library.current.name, where, split)
        except UserError as error:
            problem = str(error)
        return self._page(
            "what_if.html", request, split=split, where=where, made=made, problem=problem,
            first=library.current.name, second=where, threshold=threshold_of(where),
            chart=chart(library.store, split, library.bands, threshold_of(where)),
            lines=manifest_lines(split, where), changed=library.changed(made, _page_number(asked)) if made else None,
        )  # fmt: skip

    def compare(self, request: Request) -> Response:
        """Two rules or selections side by side."""
        asked, library = request.query_params, self._library
        split = _split(asked)
        others = [name for name in library.selections if name != library.current.name]
        first = asked.get("a") or library.current.name
        second = asked.get("b") or (others[0] if others else library.current.where(split))
        problem, made = "", None
        try:
            made = library.compare(first, second, split)
        except UserError as error:
            problem = str(error)
        return self._page(
            "compare.html", request, split=split, first=first, second=second, made=made, problem=problem,
            changed=library.changed(made, _page_number(asked)) if made else None,
        )  # fmt: skip

    def compare_document(self, request: Request) -> Response:
        """One document under two rules."""
        row, _ = self._asked(request)
        first = request.query_params.get("a") or self._library.current.name
        second = request.query_params.get("b") or self._library.current.where(row["split"])
        for rule in (first, second):
            self._library.rule(rule, row["split"])
        return self._page("compare_document.html", request, row=row, first=first, second=second)

    # ------------------------------------------------------------------------------------------------- flags

    def flags(self, request: Request) -> Response:
        """All flags."""
        return self._page("flags.html", request, flags=list(self._library.flags.all().values())[::-1])

    async def flag(self, request: Request) -> Response:
        """Flag a site, or take its flag back: the one thing that is written."""
        form = await posted(request)
        if not may_write(request, self._token, form.get("token", "")):
            raise HTTPException(
                403, "This form is not from a page of this server, or the server was restarted. Reload."
            )
        doc_id, position = form.get("doc_id", ""), form.get("position", "")
        number = self._library.store.document_of.get(doc_id)
        if number is None or not _is_position(position, self._library.store.documents["tokens"][number]):
            raise HTTPException(404, "No such position in this corpus.")
        note = None if form.get("action") == "remove" else form.get("note", "").strip()
        self._library.flags.set(doc_id, int(position), note)
        back = "/flags" if form.get("back") == "/flags" else f"/documents/{doc_id}?position={position}"
        return RedirectResponse(back, 303)

    def flags_csv(self, request: Request) -> Response:
        """The flags as CSV, which spreadsheets can open: no cell is a formula."""
        return self._download(self._library.flags.csv(), "text/csv", "csv")

    def flags_parquet(self, request: Request) -> Response:
        """The flags as Parquet: what `select.exclude` of a manifest takes."""
        out = io.BytesIO()
        pq.write_table(self._library.flags.table(), out)
        return self._download(out.getvalue(), "application/vnd.apache.parquet", "parquet")

    def _download(self, content: bytes, media_type: str, suffix: str) -> Response:
        name = f"{self._library.manifest.name}-flags.{suffix}"
        return Response(
            content, media_type=media_type, headers={"Content-Disposition": f'attachment; filename="{name}"'}
        )

    # ------------------------------------------------------------------------------------------------ errors

    def refusal(self, request: Request, error: HTTPException) -> Response:
        """Not found, not allowed."""
        return self._page("error.html", request, error.status_code, code=error.status_code, detail=error.detail)

    def mistake(self, request: Request, error: UserError) -> Response:
        """A question that cannot be answered, and how to mend it."""
        return self._page("error.html", request, 400, code=400, detail=str(error))

    def _page(self, template: str, request: Request, status: int = 200, /, **values: Any) -> Response:
        html = self._templates.get_template(template).render(
            path=request.url.path, query=request.query_params, **values
        )
        return HTMLResponse(html, status)


def signed(number: int) -> str:
    """
    Example:
        >>> signed(1200), signed(-3), signed(0)
        ('+1,200', '−3', '0')
    """
    return f"{number:+,}".replace("-", "−") if number else "0"


def url(path: str, **parameters: Any) -> str:
    """A link; empty parameters are left out.

    Example:
        >>> url("/documents", text="a & b", split="", page=2)
        '/documents?text=a+%26+b&page=2'
    """
    given = {name: value for name, value in parameters.items() if value not in ("", None)}
    return f"{path}?{urlencode(given)}" if given else path


def _page_number(asked: QueryParams) -> int:
    return max(int(_number(asked, "page", 1, 1e9)), 1)


def _is_position(position: str, tokens: int) -> bool:
    return re.fullmatch(r"[0-9]{1,9}", position) is not None and int(position) < tokens


def _split(asked: QueryParams) -> str:
    split = asked.get("split", SPLITS[0])
    if split not in SPLITS:
        raise UserError("no such split", where=split, hint=f"one of {', '.join(SPLITS)}")
    return split


def _number(asked: QueryParams, name: str, default: float, most: float) -> float:
    """A parameter as a number in [0, most]; what is none counts as the default."""
    try:
        number = float(asked.get(name) or default)
    except ValueError:
        return default
    return min(max(number, 0), most) if number == number else default
