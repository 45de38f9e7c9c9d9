"""The Run tab in a real browser: live, by keyboard, on a phone, dark, with runs that want to break it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page, expect

from commands.inspect.board import export
from pipeline.audit.board.run import open_runs
from tests.browser.board_run import (
    HOSTILE_NAME,
    HOSTILE_RESPONSES,
    accuracy,
    append,
    metrics_row,
    rollout_row,
    write_evaluation,
    write_rollouts,
    write_run,
)
from tests.browser.test_board_http import Board, serving_board

ONE = f"/run?run={quote(HOSTILE_NAME)}"

ROLLOUTS = ["/run/rollouts?step=10", "/run/rollouts?text=nothing+has+this", "/run/site?site=site-1"]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """A run that stands at step 30, and another."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [
        {"step": 0, **accuracy("easy", 0.3), **accuracy("hard", 0.1)},
        *(metrics_row(step) for step in range(1, 30)),
    ]
    one = write_run(folder / HOSTILE_NAME, [*rows, metrics_row(30, **accuracy("easy", 0.4), **accuracy("hard", 0.5))])
    write_evaluation(one, hard=0.125)
    write_rollouts(one, 10, [rollout_row(10, "site-1", n, response=text) for n, text in enumerate(HOSTILE_RESPONSES)])
    sites = [f"site-{n}" for n in range(12)]
    write_rollouts(one, 20, [rollout_row(20, site, n) for site in sites for n in range(4)])
    two = write_run(folder / "two", [metrics_row(step) for step in range(1, 20)])
    with serving_board(open_runs([one, two])) as served:
        yield served


@pytest.fixture
def page(browser: Browser, board: Board) -> Iterator[Page]:
    """A page at 1280 px that may log nothing and run nothing of what the runs hold."""
    context = browser.new_context(base_url=board.url, viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    problems: list[str] = []
    opened.on(
        "console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None
    )
    opened.on("pageerror", lambda error: problems.append(str(error)))
    yield opened
    assert opened.evaluate("window.pwned") is None
    assert problems == []
    context.close()


def drawn(page: Page) -> None:
    """Wait until the charts are there."""
    expect(page.locator("#charts[aria-busy]")).to_have_count(0)
    expect(page.locator("#charts svg .curve, #charts svg .area").first).to_be_attached()


def chart(page: Page, title: str) -> str:
    """What is read out of a chart."""
    return page.get_by_role("img", name=f"{title}, step").get_attribute("aria-label") or ""


def test_a_run_is_drawn_with_its_intervals_and_baseline(page: Page) -> None:
    page.goto(ONE)
    drawn(page)
    assert chart(page, "Reward") == "Reward, step 30: reward 0.5"
    assert chart(page, "Held-out accuracy") == (
        "Held-out accuracy, step 30: easy 40.0 % [30.0 %, 50.0 %]; hard 50.0 % [40.0 %, 60.0 %], direct 12.5 %"
    )
    expect(page.locator("[data-chart=accuracy] .interval")).to_have_count(2)
    expect(page.locator("[data-chart=accuracy] .level")).to_have_count(1)
    expect(page.locator("[data-chart=outcomes] .plot .area")).to_have_count(4)
    expect(page.locator(".cards")).to_contain_text("held-out hard [40.0, 60.0], directly 12.5 %")


def test_a_step_that_training_takes_appears_by_itself(page: Page, board: Board, tmp_path: Path) -> None:
    with serving_board(open_runs([write_run(tmp_path / "new", [])])) as fresh:
        page.goto(f"{fresh.url}/run")
        expect(page.locator("#no-charts")).to_be_visible()
        append(fresh.runs[0].folder, [metrics_row(1)])
        expect(page.locator("[data-chart=reward] output")).to_have_text("step 1", timeout=15_000)
        expect(page.locator("#no-charts")).to_be_hidden()
        append(fresh.runs[0].folder, [metrics_row(step) for step in range(2, 9)])
        expect(page.locator("[data-chart=reward] output")).to_have_text("step 8", timeout=15_000)
        expect(page.locator("#summary")).to_contain_text("step 8 of 40")


def test_pointer_and_arrow_keys_read_a_chart(page: Page) -> None:
    page.goto(ONE)
    drawn(page)
    plot = page.locator("[data-chart=length] .plot")
    box = plot.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] * 46 / 400, box["y"] + box["height"] / 2)
    expect(page.locator("[data-chart=length] output")).to_have_text("step 1")
    expect(page.locator("[data-chart=length] .legend b")).to_have_text("21 tokens")
    page.mouse.move(1, 1)
    expect(page.locator("[data-chart=length] output")).to_have_text("step 30")
    for _ in range(40):
        page.keyboard.press("Tab")
        if plot.evaluate("(element) => element === document.activeElement"):
            break
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(page.locator("[data-chart=length] .spoken")).to_have_text("step 2: length 22 tokens")


