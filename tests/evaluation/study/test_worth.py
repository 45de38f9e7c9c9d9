"""What a selection is worth: power and verdicts by hand, curves by hand, and every figure of a report."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import nct, t

from pipeline.config.selection import BandsConfig
from pipeline.evaluation.intervals import Difference
from pipeline.evaluation.responses import RESPONSES
from pipeline.evaluation.study.power import detectable
from pipeline.evaluation.study.summary import Arm
from pipeline.evaluation.study.worth import (
    curve_of,
    gradient_verdict,
    power_of,
    sampling_of,
    sentence,
    summarize_worth,
    verdict_of,
)
from pipeline.evaluation.study.worth_report import write_report


def measured(value: float, reach: float, sees: float | None, seeds: int | None = 9) -> Difference:
    return Difference(value, value - reach, value + reach, reach / 2, 100, 50, 0.1, sees, seeds)


def test_nine_seeds_and_1400_sites_see_five_points() -> None:
    power = power_of(np.arange(1400).astype(str), 9, see=0.05, spread=0.02)
    # documents: 1/4 / 1400; two arms: 0.02² / 9 each
    documents, seeds = 0.25 / 1400, 0.02**2 / 9
    error, freedom = documents + 2 * seeds, (documents + 2 * seeds) ** 2 / (documents**2 / 1399 + 2 * seeds**2 / 8)
    seen = 1 - nct.cdf(t.ppf(0.975, freedom), freedom, power.detectable / math.sqrt(error))
    assert seen == pytest.approx(0.8, abs=1e-3) and 0.045 < power.detectable < 0.05
    assert power.needed is not None and power.needed <= 9
    assert power.says().startswith("9 seeds and 1,400 sites of 1,400 documents see a true difference of 4.6 points")


def test_sites_of_one_document_count_for_less() -> None:
    apart, together = (power_of(np.arange(800) // n, 9, see=0.05, spread=0.02) for n in (1, 4))  # type: ignore[arg-type]
    assert (together.documents, together.sites) == (200, 800) and together.detectable > apart.detectable
    # 1 + 0.1 · (4 − 1): the variance between documents is 1.3 times as large; alone it has their degrees of freedom
    alone = power_of(np.arange(800) // 4, 9, see=0.05, spread=0.0)  # type: ignore[arg-type]
    assert alone.detectable == pytest.approx(detectable(math.sqrt(1.3 * 0.25 / 800), 199))
    few = power_of(np.arange(100).astype(str), None, see=0.05, spread=0.02)
    assert few.needed is None and few.seeds == 100 and few.detectable > 0.05, "seeds alone do not suffice"
    many = power_of(np.arange(2000).astype(str), None, see=0.05, spread=0.02)
    assert many.seeds == many.needed and many.detectable <= 0.05


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (measured(0.10, 0.05, 0.07), "better"),
        (measured(-0.10, 0.05, 0.07), "worse"),
        (measured(0.06, 0.05, 0.07), "not told apart"),  # clear, and smaller than what can be seen
        (measured(0.02, 0.05, 0.07), "not told apart"),
        (measured(0.01, 0.03, 0.045), "as good"),
        (measured(0.03, 0.02, 0.025), "better"),  # a small difference that is seen
        (measured(0.0, 0.05, 0.07), "not told apart"),  # the interval touches five points
        (measured(0.5, 0.1, None), "not told apart"),  # nobody knows what it sees
    ],
)
def test_verdicts_by_hand(change: Difference, verdict: str) -> None:
    assert verdict_of(change, 0.05) == verdict


def test_an_open_verdict_says_what_it_takes() -> None:
    says = sentence("hard", "all", measured(0.03, 0.06, 0.08, 14), 0.05)
    assert says == (
        "`hard` and `all` are not told apart: +3.0 points [−3.0, 9.0]. The smallest difference that this comparison "
        "sees is 8.0 points; to see 5 points takes 14 seeds."
    )
    assert "takes more sites" in sentence("hard", "all", measured(0.03, 0.06, 0.08, None), 0.05)


def test_every_verdict_says_what_the_comparison_sees() -> None:
    says = [sentence("hard", "all", measured(*of), 0.05) for of in ((-0.1, 0.05, 0.07), (0.01, 0.03, 0.045))]
    power = "The smallest difference that this comparison sees is"
    assert says == [
        f"`hard` is worse than `all`: −10.0 points [−15.0, −5.0]. {power} 7.0 points.",
        f"`hard` is as good as `all`, to within 5 points: +1.0 points [−2.0, 4.0]. {power} 4.5 points.",
    ]


def test_the_shares_of_groups_with_a_gradient_are_told_apart_by_their_seeds() -> None:
    """0.40 ± 0.01 and 0.60 ± 0.01 over three seeds: the error is √(2 · 0.01² / 3), Student's t has 4 degrees."""
    few, many, wide = np.array([0.39, 0.40, 0.41]), np.array([0.59, 0.60, 0.61]), np.array([0.30, 0.45, 0.90])
    live = {"uniform": few, "foretold": many, "wild": wide, "none": np.zeros(3), "nothing": np.zeros(3)}
    found = gradient_verdict("foretold", "uniform", live, 0.05)
    error = math.sqrt(2 * 0.01**2 / 3)
    assert found["verdict"] == "better" and found["value"] == pytest.approx(0.2)
    assert found["high"] == pytest.approx(0.2 + t.ppf(0.975, 4) * error)
    assert found["detectable"] == pytest.approx(detectable(error, 4))
    assert found["says"].startswith("Groups with a gradient: `foretold` is better than `uniform`: +20.0 points [17.7,")
    assert gradient_verdict("uniform", "foretold", live, 0.05)["verdict"] == "worse"
    wild = gradient_verdict("wild", "uniform", live, 0.05)
    assert wild["verdict"] == "not told apart" and wild["value"] == pytest.approx(0.15)
    assert gradient_verdict("none", "nothing", live, 0.05)["verdict"] == "not told apart", "nothing varied: unknown"


