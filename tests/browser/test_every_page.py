"""Every page of the servers, on a phone and on a wide screen: it fits, says why it is empty, and logs nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect
from starlette.routing import Match, Route

from pipeline.audit.board.app import create_board
from pipeline.audit.board.run import open_runs
from pipeline.audit.browse.server import create_app
from pipeline.config.manifest import Manifest
from stages.select import select
from tests.browser.board_run import HOSTILE_NAME, metrics_row, rollout_row, write_rollouts, write_run
from tests.browser.conftest import Live, serving
from tests.browser.corpus import Built, build
from tests.browser.test_board_http import Board, serving_board
from tests.stages.published import InProcess

NO_PAGES = {
    "/",
    "/assets/{name}",
    "/compare/selections",
    "/documents/{doc_id}/heat-map",
    "/flags.csv",
    "/flags.parquet",
    "/run/data",
}
"""Routes that redirect, or give files and JSON."""

LONG = "x" * 900
ODD = "שלום \u202eevil\u202c مرحبا 👩\u200d👩\u200d👧 e\u0301\u0301\u0301"
"""Right to left, an emoji of several characters, combining marks."""

NARROW, WIDE = 390, 1280


def pages_of(live: Live) -> list[str]:
    """The pages of `rpt browse`, with input of every odd shape; errors come after them."""
    doc, other, *_ = live.built.hostile_ids
    odd, long = quote_plus(f"token = '{ODD}'"), quote_plus(f"entropy > 1 AND field IN ('{LONG}')")
    return [
        "/documents",
        "/documents?text=nothing+has+this",
        f"/documents?text={quote_plus(ODD)}&meta=note%3D{LONG}",
        f"/documents/{other}?position=9",
        f"/documents/{doc}?rule={long}",
        "/what-if?where=entropy+%3E+99",
        "/what-if?split=validation",
        f"/what-if?where={odd}",
        f"/what-if?where={long}",
        "/compare",
        f"/compare?a_rule={odd}&b_rule={long}",
        f"/compare/{other}?a={long}&b=entropy+%3E+0.2",
        f"/compare/{other}?a=entropy+%3E+1&b=entropy+%3E+1",
        "/positions",
        f"/positions?a=true&b=true&text={LONG}",
        f"/positions?a=true&b=true&text={quote_plus(ODD)}",
        "/positions?a=true&b=true&text=AAAAAAAA",
        "/tokens",
        "/tokens?split=validation",
        "/damage",
        "/flags",
        "/run",
        "/run/rollouts",
        f"/run/rollouts?text={LONG}&site={LONG}",
        f"/run/site?site={live.built.site_with_rollouts}",
    ]


def errors_of(live: Live) -> list[str]:
    doc = live.built.hostile_ids[0]
    return [
        f"/nowhere/{LONG}",
        f"/documents/{'0' * 32}",
        f"/documents/{doc}?position=99999",
        f"/documents/{doc}?rule={quote_plus(LONG)}",
        f"/documents/{doc}?rule={quote_plus(ODD)}",
        f"/compare/{doc}?b=entropy+%3E",
        f"/run?run={LONG}",
        f"/run/site?site={quote_plus(ODD)}",
    ]


def unwalked(app: Any, urls: Sequence[str]) -> set[str]:
    """Paths of the routes that no URL leads to."""
    routes = [route for route in app.app.routes if isinstance(route, Route) and "GET" in (route.methods or ())]
    paths = [{"type": "http", "method": "GET", "path": urlsplit(url).path, "headers": []} for url in urls]
    return {route.path for route in routes if not any(route.matches(path)[0] is Match.FULL for path in paths)}


@pytest.fixture(scope="module")
def flagged(live: Live) -> Iterator[Live]:
    """The corpus with flags whose notes are odd."""
    notes = [ODD, LONG, ""]
    for doc_id, note in zip(live.built.hostile_ids, notes, strict=False):
        live.library.flags.set(doc_id, 5, note)
    yield live
    for doc_id, _ in zip(live.built.hostile_ids, notes, strict=False):
        live.library.flags.set(doc_id, 5, None)


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A corpus whose selection holds out nothing, and a run that has measured nothing."""
    built = build(tmp_path_factory.mktemp("nothing"))
    plain = built.manifest.model_dump(exclude_unset=True)
    rules = {"where": "entropy > 1.0", "validation_where": "entropy > 99"}
    manifest = Manifest.model_validate(plain | {"select": rules})
    current = select(manifest, built.documents, built.scores, work=built.work, executor=InProcess())
    run = write_run(built.work / "run", [])
    with serving(Built(**vars(built) | {"manifest": manifest, "current": current, "run": run})) as served:
        yield served


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """A run of one step with a long name, and one with a hostile name."""
    folder = tmp_path_factory.mktemp("runs")
    one = write_run(folder / ("a-long-name-" + "x" * 120), [metrics_row(1)])
    write_rollouts(one, 1, [rollout_row(1, "site-1", n, response=text) for n, text in enumerate((ODD, LONG))])
    with serving_board(open_runs([one, write_run(folder / HOSTILE_NAME, [])])) as served:
        yield served