def test_two_runs_are_drawn_over_each_other(page: Page) -> None:
    page.goto("/run")
    drawn(page)
    expect(page.locator("[data-chart=reward-0] .plot .curve")).to_have_count(2)
    expect(page.locator("[data-chart=reward-0] .legend li span")).to_have_text([HOSTILE_NAME, "two"])
    expect(page.locator("#summary tbody tr")).to_have_count(2)
    page.get_by_role("checkbox", name=HOSTILE_NAME).uncheck()
    page.get_by_role("button", name="Draw").click()
    drawn(page)
    assert page.url.endswith("/run?run=two")
    assert chart(page, "Reward") == "Reward, step 19: reward 0.5"


def test_a_click_in_a_chart_shows_the_rollouts_of_its_step(page: Page) -> None:
    page.goto(ONE)
    drawn(page)
    plot = page.get_by_role("img", name="Reward, step 30")
    box = plot.bounding_box()
    assert box
    at = 46 + (12 - 1) / 29 * (400 - 46 - 8)  # step 12; the drawing is 400 wide, with margins of 46 and 8
    page.mouse.click(box["x"] + at / 400 * box["width"], box["y"] + box["height"] / 2)
    expect(page.locator("#rollouts-title")).to_have_text("1 rollout of step 10")
    expect(page.locator("#rollouts .notice")).to_contain_text("No rollouts are stored at step 12")
    expect(page.locator("#rollouts-title")).to_be_in_viewport()
    plot.focus()
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    expect(page.locator("#rollouts-title")).to_have_text("10 rollouts of step 20")
    assert "step=30" in page.url


def test_the_worst_rollouts_of_a_step_are_two_clicks_away(page: Page) -> None:
    page.goto(ONE)
    expect(page.locator("#rollouts .rollouts > li")).to_have_count(10)
    expect(page.locator("#rollouts .rollouts > li").first).to_contain_text("✓ reward 1")
    page.get_by_role("link", name="Find others").click()
    page.get_by_role("textbox", name="Step").fill("10")
    page.get_by_label("Order").select_option(label="lowest reward first")
    page.get_by_role("button", name="Find").click()
    expect(page.locator(".found")).to_have_text("3 of 51 rollouts")
    expect(page.locator("#result pre").first).to_contain_text("right to left")
    page.get_by_label("Response contains").fill("PWNED=3")
    page.get_by_label("Response contains").press("Enter")
    expect(page.locator(".found")).to_have_text("1 of 51 rollouts")


def test_rollouts_stand_beside_earlier_ones(page: Page) -> None:
    page.goto(f"{ONE}&order=shortest")
    first = page.locator("#rollouts .rollouts > li").nth(1)
    expect(first.locator("pre")).to_have_count(2)
    expect(first.locator("pre").nth(1)).to_contain_text("<script>window.pwned=2</script>")
    first.get_by_role("link", name="first step beside last").click()
    expect(page.locator(".side-by-side h2")).to_have_text(["Step 10: 2 of 3 match", "Step 20: 2 of 4 match"])


def test_the_exported_page_shows_the_same_from_a_file(page: Page, board: Board, tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    export(board.runs[:1], path)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(ONE)
    drawn(page)
    live = [chart(page, title) for title in ("Reward", "Held-out accuracy", "Outcomes")]
    asked.clear()
    page.goto(path.as_uri())
    drawn(page)
    assert [chart(page, title) for title in ("Reward", "Held-out accuracy", "Outcomes")] == live
    page.get_by_text("Shortest first").click()
    expect(page.locator("details[open] pre").last).to_be_visible()
    page.get_by_role("button", name="Dark / light").click()
    page.wait_for_timeout(2500)  # longer than a live page waits before it asks again
    assert [url for url in asked if not url.startswith("file:")] == []
    assert page.locator("a:not([href='#main'])").count() == 0
    export(board.runs, path)
    page.goto(path.as_uri())
    drawn(page)
    expect(page.locator("[data-chart=reward-0] .plot .curve")).to_have_count(2)


def test_nothing_moves_and_nothing_overflows(page: Page) -> None:
    page.add_init_script(
        """window.moved = 0;
        const add = (list) => list.getEntries().forEach((shift) => { window.moved += shift.value; });
        new PerformanceObserver(add).observe({ type: "layout-shift", buffered: true });"""
    )
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        for url in (ONE, "/run", *ROLLOUTS):
            page.goto(url)
            if url not in ROLLOUTS:
                drawn(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (url, width)
            assert page.evaluate("window.moved") < 0.05, (url, width)
            assert page.locator("script:not([src]), main img").count() == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_serious_violation(
    browser: Browser, board: Board, axe: str, theme: Literal["light", "dark"]
) -> None:
    context = browser.new_context(base_url=board.url, viewport={"width": 1280, "height": 900}, color_scheme=theme)
    page = context.new_page()
    for url in (ONE, "/run", "/run?run=nothing", *ROLLOUTS):
        page.goto(url)
        if url in (ONE, "/run"):
            drawn(page)
        page.evaluate(axe)
        violations = page.evaluate("axe.run().then((result) => result.violations)")
        assert [(v["id"], v["nodes"][0]["html"]) for v in violations if v["impact"] in ("serious", "critical")] == []
    context.close()
