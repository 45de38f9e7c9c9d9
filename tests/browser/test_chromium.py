"""The live page in a real browser: by mouse, by keyboard alone, on a phone, with a corpus that wants to break it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import quote_plus

import polars as pl
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser, Page, expect

from pipeline.audit.browse.rules import Where
from pipeline.corpus.documents import doc_id
from tests.browser.conftest import Live, serving
from tests.browser.corpus import LONG, Halting, build

PHONE = {"width": 390, "height": 800}
RULE = "entropy > 0.5 AND nll < 2"


@pytest.fixture
def page(browser: Browser, live: Live) -> Iterator[Page]:
    """A fresh page at 1280 px. Whatever a test does, nothing may be logged and no script of the corpus may run."""
    context = browser.new_context(base_url=live.url, viewport={"width": 1280, "height": 900}, accept_downloads=True)
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


@pytest.fixture
def site(live: Live) -> tuple[str, int]:
    doc_id, _, position = live.built.site_with_rollouts.rpartition("-")
    return doc_id, int(position)


def number(page: Page, name: str) -> int:
    return int(re.sub(r"[^\d]", "", page.locator(f"[data-count={name}]").inner_text()))


def settled(page: Page) -> None:
    """Wait until nothing is being loaded into the page."""
    expect(page.locator(".loading, [aria-busy]")).to_have_count(0)


def positions(live: Live, split: str = "train") -> pl.DataFrame:
    """Scored positions straight from the files."""
    scores = pl.read_parquet([file.path for file in live.built.scores.files("scores")])
    lists = ["entropy", "nll", "field"]
    return scores.filter(pl.col("split") == split).select("doc_id", *lists).explode(lists).drop_nulls("entropy")


def test_open_filter_and_go_to_a_document(page: Page, live: Live) -> None:
    page.goto("/")
    expect(page).to_have_title(re.compile("Documents"))
    page.get_by_label("Text").fill("CAFÉ")
    page.get_by_role("button", name="Find").click()
    texts = pl.read_parquet([file.path for file in live.built.documents.files("documents")])["text"]
    matching = sum("café" in text.lower() for text in texts)
    expect(page.locator(".found")).to_have_text(f"{matching} of {len(texts)} documents")
    assert "text=CAF" in page.url
    page.locator(".documents a.title").first.click()
    expect(page.locator(".hm-token").first).to_be_visible()


def test_hover_shows_what_the_proxy_thought(page: Page, site: tuple[str, int]) -> None:
    page.goto(f"/documents/{site[0]}")
    page.locator(".hm-token").nth(site[1]).hover()
    details = page.locator(".hm-details")
    expect(details).to_contain_text(f"Position {site[1]} of")
    expect(details).to_contain_text("kept")
    expect(details.locator(".hm-top li")).to_have_count(4)
    parts = details.get_by_role("list", name="Parts of the rule").get_by_role("listitem")
    expect(parts).to_have_text([re.compile(r"^entropy > 1\.0✓[\d.]+$"), "field = 'solution'✓solution"])
    assert not page.locator("#change").count()
    page.locator(".hm-token").nth(1).hover()
    expect(details).to_contain_text("not scorable")
    expect(parts.first).to_have_text("entropy > 1.0✗null")
    page.get_by_role("button", name="Loss").click()
    assert "metric=nll" in page.url
    page.reload()
    expect(page.get_by_role("button", name="Loss")).to_have_attribute("aria-pressed", "true")


def test_a_long_document_is_walked_by_its_strip_and_its_hardest(page: Page, live: Live) -> None:
    long_id = doc_id(LONG)
    scores = pl.read_parquet([file.path for file in live.built.scores.files("scores")])
    scored = (
        scores.filter(pl.col("doc_id") == long_id)
        .select("entropy")
        .explode("entropy")
        .with_row_index("position")
        .drop_nulls()
    )
    hardest = sorted(scored.sort("entropy", "position", descending=[True, False])["position"].head(20))
    page.goto(f"/documents/{long_id}")
    strip = page.get_by_role("img", name=re.compile("whole document"))
    expect(strip.locator(".hm-map-hard")).to_have_count(20)
    box = strip.bounding_box()
    assert box
    page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + 10)  # in the part that is shown
    expect(page.locator(".hm-title")).to_contain_text(re.compile(r"Position 1,(29|30)\d of 2,600"))
    assert float(strip.locator(".hm-map-seen").get_attribute("x") or 0) > 60  # of 240: the text has scrolled
    page.mouse.click(box["x"] + box["width"] * 0.9, box["y"] + 10)  # in another part
    page.wait_for_url(re.compile(r"position=23[34]\d"))
    expect(page.locator(".hm-title")).to_contain_text(re.compile(r"Position 2,3[34]\d"))
    page.locator(".hm-token[aria-selected=true]").press("Home")  # position 2,000
    after = [position for position in hardest if position > 2_000]
    page.keyboard.press("H")
    before = max(position for position in hardest if position < 2_000)
    page.wait_for_url(f"**position={before}")
    expect(page.locator(".hm-title")).to_contain_text(f"Position {before:,} of")
    page.locator(".hm-token[aria-selected=true]").press("h")
    page.wait_for_url(f"**position={after[0]}")


def test_two_lines_have_no_empty_box_under_them(page: Page, site: tuple[str, int]) -> None:
    page.goto(f"/documents/{site[0]}")
    page.locator(".hm-token").first.wait_for()
    text, last = page.locator(".hm-text").bounding_box(), page.locator(".hm-token").last.bounding_box()
    assert text and last
    assert text["y"] + text["height"] - (last["y"] + last["height"]) < 40


def test_damage_leads_to_its_places_and_to_a_rule_without_them(page: Page, live: Live) -> None:
    page.goto("/documents")
    page.get_by_role("link", name="Damaged characters").click()
    expect(page.locator(".found")).to_contain_text("1 document holds one")
    row = page.locator("tbody tr", has_text="form feed")
    expect(row.locator("th")).to_contain_text("␌")
    page.locator("section", has=page.get_by_role("heading", name="␌ form feed")).locator(".examples a").first.click()
    page.wait_for_url(f"**/documents/{live.built.hostile_ids[2]}?position=*")
    expect(page.locator(".hm-piece")).to_contain_text("␌")
    page.go_back()
    page.get_by_role("link", name="what it would change").first.click()
    expect(page.locator("#where")).to_have_value(re.compile(f"doc_id NOT IN \\('{live.built.hostile_ids[2]}'\\)"))
    expect(page.locator(".problem")).to_have_count(0)


def test_a_word_in_all_its_places(page: Page) -> None:
    page.goto("/documents?text=pear")
    page.get_by_role("link", name="Positions in their text").click()
    marks = page.locator(".lines mark")
    expect(marks.first).to_contain_text(re.compile("pear"))
    scores = [float(text) for text in page.locator(".lines td:nth-child(2)").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    page.get_by_role("searchbox", name="Text").fill("no such text")
    page.get_by_role("button", name="Show").click()
    expect(page.locator(".empty")).to_be_visible()
    expect(page.get_by_role("searchbox", name="Text")).to_have_value("no such text")


def test_why_not_names_the_failed_part_the_cap_and_the_shortest_change(
    page: Page, live: Live, site: tuple[str, int]
) -> None:
    page.goto(f"/documents/{site[0]}?position=5&rule={quote_plus('entropy > 9 AND field = ' + repr('problem'))}")
    value = page.locator(".hm-parts li").first.inner_text().split("✗")[1]
    expect(page.locator(".changes li")).to_have_text([f"entropy > 9 → entropy > {float(value) - 0.0051:.2f}"])
    page.get_by_role("link", name="what else it would change").click()
    expect(page.locator("#where")).to_have_value(re.compile(r"^entropy > [\d.]+ AND field = 'problem'$"))
    capped = live.built.capped
    page.goto(f"/documents/{site[0]}?position={site[1]}&rule=select:{capped.fingerprint}")
    parts = page.get_by_role("list", name="Parts of the rule").get_by_role("listitem")
    dropped = capped.counters["dropped.document_cap"]
    expect(parts.nth(2)).to_have_text(re.compile(rf"^max_per_document: 2[✓✗]dropped {dropped} of the corpus$"))
    kept = pl.read_parquet([file.path for file in capped.files("sites")])["site_id"].to_list()
    assert ("✓" in parts.nth(2).inner_text()) == (f"{site[0]}-{site[1]}" in kept)


def test_a_site_shows_prompt_continuation_and_rollouts(page: Page, live: Live, site: tuple[str, int]) -> None:
    page.goto(f"/documents/{site[0]}")
    page.locator(".hm-token").nth(site[1]).click()
    expect(page.locator("#site-title")).to_have_text(f"Position {site[1]}")
    document = live.library.document(live.library.store.document_of[site[0]])
    example = document.example(site[1], live.manifest.materialize, live.library.policy_tokenizer)
    assert isinstance(example, dict)
    expect(page.locator(".prompt bdi")).to_have_text(example["context"].decode())
    assert "Complete the text" in page.locator(".prompt").inner_text()
    expect(page.locator(".continuation bdi")).to_have_count(len(example["token_lengths"]))
    expect(page.locator(".rollouts li")).to_have_count(2)
    expect(page.locator(".rollouts .won pre")).to_have_text("<script>window.pwned=6</script> so \\boxed{x}")
    assert page.url.endswith(f"?position={site[1]}")


def test_the_slider_counts_at_once_what_polars_counts(page: Page, live: Live) -> None:
    page.goto("/what-if")
    slider = page.get_by_label("Entropy threshold")
    slider.evaluate("(s) => { s.value = 0.4; s.dispatchEvent(new Event('input', { bubbles: true })); }")
    expect(page.locator("#where")).to_have_value("entropy > 0.4 AND field = 'solution'")
    frame = positions(live).filter(pl.col("field") == "solution")
    now, then = (frame.filter(pl.col("entropy") > t) for t in (1.0, 0.4))
    assert (number(page, "before"), number(page, "after")) == (now.height, then.height)
    assert number(page, "gained") == then.height - now.height
    assert (
        number(page, "documents")
        == frame.filter(pl.col("entropy").is_between(0.4, 1.0))
        .filter((pl.col("entropy") > 0.4) & (pl.col("entropy") <= 1.0))["doc_id"]
        .n_unique()
    )
    assert page.locator("#lines").inner_text() == "select:\n  where: entropy > 0.4 AND field = 'solution'\n"
    assert "entropy+%3E+0.4" in page.url


def test_a_rule_of_ones_own_and_its_mistakes(page: Page, live: Live) -> None:
    page.goto("/what-if")
    page.locator("#where").fill(RULE)
    page.locator("#where").press("Enter")
    expect(page.locator("#lines")).to_contain_text("nll < 2")
    expected = positions(live).filter((pl.col("entropy") > 0.5) & (pl.col("nll") < 2))
    assert number(page, "after") == expected.height
    page.locator("#where").fill("entropi > 1")
    page.locator("#where").press("Enter")
    expect(page.locator(".problem")).to_contain_text("did you mean entropy?")


def test_an_estimate_gives_way_to_the_exact_count(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = "nll < 2"
    with serving(build(tmp_path, shard_documents=2)) as live:
        halting = Halting(Where.parse(rule), 20)  # what the present rule keeps and what it does not are asked apart
        named = live.library.rule
        asked = lambda name, split: halting if name == rule else named(name, split)  # noqa: E731
        monkeypatch.setattr(live.library, "rule", asked)
        page = browser.new_page(base_url=live.url)
        page.goto("/what-if")
        page.locator("#where").fill(rule)
        page.locator("#where").press("Enter")
        note = page.locator("[data-unfinished]")
        expect(note).to_contain_text(re.compile(r"Estimates from \d+ of 22 shards"))
        expect(page.locator(".card", has_text="gained")).to_contain_text("±")
        halting.let.set()
        expect(note).to_have_count(0)
        expected = positions(live).filter(pl.col("nll") < 2)
        assert number(page, "after") == expected.height
        expect(page.locator("#result")).to_contain_text("Exact counts")
        expect(page.locator(".cards")).not_to_contain_text("±")
        assert page.locator("#where").input_value() == rule
        page.close()


def test_deep_links_hold_everything(page: Page, live: Live, site: tuple[str, int]) -> None:
    page.goto(f"/what-if?where={quote_plus(RULE)}")
    expect(page.locator("#where")).to_have_value(RULE)
    first = number(page, "after")
    page.locator(".documents a.title").first.click()
    expect(page.locator(".hm-text")).to_be_visible()
    page.go_back()
    assert number(page, "after") == first
    page.goto(f"/documents/{site[0]}?position={site[1]}&metric=rank")
    expect(page.locator("#site-title")).to_have_text(f"Position {site[1]}")
    expect(page.get_by_role("button", name="Rank")).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".hm-token[aria-selected=true]")).to_have_attribute("data-i", str(site[1]))


def test_compare_two_selections_that_were_made(page: Page, live: Live) -> None:
    page.goto("/compare")
    kept = [
        pl.read_parquet([file.path for file in record.files("sites")]).filter(pl.col("split") == "train").height
        for record in (live.built.current, live.built.capped)
    ]
    assert (number(page, "before"), number(page, "after")) == tuple(kept)
    assert number(page, "lost") == kept[0] - kept[1]


def test_flag_export_and_take_back(page: Page, live: Live, site: tuple[str, int]) -> None:
    page.goto(f"/documents/{site[0]}?position={site[1]}")
    page.get_by_label("Note").fill("a name <b>nobody</b> can guess")
    page.get_by_role("button", name="Flag this site").click()
    expect(page.get_by_role("button", name="Remove flag")).to_be_visible()
    page.get_by_role("navigation", name="Pages").get_by_text("Flags").click()
    expect(page.locator("tbody tr")).to_have_count(1)
    with page.expect_download() as download:
        page.get_by_role("link", name="Parquet").click()
    table = pq.read_table(io.BytesIO(download.value.path().read_bytes()))
    assert table["site_id"].to_pylist() == [f"{site[0]}-{site[1]}"]
    assert table["note"].to_pylist() == ["a name <b>nobody</b> can guess"]
    page.get_by_role("button", name="Remove").click()
    expect(page.locator(".empty")).to_be_visible()


def test_keyboard_alone_is_enough(page: Page, live: Live, site: tuple[str, int]) -> None:
    def tab_to(selector: str) -> None:
        for _ in range(60):
            if page.evaluate("(s) => document.activeElement.matches(s)", selector):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"no Tab reaches {selector}")

    page.goto("/documents")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    tab_to("[name=text]")
    page.keyboard.type(live.library.document(live.library.store.document_of[site[0]]).meta["text"][:24])
    page.keyboard.press("Enter")
    page.wait_for_url("**text=**")
    page.wait_for_load_state()
    tab_to(".documents a.title")
    page.keyboard.press("Enter")
    page.wait_for_selector(".hm-token")
    tab_to(".hm-token")
    page.keyboard.press("Home")
    page.keyboard.press("n")  # the next kept position
    expect(page.locator(".hm-token:focus")).to_have_class(re.compile("hm-kept"))
    page.keyboard.press("Enter")
    expect(page.locator("#site-title")).to_be_visible()
    tab_to("[name=note]")
    page.keyboard.type("by keyboard")
    tab_to(".flag button[value=set]")
    page.keyboard.press("Enter")
    page.wait_for_selector(".flag button[value=remove]")
    tab_to(".flag button[value=remove]")
    page.keyboard.press("Enter")
    page.wait_for_selector(".flag button[value=remove]", state="detached")
    page.goto("/what-if")
    tab_to("[data-slider]")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#where")).to_have_value("entropy > 1.01 AND field = 'solution'")
    expect(page.locator("#lines")).to_contain_text("1.01")


def test_nothing_moves_when_answers_come(page: Page, site: tuple[str, int]) -> None:
    page.add_init_script(
        """window.moved = 0;
        const add = (list) => list.getEntries().forEach((shift) => { window.moved += shift.value; });
        new PerformanceObserver(add).observe({ type: "layout-shift", buffered: true });"""
    )
    for url in (f"/documents/{site[0]}?position={site[1]}", "/what-if", "/compare", "/documents"):
        page.goto(url)
        settled(page)
        assert page.evaluate("window.moved") < 0.05, url


def urls(live: Live) -> list[str]:
    run, turn, control, long = (f"/documents/{doc_id}" for doc_id in live.built.hostile_ids)
    documents = [f"{run}?position=5", f"{turn}?position=9", f"{control}?position=8", f"{long}?position=4"]
    rollouts = f"/documents/{live.built.site_with_rollouts.replace('-', '?position=')}"
    compared = f"{run.replace('documents', 'compare')}?b=entropy+%3E+0.2"
    return [
        "/documents",
        *documents,
        rollouts,
        "/what-if?where=entropy+%3E+0.3",
        "/positions?b=entropy+%3E+0.3&band=hard",
        "/compare",
        "/damage",
        "/positions?a=true&b=true&text=%0C",
        compared,
        "/tokens",
        "/flags",
        "/nowhere",
    ]


def test_a_hostile_corpus_runs_nothing_and_breaks_no_layout(page: Page, live: Live) -> None:
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        for url in urls(live)[:-1]:
            page.goto(url)
            settled(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (url, width)
            assert page.locator("script:not([src])").count() == 0
            assert page.locator("main img, main b[onclick]").count() == 0
    page.goto(f"/documents/{live.built.hostile_ids[1]}")
    shown = page.locator(".hm-text").inner_text()
    assert "U+202E" in shown and "U+200B" in shown and "\u202e" not in shown


def test_the_policy_would_refuse_a_script_that_got_in(browser: Browser, live: Live) -> None:
    page = browser.new_page(base_url=live.url)
    page.goto("/documents")
    with page.expect_console_message(lambda message: "Content Security Policy" in message.text):
        page.evaluate("document.body.append(Object.assign(document.createElement('script'), { text: 'pwned = 9' }))")
    assert page.evaluate("window.pwned") is None
    page.close()


def test_a_phone_reaches_and_reads_everything(browser: Browser, live: Live, site: tuple[str, int]) -> None:
    context = browser.new_context(base_url=live.url, viewport=PHONE, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto("/documents")
    for name in ("What if", "Compare", "Tokens", "Flags", "Documents"):
        page.get_by_role("navigation", name="Pages").get_by_text(name).tap()
        expect(page.get_by_role("heading", level=1)).to_have_text(name)
    page.goto(f"/documents/{site[0]}")
    page.locator(".hm-token").nth(site[1]).tap()
    expect(page.locator("#site-title")).to_be_visible()
    box = page.locator(".hm-text").bounding_box()
    assert box and box["width"] > 0.85 * PHONE["width"]
    context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_serious_violation(
    browser: Browser, live: Live, axe: str, theme: Literal["light", "dark"]
) -> None:
    context = browser.new_context(base_url=live.url, viewport={"width": 1280, "height": 900}, color_scheme=theme)
    page = context.new_page()
    found = []
    for url in urls(live):
        page.goto(url)
        settled(page)
        page.evaluate(axe)
        rules = "{}" if theme == "light" else "{ runOnly: ['color-contrast'] }"  # all that a theme can change
        violations = page.evaluate(f"axe.run({rules}).then((result) => result.violations)")
        found += [
            (url, v["id"], v["nodes"][0]["html"][:150], v["nodes"][0]["failureSummary"])
            for v in violations
            if v["impact"] in ("serious", "critical")
        ]
    assert found == []
    context.close()
