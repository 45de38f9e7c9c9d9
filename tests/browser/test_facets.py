"""Facets: values of metadata are counted, as lists and as paths, and a click narrows the list of documents to one."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Page, expect

from pipeline.audit.browse import facets as facets_module
from pipeline.audit.browse.facets import SEPARATOR, Facets, facets_of
from tests.browser.conftest import WIDE_AND_PHONE, Live, Walk
from tests.browser.corpus import DOMAINS, HOSTILE_VALUE


def counted(metas: list[dict[str, Any]], **chosen: str) -> dict[str, list[tuple[str, int]]]:
    """(path, documents) of what is offered, by key, over all documents."""
    made = Facets([json.dumps(meta) for meta in metas])
    ones = np.ones(len(metas), dtype=np.int64)
    assert made.ready(60)
    found = made.levels(chosen, np.arange(len(metas)), ones, ones)
    return {level.key: [(value.path, value.documents) for value in level.values] for level in found}


def test_lists_count_every_element_once_and_paths_every_level() -> None:
    metas = [
        {"domain": ["M -> A -> x", "M -> A -> y", "M -> A -> x"]},
        {"domain": ["M -> A -> x", "M -> B"]},
        {"domain": "M -> A"},
        {"domain": []},
        {"domain": ["M -> B", None]},
        {},
        {"domain": ["M -> A -> y", {"not": "a value"}]},
        *[{"domain": "M -> B"}] * 3,
    ]
    assert counted(metas)["domain"] == [("M -> B", 5), ("M -> A", 4)]  # the only first level, M, is passed over
    assert counted(metas, domain="M -> A")["domain"] == [("M -> A -> x", 2), ("M -> A -> y", 2)]
    assert counted(metas, domain="M -> B")["domain"] == []
    made = Facets([json.dumps(meta) for meta in metas])
    assert made.documents("domain", "M -> A").tolist() == [0, 1, 2, 6]
    assert made.documents("domain", "M").tolist() == [0, 1, 2, 4, 6, 7, 8, 9]
    assert made.documents("domain", "A").tolist() == made.documents("nothing", "M").tolist() == []


def test_numbers_are_in_their_order_and_what_hardly_repeats_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    metas = [
        {"level": [10, 2.5, 2][i % 3], "hard": i % 2 == 0, "id": f"n{i}", "one": "x", "pairs": i // 2, "\ud800": i % 2}
        for i in range(12)
    ]
    assert counted(metas) == {
        "level": [("2", 4), ("2.5", 4), ("10", 4)],
        "hard": [("false", 6), ("true", 6)],
        "pairs": [(str(n), 2) for n in range(6)],
    }
    monkeypatch.setattr(facets_module, "MOST_VALUES", 5)
    assert list(counted(metas)) == ["level", "hard"]


def test_kept_shares_and_counts_are_those_of_the_documents_found() -> None:
    made = Facets([json.dumps({"k": value}) for value in ("a", "b", "a", "b")])
    kept_D, positions_D = np.array([1, 2, 3, 9]), np.array([10, 4, 10, 9])
    (level,) = made.levels({}, np.array([0, 1, 2]), kept_D, positions_D)
    assert [(value.label, value.documents, value.share) for value in level.values] == [("a", 2, 20.0), ("b", 1, 50.0)]


NAMES = st.sampled_from(["a", "b", "a -> c", "a -> c -> d", "b -> ", " -> ", "a ->  -> c"])


@given(st.lists(st.lists(NAMES, max_size=3), max_size=12))
def test_a_value_finds_as_many_documents_as_its_count_says(lists: list[list[str]]) -> None:
    expected: Counter[str] = Counter()
    for values in lists:
        parts = [value.strip().split(SEPARATOR) for value in values]
        expected.update({SEPARATOR.join(own[:n]) for own in parts for n in range(1, len(own) + 1)})
    for facet in facets_of(json.dumps({"k": values}) for values in lists).values():
        assert {path: len(facet.documents(path)) for path in facet.number_of} == expected


def with_domain(live: Live, begin: str) -> int:
    """The documents with a domain that is a value or below it, counted from the tables."""
    documents = pl.read_parquet([file.path for file in live.built.documents.files("documents")])
    domains = [json.loads(meta)["domain"] for meta in documents["meta"]]
    return sum(any(f"{value} -> ".startswith(f"{begin} -> ") for value in values) for values in domains)


def row(page: Page, value: str) -> Any:
    return page.get_by_role("region", name="domain").locator("tbody tr", has=page.get_by_role("link", name=value))


@WIDE_AND_PHONE
def test_a_click_on_a_value_narrows_the_list(walk: Walk, live: Live) -> None:
    page, algebra = walk.page, with_domain(live, "Maths -> Algebra")
    everything = len(live.library.store.document_of)
    assert 0 < with_domain(live, "Maths -> Algebra -> Equations") < algebra < with_domain(live, "Maths") < everything
    walk.click(row(page, "Maths").get_by_role("link"))
    expect(page.locator(".found")).to_have_text(f"{with_domain(live, 'Maths')} of {everything} documents")
    expect(row(page, "Algebra").locator("td").first).to_have_text(str(algebra))
    walk.click(row(page, "Algebra").get_by_role("link"))
    expect(page.locator(".found")).to_have_text(f"{algebra} of {everything} documents")
    assert walk.clicks == 2
    page.get_by_label("Order").select_option(label="longest first")
    page.get_by_role("button", name="Find").click()
    expect(page.locator(".found")).to_have_text(f"{algebra} of {everything} documents")
    page.get_by_role("link", name="domain: Maths -> Algebra: remove").click()
    expect(page.locator(".found")).to_have_text(f"{everything} of {everything} documents")
    assert "order=longest" in page.url


def test_a_value_that_wants_to_break_the_page_is_text(walk: Walk, live: Live) -> None:
    page, value = walk.page, f"Maths -> {HOSTILE_VALUE}"
    assert [value in domain for domain in DOMAINS] == [False, False, True, False]
    row(page, "Maths").get_by_role("link").click()
    hostile = page.get_by_role("region", name="domain").locator("tbody a", has_text="pwned=7")
    expect(hostile).to_contain_text("<script>")
    assert "\u202e" not in hostile.inner_text()
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    hostile.click()
    expect(page.locator(".found b")).to_have_text(str(with_domain(live, value)))
    assert page.locator("main img, main b[onclick], script:not([src])").count() == 0
