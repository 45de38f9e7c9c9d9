"""Jobs that people come with, each counted in clicks, at 1280 px in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator

import polars as pl
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser.conftest import Live
from tests.browser.test_chromium import positions

RULE = "entropy > 0.5 AND field = 'solution'"


class Walk:
    """A page, and the number of clicks in it. Typing and Enter are no clicks."""

    def __init__(self, page: Page) -> None:
        self.page, self.clicks = page, 0

    def click(self, target: Locator) -> None:
        target.click()
        self.clicks += 1

    def tab(self, name: str) -> None:
        """Click a link of the navigation."""
        self.click(self.page.get_by_role("navigation", name="Pages").get_by_role("link", name=re.compile(f"^{name}")))


@pytest.fixture
def walk(browser: Browser, live: Live) -> Iterator[Walk]:
    """A walk that begins at the first page. No script of the corpus may run, nothing may be logged."""
    context = browser.new_context(base_url=live.url, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda said: problems.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto("/")
    yield Walk(page)
    assert page.evaluate("window.pwned") is None
    assert problems == []
    context.close()


def test_what_would_this_rule_change_and_which_tokens(walk: Walk, live: Live) -> None:
    walk.tab("What if")
    walk.page.locator("#where").fill(RULE)
    walk.page.locator("#where").press("Enter")
    expect(walk.page.locator("#lines")).to_contain_text("0.5")
    gained = walk.page.locator("[data-outcome=gained] li").first
    expect(gained).to_be_visible()
    walk.click(walk.page.get_by_role("link", name="All gained positions"))
    frame = positions(live).filter(
        pl.col("field") == "solution", pl.col("entropy").is_between(0.5, 1.0, closed="right")
    )
    expect(walk.page.locator(".found")).to_have_text(f"{frame.height} positions")
    expect(walk.page.locator(".lines mark").first).to_be_visible()
    assert walk.clicks == 2


def test_blue_is_what_the_whole_rule_keeps(walk: Walk, live: Live) -> None:
    page = walk.page
    page.goto("/what-if?where=" + RULE.replace(" ", "+").replace(">", "%3E").replace("=", "%3D"))
    bar = page.locator(".bars a[aria-label^='1.00 to 1.05']")
    inside = positions(live).filter(pl.col("entropy").cast(pl.Float32).is_between(1.0, 1.05, closed="right"))
    kept = inside.filter(pl.col("field") == "solution")
    assert 0 < kept.height < inside.height
    expect(bar).to_have_attribute("aria-label", f"1.00 to 1.05 nats: {kept.height} kept of {inside.height} positions")
    blue, grey = (float(bar.locator(f".{kind}").get_attribute("height") or 0) for kind in ("in", "out"))
    assert 0 < blue < grey
    below = page.locator(".bars a[aria-label^='0.30 to']")
    assert float(below.locator(".in").get_attribute("height") or 1) == 0
    bar.hover()
    expect(page.locator("#bar-now")).to_contain_text(f"{kept.height} kept of {inside.height}")
    page.locator(".bars a").first.focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    expect(bar).to_be_focused()
    page.get_by_text("Numbers of the chart").click()
    row = page.locator("#bars tbody tr", has_text="1.00 to 1.05")
    expect(row.locator("td")).to_have_text([str(inside.height), str(kept.height)])
    bar.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".found")).to_have_text(f"{kept.height} positions")
    page.get_by_role("link", name="entropy > 1: remove").click()
    page.get_by_role("link", name="entropy ≤ 1.05: remove").click()
    everything = positions(live).filter(pl.col("entropy") > 0.5, pl.col("field") == "solution")
    expect(page.locator(".found")).to_have_text(f"{everything.height} positions")


def test_rows_and_tokens_are_links_that_narrow(walk: Walk, live: Live) -> None:
    page = walk.page
    page.goto("/what-if?where=entropy+%3E+0.3")
    page.locator("tbody tr", has_text="hard").get_by_role("link", name="hard").click()
    hard = positions(live).filter(pl.col("entropy") > 1.5)
    expect(page.locator(".found")).to_have_text(f"{hard.height} positions")
    token = page.locator(".tokens a").first
    count = int(token.locator("b").inner_text())
    token.click()
    expect(page.locator(".found")).to_have_text(f"{count} positions")
    expect(page.get_by_role("list", name="Narrowed to").get_by_role("listitem")).to_have_count(2)
    page.locator(".lines a").first.click()
    expect(page.locator("#site-title")).to_be_visible()
    expect(page.locator(".hm-token[aria-selected=true]")).to_be_visible()


def test_a_token_that_wants_to_break_the_page_is_text(walk: Walk, live: Live) -> None:
    page = walk.page
    for doc_id in live.built.hostile_ids:
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 800})
            split = live.library.store.documents["split"][live.library.store.document_of[doc_id]]
            page.goto(f"/positions?b=true&split={split}&doc_id={doc_id}")
            expect(page.locator(".lines tbody tr").first).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.locator("main img, main b[onclick], script:not([src])").count() == 0
