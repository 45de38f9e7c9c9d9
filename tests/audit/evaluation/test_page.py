"""The report of an evaluation in a real browser: offline, hostile text harmless, at any width, dark and light."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from pipeline.audit.evaluation.page import evaluation_page
from pipeline.config.selection import BandsConfig
from pipeline.evaluation.accuracy import summarize
from pipeline.evaluation.examples import EACH, examples
from pipeline.evaluation.foretold import calibration
from pipeline.evaluation.patterns import compare_patterns
from pipeline.evaluation.plots import Point
from pipeline.grpo.data.outcomes import GroupOutcome
from tests.audit.corpus import HOSTILE
from tests.audit.test_page import fits, violations
from tests.evaluation.scripted import site
from tests.evaluation.test_accuracy import CLASSES, METADATA, READINGS, SAMPLES, SITES

POLICIES = ["before", "after"]
PATTERNS = compare_patterns(["Wait, either", "wait"], ["Probably", ""], ["a", "b"])
SERIES = {"hard": [Point(0, 0.1, 0.0, 0.2), Point(20, 0.5, 0.4, 0.6)], "easy": [Point(0, 0.2, 0.1, 0.3)]}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report whose names, labels, responses and contexts all want to run or to burst the page."""
    hostile = {"h" + text: [text] * len(SITES) for text in HOSTILE}
    summary = summarize(
        SITES, CLASSES, METADATA | hostile, READINGS, {"after": SAMPLES}, POLICIES, BandsConfig(), HOSTILE[0]
    ) | {"hybrid": {}}
    shown = [
        {
            "kind": "newly right",
            "site_id": "d-1",
            "entropy": 1.5,
            "field": text,
            "context": text,
            "truth": text,
            "answers": [{"policy": text, "response": text, "reason": "match", "hit": True}],
        }
        for text in HOSTILE
    ]
    found = {
        "recipe": HOSTILE[0],
        "fingerprint": "0123456789ab",
        "policies": POLICIES,
        "template": "brief, version 1",
        "temperature": 0.0,
        "samples": 4,
        "sample_temperature": 0.8,
        "bands_by": HOSTILE[0],
        "foretold": calibration([GroupOutcome(i % 9, 0, i, i % 3 > 0, 0.5, i / 60) for i in range(60)]),
        "patterns": {"before": "before", "after": HOSTILE[0], "groups": PATTERNS},
        "scaling": {"hard": {"points": [], "law": None, "objections": [HOSTILE[0]]}},
        "published": None,
        "sets": {"headline": summary, "all": summary},
        "examples": shown,
    }
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(evaluation_page(found, SERIES), encoding="utf-8")
    return path


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_it_fits_and_is_harmless(browser: Browser, report: Path, axe: str, width: int, scheme: str) -> None:
    page: Page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    problems: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda sent: asked.append(sent.url))
    page.goto(report.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert fits(page)
    assert page.evaluate("window.pwned") is None and problems == [] and asked == [report.as_uri()]
    text = page.locator("body").inner_text()
    assert "<script>window.pwned=1</script>" in text and "U+202E" in text and "\u202e" not in text
    assert page.locator("main script, main img, [style]").count() == 0, "nothing that the policy would have to allow"
    assert page.locator("#training svg").count() == 2 and page.locator("#accuracy svg").count() == 6
    assert page.locator("#foretold circle").count() == 10 and "60 groups, steps 0 to 8" in text
    assert page.locator("#patterns circle").count() == 12 and page.locator("#patterns g.reasoning circle").count() == 6
    assert violations(page, axe) == []
    page.locator("[data-theme-toggle]").click()
    assert page.evaluate("document.documentElement.dataset.theme") == ("light" if scheme == "dark" else "dark")
    page.close()


def test_examples_are_of_every_kind() -> None:
    found = examples(SITES, range(len(SITES)), READINGS, POLICIES, seed=0)
    # reasoning before is right at the fifth site only, reasoning after at all but the last
    kinds = [example["kind"] for example in found]
    assert kinds == ["newly right"] * EACH + ["still wrong"] + ["right as before"]
    assert found[-1]["site_id"] == SITES[4].site_id and found[-2]["site_id"] == SITES[5].site_id
    assert [answer["hit"] for answer in found[0]["answers"]] == [False, True]
    assert examples(SITES, [4], READINGS, POLICIES, seed=0) == found[-1:]
    cut = site("d", 0, 1.0, "é" * 300, ["x"])
    (shown,) = examples([cut], [0], {n: r.at([0]) for n, r in READINGS.items()}, POLICIES, seed=0)
    assert shown["context"] == "…" + "é" * 200
