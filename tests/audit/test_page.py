"""The report in a real browser, from a file, with a corpus that wants to run, to turn around and to burst the page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from pipeline.audit import report
from pipeline.corpus.documents import doc_id
from tests.audit.corpus import HOSTILE, RARE, RUN, Audited

VIEWS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
SECONDS = 5_000
SERIOUS = ("serious", "critical")


@pytest.fixture(params=VIEWS, ids=lambda view: f"{view[0]}-{view[1]}")
def page(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Page]:
    """A page that may not log, run a script of the corpus, or ask for anything but the file itself."""
    width, scheme = request.param
    opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    opened.set_default_timeout(SECONDS)
    problems: list[str] = []
    asked: list[str] = []
    opened.on("console", lambda message: problems.append(message.text))
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("dialog", lambda dialog: problems.append(dialog.message))
    opened.on("request", lambda sent: asked.append(sent.url))
    yield opened
    assert opened.evaluate("window.pwned") is None
    assert problems == []
    assert {url.rpartition("/")[2] for url in asked} <= {"report.html", "compare.html"}
    opened.close()


def fits(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def violations(page: Page, axe: str) -> list[tuple[str, list[str]]]:
    """Serious ones that axe-core finds, with the elements that have them."""
    page.evaluate(axe)
    found: dict[str, Any] = page.evaluate("axe.run({ resultTypes: ['violations'] })")
    return [
        (violation["id"], [node["html"][:200] for node in violation["nodes"][:3]])
        for violation in found["violations"]
        if violation["impact"] in SERIOUS
    ]


def open_hostile(page: Page, audited: Audited) -> None:
    """Every hostile document as a heat map."""
    page.goto(audited.report.as_uri())
    for text in HOSTILE:
        page.locator(f"#doc-{doc_id(f'{text}{chr(10)}{RUN}')}").evaluate("d => { d.open = true; }")
    page.wait_for_function(f"document.querySelectorAll('.hm-text').length === {len(HOSTILE)}")


def test_hostile_text_is_shown_and_breaks_nothing(page: Page, audited: Audited) -> None:
    open_hostile(page, audited)
    assert fits(page)
    shown = page.locator("#documents").inner_text()
    for text in ("</script><script>window.pwned=1</script>", "U+202E", "U+200B", "␛", "10,241 characters"):
        assert text in shown, text
    assert "\u202e" not in page.locator("body").inner_text()
    assert page.locator("main script:not([type='application/json']), main img").count() == 0
    assert "window.pwned=4" in page.locator(".quarantine").inner_text()


@pytest.mark.parametrize("page", [(1280, "light"), (390, "dark")], indirect=True, ids=["1280-light", "390-dark"])
def test_every_position_of_the_report_says_why_not(page: Page, audited: Audited) -> None:
    shown = doc_id(f"{RARE}\n{RARE[::-1]}.")  # some of its positions are beyond the cap
    page.goto(f"{audited.report.as_uri()}#doc-{shown}")
    document = page.locator(f"#doc-{shown}")
    capped = document.locator(".hm-token.hm-cap").first
    rule = document.locator(".hm-token.hm-rule").first
    parts = document.get_by_role("list", name="Parts of the rule").get_by_role("listitem")
    capped.click()
    expect(parts).to_have_count(3)
    assert [part[part.index(sign)] for part in parts.all_inner_texts() for sign in "✓✗–" if sign in part] == [
        "✓",
        "✓",
        "✗",
    ]
    rule.click()
    assert "✗" in "".join(parts.all_inner_texts()[:2])
    expect(parts.nth(2)).to_contain_text("–")
    assert "fails alone" in page.locator("#why-not").inner_text()


@pytest.mark.parametrize("page", [(1280, "light"), (390, "dark")], indirect=True, ids=["1280-light", "390-dark"])
def test_damage_is_listed_with_its_places_and_a_rule_without_it(page: Page, audited: Audited) -> None:
    page.goto(audited.report.as_uri())
    damage = page.locator("#damage")
    rows = damage.locator("tbody th").all_inner_texts()
    assert sorted(row.split()[-1] for row in rows) == ["U+0007", "U+000C", "U+001B", "U+007F", "U+0085"]
    details = damage.locator("details", has_text="form feed")
    details.locator("summary").click()
    control = doc_id(f"{HOSTILE[2]}\n{RUN}")
    expect(details.locator("pre")).to_have_text(f"({audited.manifest.select.where}) AND doc_id NOT IN ('{control}')")
    details.locator("li a").first.click()
    expect(page.locator(f"#doc-{control} .hm-text")).to_be_visible()
    expect(page.locator(f"#doc-{control} .hm-piece")).to_contain_text("␌")
    assert fits(page)


@pytest.mark.parametrize("page", [(1280, "light"), (390, "dark")], indirect=True, ids=["1280-light", "390-dark"])
def test_a_character_that_tokens_split_is_drawn_once(page: Page, audited: Audited) -> None:
    text = f"{RARE}\n{RARE[::-1]}."
    page.goto(f"{audited.report.as_uri()}#doc-{doc_id(text)}")
    map_ = page.locator(f"#doc-{doc_id(text)} .hm-text")
    expect(map_.locator(".hm-split").first).to_be_visible()
    assert page.locator("body").inner_text().count("\\x") == 0
    shown = "".join(map_.inner_text().replace("⏎", "").split())
    assert shown == "".join(text.split())
    split = map_.locator(".hm-split").first
    pieces = split.locator(".hm-token")
    glyph, first = split.locator(".hm-glyph").bounding_box(), pieces.first.bounding_box()
    assert glyph and first and abs(glyph["x"] - first["x"]) < 1  # over its pieces, not beside them
    pieces.nth(1).click()
    panel = page.locator(f"#doc-{doc_id(text)} .hm-details")
    character = split.locator(".hm-glyph").inner_text()
    expect(panel.locator(".hm-piece")).to_have_text(character)
    expect(panel).to_contain_text(f"2 of {pieces.count()} of this character")
    in_bytes = [f"{byte:02x}" for byte in character.encode()]
    assert any(byte in panel.locator(".hm-wide").all_inner_texts() for byte in in_bytes)
    assert fits(page)


@pytest.mark.parametrize("page", [(1280, "light"), (390, "dark")], indirect=True, ids=["1280-light", "390-dark"])
def test_axe_finds_nothing_serious(page: Page, audited: Audited, axe: str) -> None:
    open_hostile(page, audited)
    assert violations(page, axe) == []
    page.goto(audited.comparison.as_uri())
    assert fits(page)
    assert violations(page, axe) == []


@pytest.fixture
def plain(browser: Browser, audited: Audited) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(SECONDS)
    opened.goto(audited.report.as_uri())
    yield opened
    opened.close()


def test_by_keyboard_alone(plain: Page) -> None:
    """Tab to a document, open it, step to sites: the panel follows and keeps its size."""
    summary = plain.locator("details.document summary").first
    summary.focus()
    plain.keyboard.press("Enter")
    details = plain.locator("details.document").first
    details.locator(".hm-token[tabindex='0']").focus()
    panel = details.locator(".hm-details")
    before = panel.bounding_box()
    assert "kept" in panel.locator(".hm-title").inner_text()
    for key in ("n", "n", "ArrowRight", "ArrowDown", "Home", "End", "p"):
        plain.keyboard.press(key)
        focused = plain.evaluate("Number(document.activeElement.dataset.i)")
        assert plain.locator(".hm-token[tabindex='0']").count() == 1
        assert f"Position {focused:,} of" in panel.inner_text()
        assert panel.bounding_box() == before
    assert "hm-kept" in (plain.evaluate("document.activeElement.className"))
    plain.keyboard.press("Enter")
    assert re.search(r"#[0-9a-f]{32}-\d+$", plain.url)
    assert plain.locator(".hm-top li").count() == 4


def test_metrics_have_their_own_colours_and_decisions_a_line(plain: Page) -> None:
    plain.locator("details.document summary").first.click()
    details = plain.locator("details.document").first
    tokens = details.locator(".hm-token")
    heats = {}
    for name in ("Entropy", "Loss", "Rank"):
        details.get_by_role("button", name=name).click()
        assert details.get_by_role("button", name=name).get_attribute("aria-pressed") == "true"
        heats[name] = tokens.evaluate_all("all => all.map(t => t.dataset.heat ?? null)")
    assert len({json.dumps(heat) for heat in heats.values()}) == 3
    lines = "all => [...new Set(all.map(t => t.className + ' ' + getComputedStyle(t).borderBottomStyle))]"
    assert {"hm-token hm-kept solid", "hm-token hm-rule dotted"} <= set(tokens.evaluate_all(lines))


def test_a_link_to_a_site_opens_its_document(plain: Page, audited: Audited) -> None:
    example = audited.summary["shown"][-1]
    plain.goto(f"{audited.report.as_uri()}#{example['doc_id']}-4")
    plain.reload()
    details = plain.locator(f"#doc-{example['doc_id']}")
    assert details.get_attribute("open") is not None
    assert "Position 4 of" in details.locator(".hm-details").inner_text()


def test_documents_can_be_filtered_and_ordered(plain: Page) -> None:
    plain.select_option("#split", "validation")
    visible = plain.locator("details.document:visible")
    assert visible.count() == plain.locator("details.document[data-split=validation]").count() > 0
    plain.select_option("#split", "")
    plain.select_option("#order", "share")
    shares = plain.eval_on_selector_all("details.document", "all => all.map(d => Number(d.dataset.share))")
    assert shares == sorted(shares, reverse=True) and shares[0] > shares[-1]


def test_the_theme_can_be_turned(plain: Page) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    light = plain.evaluate(colour)
    plain.locator("[data-theme-toggle]").click()
    assert plain.evaluate(colour) != light


def test_the_policy_allows_one_script_and_one_style(audited: Audited) -> None:
    html = audited.report.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy
    assert re.fullmatch(
        r"default-src &#39;none&#39;; script-src &#39;sha256-[\w+/=]{44}&#39;; style-src &#39;sha256-[\w+/=]{44}&#39;; "
        r"base-uri &#39;none&#39;; form-action &#39;none&#39;",
        policy[1].replace("&#43;", "+"),
    )


def test_a_page_never_exceeds_its_size(audited: Audited, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents that do not fit are left out, and the page says so."""
    summary, heat_maps = report.audit(audited.lineage)
    whole = report.page(summary, heat_maps)
    assert len(whole.encode()) < report.PAGE_BYTES == 5_000_000
    limit = len(whole.encode()) - 20_000
    monkeypatch.setattr(report, "PAGE_BYTES", limit)
    cut = report.page(summary, heat_maps)
    assert len(cut.encode()) <= limit
    assert (left_out := f"of {len(heat_maps)} sampled") in cut and left_out not in whole
