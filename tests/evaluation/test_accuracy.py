"""Accuracy by band and field, differences and reasons: hand-counted."""

import json

import pytest

from pipeline.config.selection import BandsConfig
from pipeline.evaluation.accuracy import accuracy_by_band, band_members, comparisons, summarize, table_order
from pipeline.evaluation.intervals import difference, proportion
from pipeline.evaluation.predictions import Prediction, Predictions, Samples
from pipeline.task.reward import Outcome
from tests.evaluation.scripted import outcome, site

# Six sites of three documents; entropies on thresholds belong to no band above (the paper's "exceeds").
ENTROPIES = [0.5, 0.7, 1.0, 1.2, 1.6, 9.0]
DOCUMENTS = ["d0", "d0", "d1", "d1", "d2", "d2"]
CLASSES = ["number", "word", "word", "number", "word", "space"]
METADATA = {"level": ["10", "2.5", "2.5", "(no value)", "2.5", "10"]}
FIELDS = ["problem", "solution", "solution", "", "solution", "problem"]
SITES = [
    site(d, i, entropy, "context", ["x"], field)
    for i, (d, entropy, field) in enumerate(zip(DOCUMENTS, ENTROPIES, FIELDS, strict=True))
]


def reading(policy, kind, hits):
    answers = tuple(Prediction((1, 2), (3,) * (i + 1), b"", outcome(hit == "1")) for i, hit in enumerate(hits))
    return Predictions(policy, kind, answers)


READINGS = {
    r.name: r
    for r in (
        reading("before", "direct", "011010"),
        reading("before", "reasoning", "000010"),
        reading("after", "reasoning", "111110"),
        reading("after", "direct", "010010"),
    )
}

# Four responses to each site; of the easy ones 4, 1, 0, 2 and 2 are hits.
SAMPLES = Samples(
    "after",
    4,
    tuple(
        tuple(Prediction((1, 2), (3,), b"", outcome(hit == "1")) for hit in hits)
        for hits in ("0000", "1111", "0100", "0000", "1010", "1001")
    ),
)


def test_bands_are_nested_and_strict():
    members = {band: member.astype(int).tolist() for band, member in band_members(ENTROPIES, BandsConfig()).items()}
    assert members == {"easy": [0, 1, 1, 1, 1, 1], "medium": [0, 0, 0, 1, 1, 1], "hard": [0, 0, 0, 0, 1, 1]}
    assert list(band_members([], BandsConfig(easy=0.1, medium=0.2, hard=0.3))) == ["easy", "medium", "hard"]


def test_summary():
    summary = summarize(SITES, CLASSES, METADATA, READINGS, {}, ["before", "after"], BandsConfig(), "field = 'x'")
    assert (summary["sites"], summary["documents"], summary["where"]) == (6, 3, "field = 'x'")
    assert summary["bands"] == {
        "easy": {"above": 0.5, "sites": 5, "documents": 3},
        "medium": {"above": 1.0, "sites": 3, "documents": 2},
        "hard": {"above": 1.5, "sites": 2, "documents": 1},
    }
    values = {
        name: [e["value"] for e in r["accuracy"].values()] for name, r in summary["readings"].items()
    }  # easy of 5, medium of 3, hard of 2
    assert values == {
        "direct before": [3 / 5, 1 / 3, 1 / 2],
        "reasoning before": [1 / 5, 1 / 3, 1 / 2],
        "reasoning after": [4 / 5, 2 / 3, 1 / 2],
        "direct after": [2 / 5, 1 / 3, 1 / 2],
    }
    by_field = summary["readings"]["reasoning after"]["by_field"]
    assert {field: (e["value"], e["sites"], e["documents"]) for field, e in by_field.items()} == {
        "": (1.0, 1, 1),
        "problem": (0.5, 2, 2),
        "solution": (1.0, 3, 3),
    }
    by_level = summary["readings"]["reasoning after"]["by_metadata"]["level"]
    assert [(level, e["value"], e["sites"], e["documents"]) for level, e in by_level.items()] == [
        ("2.5", 1.0, 3, 3), ("10", 0.5, 2, 2), ("(no value)", 1.0, 1, 1),
    ]  # fmt: skip
    after = summary["readings"]["reasoning after"]
    assert after["reasons"] == {
        "match": 5, "mismatch": 1, "off_boundary": 0, "longer_than_continuation": 0, "empty": 0, "missing": 0,
        "unfinished": 0,
    }  # fmt: skip
    assert after["mean_length"] == (1 + 2 + 3 + 4 + 5 + 6) / 6
    assert json.loads(json.dumps(summary)) == summary, "plain JSON values"


