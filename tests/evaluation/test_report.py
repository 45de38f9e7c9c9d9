"""Tables, Markdown and words."""

import io

import pytest
from rich.console import Console

from pipeline.config.corpus import CorpusConfig
from pipeline.config.selection import BandsConfig
from pipeline.evaluation.accuracy import summarize, table_order
from pipeline.evaluation.gate import Observed
from pipeline.evaluation.hybrid import gated, summarize_hybrid
from pipeline.evaluation.paper_results import published_rows
from pipeline.evaluation.patterns import compare_patterns
from pipeline.evaluation.report import (
    Table,
    accuracy_table,
    blocks,
    difference_table,
    hybrid_table,
    in_words,
    label_table,
    markdown,
    pattern_table,
    reason_table,
    sentences,
    spelled,
)
from pipeline.task.gate import Known
from tests.evaluation.scripted import site
from tests.evaluation.test_accuracy import CLASSES, METADATA, READINGS, SAMPLES, SITES, reading

POLICIES = ["before", "after"]


@pytest.fixture
def report():
    headline = [i for i, s in enumerate(SITES) if s.field == "solution"]
    every = list(range(len(SITES)))
    known = [Known(1.0, -1.0, 0.5, 9, b"x", " ") for _ in SITES]
    hits = [READINGS[f"{kind} after"].hits_N for kind in ("direct", "reasoning")]
    found = gated(Observed.of(known, *hits, [6] * len(SITES), [s.doc_id for s in SITES]))

    def hybrid(chosen):
        return {"hybrid": {"after": summarize_hybrid(found, [s.entropy for s in SITES], BandsConfig(), chosen)}}

    return {
        "recipe": "toy",
        "policies": POLICIES,
        "template": "brief, version 1",
        "temperature": 0.0,
        "samples": 4,
        "sample_temperature": 0.8,
        "bands_by": None,
        "scaling": {},
        "published": published_rows(CorpusConfig(source="Omni-MATH.jsonl"), BandsConfig()),
        "sets": {
            "headline": summarize(
                [SITES[i] for i in headline],
                [CLASSES[i] for i in headline],
                {},
                {name: r.at(headline) for name, r in READINGS.items()},
                {"after": SAMPLES.at(headline)},
                POLICIES,
                BandsConfig(),
                "field = 'solution'",
            )
            | hybrid(headline),
            "all": summarize(SITES, CLASSES, METADATA, READINGS, {}, POLICIES, BandsConfig(), "true") | hybrid(every),
        },
    }


def test_accuracy_table_has_a_row_a_reading_and_a_column_a_band(report):
    table = accuracy_table(report["sets"]["all"])
    assert table.header == (
        "",
        "easy > 0.5\n5 sites\n3 documents",
        "medium > 1\n3 sites\n2 documents",
        "hard > 1.5\n2 sites\n1 document",
    )
    assert [row[0] for row in table.rows] == ["direct before", "reasoning before", "reasoning after", "direct after"]
    assert [cell.split()[0] for cell in table.rows[2][1:]] == ["80.0", "66.7", "50.0"]


def test_differences_are_in_points(report):
    table = difference_table(report["sets"]["all"])
    assert [row[0] for row in table.rows] == [
        "reasoning after\n− reasoning before", "reasoning after\n− direct before", "direct after\n− direct before",
    ]  # fmt: skip
    assert [cell.split()[0] for cell in table.rows[0][1:]] == ["+60.0", "+33.3", "+0.0"]


def test_the_hybrid_stands_between_its_readings_and_the_oracle(report):
    table = hybrid_table(report["sets"]["all"])
    cells = {row[0]: row[1:] for row in table.rows}
    assert list(cells) == [
        "direct after", "reasoning after", "hybrid after", "oracle after", "hybrid thinks at after",
        "hybrid − direct after", "hybrid − reasoning after", "tokens per site after",
    ]  # fmt: skip
    assert cells["direct after"][0].startswith("40.0 [") and cells["reasoning after"][0].startswith("80.0 [")
    assert cells["tokens per site after"][0].endswith(" of 6.0")