@pytest.fixture(params=[WIDE, NARROW], ids=["wide", "phone"])
def page(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Page]:
    """A page that may log nothing but that an error page was asked for."""
    scheme = "dark" if request.param == NARROW else "light"
    opened = browser.new_page(viewport={"width": request.param, "height": 800}, color_scheme=scheme)
    problems: list[str] = []
    opened.on("console", lambda said: problems.append(said.text) if said.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: problems.append(str(error)))
    yield opened
    assert [said for said in problems if "the server responded with a status of 40" not in said] == []
    opened.close()


def look(page: Page, url: str) -> None:
    """Open a page. It must fit, have one title, no table without rows, and no control that sticks out of it."""
    page.goto(url)
    expect(page.locator(".loading, [aria-busy], [data-unfinished]")).to_have_count(0)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, url
    assert page.locator("h1").count() == 1, url
    assert page.evaluate("[...document.querySelectorAll('tbody')].every((body) => body.rows.length)"), url
    assert page.evaluate(
        """[...document.querySelectorAll('main :is(a, button, input, select, textarea, p, h1, h2, h3, pre)')]
           .filter((each) => !each.closest('.scroll, .hm-text, .hm-details, .hidden, .skip') && each.checkVisibility())
           .map((each) => each.getBoundingClientRect())
           .every((box) => box.left >= -1 && box.right <= innerWidth + 1)"""
    ), url
    assert page.evaluate("window.pwned") is None
    assert "\u202e" not in page.locator("body").inner_text(), url


def test_every_route_is_walked(live: Live, board: Board) -> None:
    assert unwalked(create_app(live.library), pages_of(live)) == NO_PAGES
    of_board = unwalked(create_board(board.runs), ["/run", "/run/rollouts", "/run/site?site=site-1"])
    assert of_board <= NO_PAGES


def test_odd_input_bends_no_page(page: Page, flagged: Live) -> None:
    for url in pages_of(flagged):
        look(page, flagged.url + url)
    assert page.locator(".problem").count() == 0


def test_an_error_says_what_is_wrong_and_leads_back(page: Page, live: Live) -> None:
    for url in errors_of(live):
        look(page, live.url + url)
        assert len(page.locator(".problem").inner_text()) > 20, url
        expect(page.locator("main p a")).not_to_have_count(0)


def test_a_page_without_anything_says_so(page: Page, nothing: Live) -> None:
    for url in pages_of(nothing)[:-1]:
        look(page, nothing.url + url)
    words = {
        "/tokens?split=validation": "The current selection keeps no position of this split.",
        "/positions?split=validation": "No position matches.",
        "/flags": "No flags yet.",
        "/run": "Nothing has been measured yet.",
        "/run/rollouts": "No rollouts are stored yet.",
        "/documents?text=nothing+has+this": "No document matches.",
    }
    for url, said in words.items():
        look(page, nothing.url + url)
        expect(page.locator(".empty", has_text=said)).to_be_visible()


def test_the_board_of_a_run_of_one_step(page: Page, board: Board) -> None:
    names = [quote(run.name) for run in board.runs]
    for url in ("/run", *(f"/run?run={name}" for name in names), "/run/rollouts", f"/run/rollouts?run={names[1]}"):
        look(page, board.url + url)
    for url in ("/run/site?site=site-1", "/nowhere", f"/run?run={LONG}", "/run/site?site=none"):
        look(page, board.url + url)


def test_pages_of_one_run_in_a_file(page: Page, board: Board, tmp_path: Path) -> None:
    from commands.inspect.board import export

    for number, runs in enumerate((board.runs, board.runs[:1], board.runs[1:])):
        export(runs, tmp_path / f"{number}.html")
        look(page, (tmp_path / f"{number}.html").as_uri())