def test_summary_compares_after_with_both_readings_before():
    summary = summarize(SITES, CLASSES, METADATA, READINGS, {}, ["before", "after"], BandsConfig(), "true")
    over_reasoning, over_direct, direct_over_direct = summary["differences"]
    assert (over_reasoning["reading"], over_reasoning["baseline"]) == ("reasoning after", "reasoning before")
    assert [d["value"] for d in over_reasoning["bands"].values()] == pytest.approx([3 / 5, 1 / 3, 0])
    assert (over_direct["reading"], over_direct["baseline"]) == ("reasoning after", "direct before")
    assert [d["value"] for d in over_direct["bands"].values()] == pytest.approx([1 / 5, 1 / 3, 0])
    easy = slice(1, None)
    expected = difference(
        READINGS["reasoning after"].hits_N[easy], READINGS["direct before"].hits_N[easy], DOCUMENTS[easy]
    )
    assert over_direct["bands"]["easy"]["low"] == expected.low
    assert over_direct["bands"]["easy"]["standard_error"] == expected.standard_error
    assert all(d["intervals_overlap"] for d in over_direct["bands"].values())
    assert over_direct["bands"]["hard"]["standard_error"] is None  # one document
    assert (direct_over_direct["reading"], direct_over_direct["baseline"]) == ("direct after", "direct before")
    # gains of the three documents at easy sites: 1, 2, 0; of the four sums of signs two are as far from 0 as 3
    assert over_reasoning["bands"]["easy"]["p_value"] == 0.5
    assert over_reasoning["bands"]["hard"]["p_value"] == 1.0


def test_classes_format_failures_and_lengths():
    missing = Prediction((1,), (3,) * 9, b"", Outcome(0.0, "missing"))
    readings = READINGS | {
        "reasoning after": Predictions("after", "reasoning", (missing, *READINGS["reasoning after"].answers_N[1:]))
    }
    summary = summarize(SITES, CLASSES, METADATA, readings, {}, ["before", "after"], BandsConfig(), "true")
    after = summary["readings"]["reasoning after"]
    by_class = {name: (e["value"], e["sites"], e["documents"]) for name, e in after["by_class"].items()}
    assert by_class == {"number": (0.5, 2, 2), "space": (0.0, 1, 1), "word": (1.0, 3, 3)}
    assert (after["format_failures"]["value"], after["truncated"]["value"]) == (1 / 6, 0.0)
    assert after["length_quantiles"] == pytest.approx([4.5, 8.25, 9.0])  # of 2, 3, 4, 5, 6, 9


def test_several_responses():
    summary = summarize(
        SITES, CLASSES, METADATA, READINGS, {"after": SAMPLES}, ["before", "after"], BandsConfig(), "true"
    )
    by_band = summary["samples"]["sampled after"]
    values = {band: {name: e["value"] for name, e in found.items()} for band, found in by_band.items()}
    # pass@2 of 4, 1, 0, 2, 2 hits in four: 1, 1 − 3/6, 0, 1 − 1/6, 1 − 1/6
    assert values["easy"] == pytest.approx({"mean": 9 / 20, "pass@2": (1 + 1 / 2 + 5 / 6 + 5 / 6) / 5, "pass@4": 4 / 5})
    assert values["hard"] == pytest.approx({"mean": 1 / 2, "pass@2": 5 / 6, "pass@4": 1.0})
    nothing = summarize([], [], {}, {n: r.at([]) for n, r in READINGS.items()}, {"after": SAMPLES.at([])},
                        ["before", "after"], BandsConfig(), "true")  # fmt: skip
    assert set(nothing["samples"]["sampled after"]["hard"].values()) == {None}


def test_overlap_is_that_of_the_two_intervals():
    many = [site(f"d{i}", 0, 2.0, "context", ["x"]) for i in range(40)]
    hits = dict.fromkeys(table_order(["before", "after"]), "0" * 40) | {"reasoning after": "1" * 40}
    readings = {name: reading(*name.split()[::-1], row) for name, row in hits.items()}
    summary = summarize(many, ["word"] * 40, {}, readings, {}, ["before", "after"], BandsConfig(), "true")
    assert not summary["differences"][0]["bands"]["hard"]["intervals_overlap"]


def test_bands_and_sets_without_sites_have_no_accuracy():
    easy_only = SITES[:2]
    readings = {name: r.at([0, 1]) for name, r in READINGS.items()}
    summary = summarize(easy_only, CLASSES[:2], {}, readings, {}, ["before", "after"], BandsConfig(), "true")
    assert summary["readings"]["direct before"]["accuracy"]["hard"] is None
    assert summary["differences"][0]["bands"]["hard"] is None
    nothing = summarize(
        [], [], {}, {n: r.at([]) for n, r in READINGS.items()}, {}, ["before", "after"], BandsConfig(), "true"
    )
    assert set(nothing["readings"]["direct before"]["accuracy"].values()) == {None}
    assert nothing["readings"]["direct before"]["mean_length"] is None


def test_intervals_are_clustered_by_document():
    hits = READINGS["reasoning after"].hits_N
    easy = accuracy_by_band(hits, SITES, BandsConfig())["easy"]
    assert easy == proportion(hits[1:], DOCUMENTS[1:]) != proportion(hits[1:], [str(i) for i in range(5)])


def test_one_policy_is_compared_with_its_own_direct_reading():
    assert table_order(["model"]) == ["direct model", "reasoning model"]
    assert comparisons(["model"]) == [("reasoning model", "direct model")]
    assert len(comparisons(["a", "b", "c"])) == 6
    assert table_order(["a", "b", "c"]) == [
        "direct a", "reasoning a", "reasoning b", "reasoning c", "direct b", "direct c",
    ]  # fmt: skip