def test_fields_and_reasons(report):
    summary = report["sets"]["all"]
    readings = list(summary["readings"].values())
    fields = label_table(summary, "field", [spelled(reading["by_field"]) for reading in readings])
    assert [row[0] for row in fields.rows] == ["(template text)\n1 site", "problem\n2 sites", "solution\n3 sites"]
    assert [row[3].split()[0] for row in fields.rows] == ["100.0", "50.0", "100.0"]  # reasoning after
    classes = label_table(summary, "token class", [spelled(reading["by_class"]) for reading in readings])
    assert [row[0].split("\n")[0] for row in classes.rows] == ["number", "space", "word"]
    reasons = {name: cells for name, *cells in reason_table(report["sets"]["all"]).rows}
    assert reasons["match"] == ["3", "1", "5", "2"] and reasons["mismatch"] == ["3", "5", "1", "4"]
    assert reasons["tokens, mean"] == ["3.5"] * 4 and reasons["tokens, longest"] == ["6.0"] * 4
    assert reasons["truncated, %"] == ["0.0"] * 4
    assert "missing" not in reasons, "a reason that no reading has"


def test_bands_without_sites_are_dashes():
    readings = {name: r.at([0, 1]) for name, r in READINGS.items()}
    summary = summarize(SITES[:2], CLASSES[:2], {}, readings, {}, POLICIES, BandsConfig(), "true")
    assert accuracy_table(summary).rows[0][2:] == ("–", "–")
    assert difference_table(summary).rows[0][2:] == ("–", "–")
    assert "hard: no sites." in list(sentences(summary))


def test_words_say_whether_intervals_overlap(report):
    lines = list(sentences(report["sets"]["headline"]))
    assert len(lines) == 9, "three comparisons, three bands"
    assert lines[0] == (
        "easy: reasoning after (100.0 %) is above reasoning before (33.3 %); the two intervals overlap, p = 0.500."
    )
    assert lines[2].startswith("hard: reasoning after (100.0 %) is equal to reasoning before (100.0 %)")
    many = [site(f"d{i}", 0, 2.0, "context", ["x"]) for i in range(40)]
    hits = dict.fromkeys(table_order(POLICIES), "1" * 40) | {"reasoning after": "0" * 40}
    readings = {name: reading(*name.split()[::-1], row) for name, row in hits.items()}
    (line, *_) = sentences(summarize(many, ["word"] * 40, {}, readings, {}, POLICIES, BandsConfig(), "true"))
    assert "reasoning after (0.0 %) is below reasoning before (100.0 %)" in line
    assert line.endswith("the two intervals do not overlap, p < 0.001.")


def test_terminal_and_markdown_hold_every_number(report):
    page = markdown(report, ("accuracy.png",))
    console = Console(file=io.StringIO(), width=88)
    tables = [block for block in blocks(report) if isinstance(block, Table)]
    assert len(tables) == 12
    assert [table.title.split(":")[1] for table in tables].count(" accuracy by `level`, % [95 % interval]") == 1
    assert [table.title for table in tables].count("The paper's Table 1: accuracy, %") == 1
    assert "| RPT-14B, reasoning | 45.11 | 33.56 | 23.75 |" in page
    for table in tables:
        console.print(table.terminal())
    printed = console.file.getvalue()
    for table in tables:
        assert table.title in page and table.title in printed
        for row in table.rows:
            for line in (line for cell in row for line in cell.split("\n")):
                assert line in page and line in printed, "no cell is broken"
    for summary in report["sets"].values():
        assert all(f"- {line}" in page for line in sentences(summary))
    assert "![held-out accuracy over training steps](accuracy.png)" in page
    assert page.startswith("# Evaluation of toy\n")
    assert "All positions: 6 sites of 3 held-out documents." in page


def test_a_where_with_a_bar_does_not_break_the_markdown_table(report):
    summary = report["sets"]["all"] | {"where": "field = 'a' || 'b'"}
    table = accuracy_table(summary)
    lines = table.markdown().splitlines()[2:]
    assert {line.replace("\\|", "").count("|") for line in lines} == {5}


def test_patterns_are_a_table_where_a_response_has_words():
    """Of two responses after training both wait, and one says "either"; before it one of them says "probably"."""
    groups = compare_patterns(["Wait, either", "wait"], ["Probably", "7"], ["a", "b"])
    rows = {group: cells for group, *cells in pattern_table("base", "rpt", groups).rows}
    assert [rows["reflection"][i].split(" ")[0] for i in range(3)] == ["0.0", "100.0", "+100.0"]
    assert [rows["hypothesis"][i].split(" ")[0] for i in range(4)] == ["50.0", "0.0", "−50.0", "−100"]
    assert rows["divergent"][3] == "–", "there was none before"
    assert in_words(groups) and not in_words(compare_patterns(["7"], ["8"], ["a"]))