def write_run(folder: Path, points: list[tuple[int, float]]) -> Path:
    folder.mkdir(parents=True)
    rows = [{"step": i, "compute/sampled": spent, "eval/easy/reasoning": p} for i, (spent, p) in enumerate(points)]
    rows.insert(
        1, {"step": 9, "compute/sampled": 17, "groups/sampled": 8, "groups/zero_variance": 0.25}
    )  # not measured
    rows[-1] |= {"groups/sampled": 24, "groups/zero_variance": 0.75}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_curves_compare_at_equal_sampled_tokens(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "0", [(0, 0.1), (100, 0.3), (200, 0.5)]),
        write_run(tmp_path / "1", [(0, 0.1), (50, 0.1), (250, 0.7)]),
    ]
    curve = curve_of(Arm("a", tmp_path, runs), "easy", 200)
    assert [point["tokens"] for point in (curve[0], curve[10], curve[20])] == [0, 100, 200]
    assert [point["value"] for point in (curve[0], curve[10], curve[20])] == pytest.approx([0.1, 0.275, 0.525])
    # at 200 tokens 0.5 and 0.55: standard deviation 0.05 / √2, error 0.025, t of one degree of freedom
    assert curve[20]["high"] == pytest.approx(0.525 + t.ppf(0.975, 1) * 0.025)
    assert curve[20]["low"] == pytest.approx(0.525 - t.ppf(0.975, 1) * 0.025)


