"""Jobs that people come with, each counted in clicks in a real browser, at 1280 px and on a phone in the dark."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote_plus

import polars as pl
import pytest
import yaml
from playwright.sync_api import Page, expect

import pipeline.audit.browse.document as document_module
import pipeline.audit.browse.server as server_module
from pipeline.core.artifact import Record
from stages.materialize import materialize
from stages.select import select
from tests.browser.board_run import HOSTILE_RESPONSES, metrics_row, rollout_row, write_rollouts, write_run
from tests.browser.conftest import WIDE_AND_PHONE, Live, Walk, serving
from tests.browser.corpus import build
from tests.browser.test_chromium import number, positions
from tests.stages.published import InProcess

RULE = "entropy > 0.5 AND field = 'solution'"


@WIDE_AND_PHONE
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
    expect(walk.page.locator(".found")).to_have_text(f"{frame.height:,} positions")
    expect(walk.page.locator(".lines mark").first).to_be_visible()
    assert walk.clicks == 2


def test_blue_is_what_the_whole_rule_keeps(walk: Walk, live: Live) -> None:
    page = walk.page
    page.goto("/what-if?where=" + RULE.replace(" ", "+").replace(">", "%3E").replace("=", "%3D"))
    bar = page.locator(".bars a[aria-label^='1.00 to 1.05']")
    inside = positions(live).filter(pl.col("entropy").cast(pl.Float32).is_between(1.0, 1.05, closed="right"))
    kept = inside.filter(pl.col("field") == "solution")
    assert 0 < kept.height < inside.height
    expect(bar).to_have_attribute("aria-label", f"1.00 to 1.05 nats: {kept.height} kept of {inside.height:,} positions")
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
    expect(page.locator(".found")).to_have_text(f"{kept.height:,} positions")
    page.get_by_role("link", name="entropy > 1: remove").click()
    page.get_by_role("link", name="entropy ≤ 1.05: remove").click()
    everything = positions(live).filter(pl.col("entropy") > 0.5, pl.col("field") == "solution")
    expect(page.locator(".found")).to_have_text(f"{everything.height:,} positions")


def test_rows_and_tokens_are_links_that_narrow(walk: Walk, live: Live) -> None:
    page = walk.page
    page.goto("/what-if?where=entropy+%3E+0.3")
    page.locator("tbody tr", has_text="hard").get_by_role("link", name="hard").click()
    hard = positions(live).filter(pl.col("entropy") > 1.5)
    expect(page.locator(".found")).to_have_text(f"{hard.height:,} positions")
    token = page.locator(".tokens a").first
    count = int(token.locator("b").inner_text().replace(",", ""))
    token.click()
    expect(page.locator(".found")).to_have_text(f"{count:,} positions")
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


def made(live: Live, where: str) -> Record:
    """Make a selection as `rpt select --set select.where=…` does in another terminal."""
    rule = live.manifest.select.model_copy(update={"where": where})
    manifest = live.manifest.model_copy(update={"select": rule})
    return select(manifest, live.built.documents, live.built.scores, work=live.built.work, executor=InProcess())


@WIDE_AND_PHONE
def test_compare_with_the_selection_just_made(walk: Walk, tmp_path: Path) -> None:
    page = walk.page
    with serving(build(tmp_path)) as live:
        page.goto(live.url)
        first = made(live, "entropy > 0.8 AND field = 'solution'")
        walk.tab("Compare")
        assert number(page, "after") == first.counters["kept.train"]
        assert walk.clicks == 1
        capped = live.manifest.model_copy(
            update={"select": live.manifest.select.model_copy(update={"where": "entropy > 0.7", "max_per_document": 1})}
        )
        second = select(capped, live.built.documents, live.built.scores, work=live.built.work, executor=InProcess())
        walk.click(page.get_by_role("link", name="Compare with the new selection: entropy > 0.7"))
        expect(page.locator("[data-count=after]")).to_have_text(str(second.counters["kept.train"]))
        assert walk.clicks == 2
        menu = page.get_by_role("combobox", name="Second", exact=True)
        words = menu.locator("option:checked").inner_text()
        assert words.startswith("entropy > 0.7 · max_per_document: 1 · ") and second.fingerprint in words
        assert re.search(r"\d+ sites · \d+ \w{3} \d\d:\d\d", words)
        menu.select_option(f"select:{first.fingerprint}")
        page.get_by_role("button", name="Compare").click()
        expect(page.locator("[data-count=after]")).to_have_text(str(first.counters["kept.train"]))
        page.goto("about:blank")  # it looks for new selections until it is left


def test_the_command_of_a_missing_selection_makes_it(walk: Walk, live: Live) -> None:
    page, rule = walk.page, "entropy > 0.9 AND field = 'solution'"
    page.goto("/compare")
    expect(page.locator("#command-1")).to_have_count(0)
    page.get_by_role("textbox", name="Second: a rule instead").fill(rule)
    page.get_by_role("textbox", name="Second: a rule instead").press("Enter")
    command = shlex.split(page.locator("#command-1").inner_text())
    assert command == ["rpt", "select", "toy", "--set", f"select.where={rule}"]
    page.goto("/what-if?where=" + quote_plus(rule))
    assert shlex.split(page.locator("#command").inner_text()) == command
    page.goto("/what-if")
    expect(page.locator("#command")).to_have_count(0)


def test_one_heat_map_marks_changes_and_keys_jump_between_them(walk: Walk, live: Live) -> None:
    page = walk.page
    doc_id = live.built.site_with_rollouts.rpartition("-")[0]
    page.goto(f"/compare/{doc_id}?b={quote_plus('entropy > 0.5 AND nll < 1')}")
    scores = pl.read_parquet([file.path for file in live.built.scores.files("scores")])
    row = scores.filter(pl.col("doc_id") == doc_id).row(0, named=True)
    columns = zip(row["entropy"], row["nll"], row["field"], strict=True)
    before, after = [], []
    for entropy, nll, field in columns:
        before.append(entropy is not None and entropy > 1 and field == "solution")
        after.append(entropy is not None and entropy > 0.5 and nll < 1)
    gained = [t for t, (a, b) in enumerate(zip(before, after, strict=True)) if b and not a]
    lost = [t for t, (a, b) in enumerate(zip(before, after, strict=True)) if a and not b]
    assert gained and lost
    expect(page.locator(".hm-text")).to_have_count(1)
    for kind, expected in (("gained", gained), ("lost", lost)):
        marked = page.locator(f".hm-token.hm-{kind}").evaluate_all("(all) => all.map((t) => Number(t.dataset.i))")
        assert marked == expected
        expect(page.locator(".hm-marks li", has_text=kind).locator("b")).to_have_text(str(len(expected)))
    page.locator(".hm-token").first.focus()
    visited = []
    for _ in sorted([*gained, *lost]):
        page.keyboard.press("j")
        visited.append(int(page.locator(".hm-token:focus").get_attribute("data-i") or -1))
    assert visited == sorted([*gained, *lost])
    expect(page.locator(".hm-facts")).to_contain_text("gained" if visited[-1] in gained else "lost")
    page.keyboard.press("k")
    expect(page.locator(".hm-token:focus")).to_have_attribute("data-i", str(visited[-2]))


def test_a_change_in_another_part_of_a_long_document_is_reached(
    walk: Walk, live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document_module, "TOKENS_SHOWN", 10)
    monkeypatch.setattr(server_module, "TOKENS_SHOWN", 10)
    page, doc_id = walk.page, live.built.site_with_rollouts.rpartition("-")[0]
    page.goto(f"/compare/{doc_id}?a=false&b={quote_plus('position = 4 OR position = 12')}")
    page.locator(".hm-token").first.focus()
    page.keyboard.press("j")
    expect(page.locator(".hm-token:focus")).to_have_attribute("data-i", "4")
    page.keyboard.press("j")
    expect(page.locator(".hm-token.hm-gained:focus")).to_be_visible()
    expect(page.locator(".hm-title")).to_contain_text("Position 12")


@WIDE_AND_PHONE
def test_why_was_this_position_dropped(walk: Walk, live: Live) -> None:
    doc_id = live.built.site_with_rollouts.rpartition("-")[0]
    scores = pl.read_parquet([file.path for file in live.built.scores.files("scores")])
    row = scores.filter(pl.col("doc_id") == doc_id).row(0, named=True)
    dropped = next(t for t, (e, f) in enumerate(zip(row["entropy"], row["field"], strict=True)) if e and f == "problem")
    page = walk.page

    def explained() -> None:
        expect(page.locator(".hm-token[aria-selected=true]")).to_have_attribute("data-i", str(dropped))
        expect(page.locator(".hm-facts")).to_contain_text("rejected: where")
        parts = page.get_by_role("list", name="Parts of the rule").get_by_role("listitem")
        expect(parts.last).to_have_text("field = 'solution'✗problem")

    page.get_by_label("Text").fill(f"{doc_id}-{dropped}")
    walk.click(page.get_by_role("button", name="Find"))
    explained()
    assert walk.clicks == 1
    text = live.library.document(live.library.store.document_of[doc_id]).meta["text"]
    page.goto("/")
    walk.clicks = 0
    page.get_by_label("Text").fill(text[:40])
    walk.click(page.get_by_role("button", name="Find"))
    walk.click(page.locator(".documents a.title").first)
    walk.click(page.locator(".hm-token").nth(dropped))
    explained()
    assert walk.clicks == 3


@WIDE_AND_PHONE
def test_from_a_row_of_a_shard_to_its_source(walk: Walk, live: Live) -> None:
    built, page = live.built, walk.page
    shards = materialize(
        built.manifest, built.documents, built.scores, built.current, work=built.work, executor=InProcess()
    )
    file = shards.files("train")[0]
    example = pl.read_parquet(file.path).row(3, named=True)
    documents = pl.read_parquet([file.path for file in built.documents.files("documents")])
    source = documents.filter(pl.col("doc_id") == example["doc_id"]).row(0, named=True)
    for place in (f"{file.path}:3", f"{Path(file.path).name}:3"):
        page.goto("/")
        walk.clicks = 0
        page.get_by_label("Text").fill(place)
        walk.click(page.get_by_role("button", name="Find"))
        expect(page.locator("#site-title")).to_have_text(f"Position {example['position']}")
        expect(page.locator(".facts").first).to_contain_text(f"{source['source_file']} row {source['source_row']}")
        assert walk.clicks == 1


@WIDE_AND_PHONE
def test_flag_all_sites_of_a_token_and_paste_the_line(walk: Walk, live: Live, tmp_path: Path) -> None:
    page, built = walk.page, live.built
    walk.tab("Tokens")
    row = page.locator("#most tbody tr").first
    sites = int(row.locator("td").first.inner_text().replace(",", ""))
    walk.click(row.get_by_role("link"))
    expect(page.locator(".found")).to_have_text(f"{sites:,} positions")
    page.get_by_role("form", name="Flag all").get_by_role("textbox").fill("a <b>name</b>")
    walk.click(page.get_by_role("button", name="Flag all"))
    expect(page.locator(".found")).to_have_text(f"{sites:,} flags")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    walk.click(page.get_by_role("button", name="Copy"))
    assert walk.clicks == 4
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    lines = yaml.safe_load(page.evaluate("navigator.clipboard.readText()"))
    flagged = tmp_path / "flags.jsonl"
    flagged.write_bytes(Path(lines["select"]["exclude"]).read_bytes())
    page.go_back()
    page.get_by_role("button", name="Remove these flags").click()
    expect(page.locator(".empty")).to_be_visible()

    rule = built.manifest.select.model_copy(update={"exclude": str(flagged)})
    manifest = built.manifest.model_copy(update={"select": rule})
    record = select(manifest, built.documents, built.scores, work=tmp_path / "work", executor=InProcess())
    assert record.counters["dropped.flagged"] == sites > 1
    assert record.counters["kept.train"] == built.current.counters["kept.train"] - sites


def test_flag_a_document_and_a_search(walk: Walk, live: Live) -> None:
    page = walk.page
    sites = pl.read_parquet([file.path for file in live.built.current.files("sites")])
    doc_id, count = sites["doc_id"].value_counts(sort=True).row(0)
    page.goto(f"/documents/{doc_id}")
    page.get_by_role("button", name="Flag all").click()
    expect(page.locator(".found")).to_have_text(f"{count:,} flags")
    assert set(live.library.flags.all()) == set(sites.filter(pl.col("doc_id") == doc_id)["site_id"])
    page.goto(f"/documents/{doc_id}")
    page.get_by_role("button", name="Remove these flags").click()
    expect(page.locator(".empty")).to_be_visible()
    page.goto("/documents?source=part-1.jsonl&split=validation")
    page.get_by_role("button", name="Flag all").click()
    documents = pl.read_parquet([file.path for file in live.built.documents.files("documents")])
    ours = documents.filter(pl.col("source_file") == "part-1.jsonl", pl.col("split") == "validation")["doc_id"]
    assert set(live.library.flags.all()) == set(sites.filter(pl.col("doc_id").is_in(ours.to_list()))["site_id"])
    page.goto("/documents?source=part-1.jsonl&split=validation")
    page.get_by_role("button", name="Remove these flags").click()
    expect(page.locator(".empty")).to_be_visible()


@pytest.fixture
def trained(live: Live, tmp_path: Path) -> Iterator[Live]:
    """The corpus with a run that stored rollouts at steps 20, 40 and 60; at step 40, rewards are 0 to 11 twelfths."""
    run = write_run(tmp_path / "run", [metrics_row(step) for step in range(1, 61)], steps=60)
    for step in (20, 40, 60):
        texts = {0: HOSTILE_RESPONSES[0], 11: HOSTILE_RESPONSES[1]} if step == 40 else {}
        rows = [
            rollout_row(step, f"site-{n}", 0, reward=n / 12, response=texts.get(n, f"step {step}, rollout {n}"))
            for n in range(12)
        ]
        write_rollouts(run, step, rows)
    with serving(dataclasses.replace(live.built, run=run)) as served:
        yield served


def rewards(page: Page) -> list[float]:
    """The rewards of the rollouts that the Run tab shows, in its order."""
    shown = page.locator("#rollouts .rollouts > li > div:first-child > .facts:first-child b").all_inner_texts()
    return [float(text.split("reward ")[1]) for text in shown]


@WIDE_AND_PHONE
def test_best_and_worst_rollouts_of_a_step(walk: Walk, trained: Live) -> None:
    page = walk.page
    page.goto(trained.url)
    walk.tab("Run")
    expect(page.locator("#rollouts-title")).to_have_text("10 rollouts of step 60")
    page.get_by_role("textbox", name="Step").fill("40")
    page.get_by_role("textbox", name="Step").press("Enter")
    expect(page.locator("#rollouts-title")).to_have_text("10 rollouts of step 40")
    assert rewards(page) == pytest.approx([n / 12 for n in range(11, 1, -1)], abs=1e-5)
    expect(page.locator("#rollouts pre").first).to_contain_text("right to left: ")
    walk.click(page.get_by_role("link", name="Lowest reward first"))
    expect(page.locator("#rollouts pre").first).to_contain_text("<script>window.pwned=2</script>")
    expect(page.locator("#rollouts-title")).to_have_text("10 rollouts of step 40")
    assert rewards(page) == pytest.approx([n / 12 for n in range(10)], abs=1e-5)
    assert walk.clicks == 2
    page.get_by_role("link", name="Step 20").click()
    expect(page.locator("#rollouts pre").first).to_have_text("step 20, rollout 0")
    page.goto("about:blank")  # it asks for new steps until it is left


def test_hardest_tokens_lead_to_their_positions(walk: Walk, live: Live) -> None:
    walk.tab("Tokens")
    rows = walk.page.locator("#hardest tbody tr")
    losses = [float(loss) for loss in rows.locator("td:last-child").all_inner_texts()]
    assert len(losses) > 1 and losses == sorted(losses, reverse=True)
    count = int(rows.first.locator("td").nth(1).inner_text().replace(",", ""))
    assert count >= 20
    walk.click(rows.first.get_by_role("link"))
    expect(walk.page.locator(".found")).to_have_text(f"{count:,} positions")
