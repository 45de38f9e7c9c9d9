"""Templates and static files of the pages of `rpt browse` and `rpt board`."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any
from urllib.parse import urlencode

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from pipeline.core.invisible import escape_invisible
from pipeline.core.progress import counted

ASSETS = {
    "base.css": "assets",
    "heatmap.css": "assets",
    "heatmap.js": "assets",
    "minimap.js": "assets",
    "characters.js": "assets",
    "theme.js": "assets",
    "browse.css": "browse/static",
    "browse.js": "browse/static",
    "icon.svg": "browse/static",
    "board.css": "board/static",
    "charts.js": "board/static",
    "run.js": "board/static",
}
"""Every static file that is served, and its folder in `pipeline/audit`; no other file has a URL."""

MEDIA = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def environment(**values: Any) -> Environment:
    """Return the templates of both kinds of pages, with `values` as variables that all of them see."""
    made = Environment(
        loader=ChoiceLoader([PackageLoader("pipeline.audit.browse"), PackageLoader("pipeline.audit.board")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"visible": escape_invisible, "commas": "{:,}".format, "signed": signed, "message": message}
    made.globals |= {"url": url, "counted": counted, **values}
    return made


def asset(request: Request) -> Response:
    """Return a static file."""
    name = request.path_params["name"]
    if name not in ASSETS:
        raise HTTPException(404)
    content = files("pipeline.audit").joinpath(ASSETS[name], name).read_bytes()
    return Response(content, media_type=MEDIA[name.rpartition(".")[2]])


def message(text: str) -> Markup:
    """Return a message as HTML: what stands between backticks is code.

    Example:
        >>> message("`a < b` is missing")
        Markup('<code>a &lt; b</code> is missing')
    """
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(escape_invisible(text)))))


def signed(number: int) -> str:
    """Format a number with its sign and thousands separators.

    Example:
        >>> signed(1200), signed(-3), signed(0)
        ('+1,200', '−3', '0')
    """
    return f"{number:+,}".replace("-", "−") if number else "0"


def url(path: str, /, **parameters: Any) -> str:
    """Return a URL with query parameters; empty ones are left out, and a list gives its name to each of its values.

    Example:
        >>> url("/documents", text="a & b", split="", page=2)
        '/documents?text=a+%26+b&page=2'
    """
    given = {name: value for name, value in parameters.items() if value not in ("", None, [])}
    return f"{path}?{urlencode(given, doseq=True)}" if given else path