def test_what_the_sampled_tokens_came_to(tmp_path: Path) -> None:
    """The baseline's runs end at 0.5 and 0.6; the other's first run gets there after 100 tokens, its second never."""
    baseline = [write_run(tmp_path / f"a{s}", [(0, 0.1), (100, 0.2), (200, end)]) for s, end in enumerate((0.5, 0.6))]
    other = [write_run(tmp_path / "b0", [(0, 0.1), (80, 0.3), (120, 0.7), (200, 0.4)]),
             write_run(tmp_path / "b1", [(0, 0.1), (200, 0.59)])]  # fmt: skip
    third = [write_run(tmp_path / f"c{s}", [(0, 0.1), (200, end)]) for s, end in enumerate((0.9, 1.1))]
    arms = [Arm(name, tmp_path, runs) for name, runs in (("a", baseline), ("b", other), ("c", third))]
    found = sampling_of(arms, "easy", 200)
    assert found["a"]["to_baseline"]["by_seed"] == [1, 1]
    assert found["b"]["to_baseline"] == {
        "by_seed": [pytest.approx(0.5), None],
        "value": None,
        "low": None,
        "high": None,
    }
    # 0.4 of 0.8 and 0.5 of 1.0: both halfway
    assert found["c"]["to_baseline"]["by_seed"] == pytest.approx([0.5, 0.5])
    assert found["c"]["to_baseline"]["value"] == found["c"]["to_baseline"]["high"] == pytest.approx(0.5)
    # 6 of 8 groups and 6 of 24
    assert {name: own["gradient"]["value"] for name, own in found.items()} == {"a": 12 / 32, "b": 12 / 32, "c": 12 / 32}


def write_responses(folder: Path, rates: dict[str, float], sites: int = 200) -> None:
    """At site i of 200 a policy of rate r is right if i·r passes a whole number: r of the sites, spread evenly."""
    rows = []
    for policy, rate in rates.items():
        for i in range(sites):
            row = {
                "site_id": f"s{i:03d}", "doc_id": f"d{i // 2:03d}", "field": "text", "token_class": "number",
                "entropy": 0.6 + i % 2, "sets": ["all"], "target": b"7", "policy": policy, "sample": 0,
                "prompt_ids": [1], "response_ids": [2], "response": "7", "prediction": b"7", "length": 1,
            }  # fmt: skip
            for reading, right in (("reasoning", int((i + 1) * rate) > int(i * rate)), ("direct", False)):
                rows.append(row | {"reading": reading, "hit": right, "reason": "match" if right else "mismatch"})
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=RESPONSES), folder / "responses.parquet")


def test_a_report_has_the_verdicts_and_every_figure(tmp_path: Path) -> None:
    arms = [Arm("base", tmp_path / "base")]
    write_responses(tmp_path / "base", {"base": 0.1})
    for name, rate in {"all": 0.3, "hard": 0.6, "odd": 0.3}.items():
        seeds = [rate + shift for shift in (-0.01, 0.0, 0.01)]
        write_responses(tmp_path / name, {f"{name}-{seed}": r for seed, r in enumerate(seeds)})
        runs = [write_run(tmp_path / name / f"run-{seed}", [(0, 0.1), (210, r)]) for seed, r in enumerate(seeds)]
        arms.append(Arm(name, tmp_path / name, runs))
    rules = {"all": "true", "hard": "entropy > 1.5", "odd": "odd.yaml"}
    power = power_of(np.arange(200).astype(str), 3, see=0.2, spread=0.02)
    found = summarize_worth(arms, rules, BandsConfig(), power, "easy", 200)
    verdicts = [(c["selection"], c["baseline"], c["verdict"]) for c in found["comparisons"]]
    assert verdicts == [("hard", "all", "better"), ("odd", "all", "as good")]
    assert found["accuracy"]["hard"]["easy"]["value"] == pytest.approx(0.6, abs=0.005)
    assert found["accuracy"]["base"]["easy"]["value"] == pytest.approx(0.1)
    assert found["band_sites"] == {"easy": 200, "medium": 100, "hard": 100}
    assert found["spread"] == pytest.approx(0.01, abs=0.003)
    page = write_report(json.loads(json.dumps(found)), tmp_path).read_text()
    for text in (
        "Accuracy: `hard` is better than `all`",
        "`odd` is as good as `all`, to within 20 points",
        "hard − all",
        "never in",
        "groups with a gradient",
    ):
        assert text in page
    assert "<title>What the selections are worth" in page and (tmp_path / "curves.svg").is_file()
