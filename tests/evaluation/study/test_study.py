"""Every figure of a study's report again from the Parquet files, with DuckDB and plain arithmetic."""

import json
import math
import random
from html.parser import HTMLParser
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.recipe import Recipe
from pipeline.config.selection import BandsConfig
from pipeline.config.study import StudyConfig
from pipeline.evaluation.responses import RESPONSES
from pipeline.evaluation.study.claims import IN_PART, NOT, REPRODUCED, UNTESTED
from pipeline.evaluation.study.report import write_report
from pipeline.evaluation.study.summary import Arm, summarize_study

SEEDS = (0, 1, 2)
RATES = {  # reasoning and direct accuracy
    "base": (0.15, 0.4), "rpt": (0.8, 0.38), "format_only": (0.18, 0.4), "random_positions": (0.5, 0.4),
    "shuffled_targets": (0.1, 0.38), "ntp": (0.05, 0.45), "sft": (0.6, 0.4),
}  # fmt: skip
BANDS = {"easy": 0.5, "medium": 1.0, "hard": 1.5}
THOUGHT = {"base": "wait, 4", "rpt": "finally, probably 7"}


def write_responses(path: Path, arm: str, policies: list[str], rng: random.Random) -> None:
    rows = []
    for policy in policies:
        for reading, rate in zip(("reasoning", "direct"), RATES[arm], strict=True):
            for i in range(240):
                hit = rng.random() < rate
                rows.append(
                    {
                        "site_id": f"s{i:03d}",
                        "doc_id": f"d{i // 2:03d}",
                        "field": "solution" if i % 4 else "problem",
                        "token_class": "number",
                        "entropy": 0.6 + i % 3 * 0.5,
                        "sets": ["headline", "all"] if i % 4 else ["all"],
                        "target": b"7" if i % 5 == 0 else f"{i}".encode(),
                        "policy": policy,
                        "reading": reading,
                        "sample": 0,
                        "prompt_ids": [1],
                        "response_ids": [2, 3],
                        "response": THOUGHT.get(arm, "so 7"),
                        "prediction": b"7",
                        "hit": hit,
                        "reason": "match" if hit else "mismatch",
                        "length": 2,
                    }
                )
    coin = random.Random(arm)
    drawn = [row for row in rows if row["reading"] == "reasoning"]
    rows += [row | {"reading": "sampled", "sample": k, "hit": coin.random() < 0.4} for row in drawn for k in range(4)]
    path.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=RESPONSES), path / "responses.parquet")


def write_run(path: Path, seed: int) -> None:
    path.mkdir(parents=True)
    lines = []
    for step in range(0, 21, 2):
        line = {"step": step, "compute/flops": 1e12 * step, "compute/seconds": 2.0 * step, "compute/tokens": 100 * step}
        for band, plateau in (("easy", 0.5), ("medium", 0.6), ("hard", 0.7)):
            value = plateau - 0.1 * (step / 20) ** -0.7 + 0.002 * (-1) ** (step // 2 + seed) if step else 0.1
            line[f"eval/{band}/reasoning"] = value
        lines.append(json.dumps(line) + "\n")
    (path / "metrics.jsonl").write_text("".join(lines))


def write_answers(path: Path, before: float, after: float, rng: random.Random) -> None:
    rows = [
        {"policy": policy, "site_id": f"q{i}", "hit": rng.random() < rate}
        for policy, rate in (("before", before), ("after", after))
        for i in rng.sample(range(100), 100)
    ]
    path.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path / "answers.parquet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out, rng = tmp_path_factory.mktemp("study"), random.Random(5)
    for arm in RATES:
        policies = ["base"] if arm == "base" else [f"{arm}-{seed}" for seed in SEEDS]
        write_responses(out / arm / "evaluation", arm, policies, rng)
        for seed in SEEDS:
            if arm != "base":
                write_run(out / arm / f"run-{seed}", seed)
            if arm in ("base", "rpt", "ntp", "sft"):
                after = {"base": 0.6, "rpt": 0.85, "ntp": 0.3, "sft": 0.86}[arm]
                write_answers(out / arm / f"rlvr-{seed}", 0.3, after, rng)
    return out


def summarized(folder: Path, seeds=SEEDS, others=()) -> dict:
    config = StudyConfig.model_validate(
        {
            "name": "toy", "manifest": "m", "recipe": "r", "finetune": "f", "seeds": seeds,
            "arms": {arm: {} for arm in RATES if arm != "base"},
        }
    )  # fmt: skip
    arms = [
        Arm(
            arm,
            folder / arm / "evaluation",
            [] if arm == "base" else [folder / arm / f"run-{seed}" for seed in SEEDS],
            [folder / arm / f"rlvr-{seed}" for seed in SEEDS] if arm in ("base", "rpt", "ntp", "sft") else [],
        )
        for arm in RATES
    ]
    recipe = Recipe.model_validate(
        {"name": "toy", "policy": {"model": "m"}, "evaluate": {"where": "field = 'solution'"}}
    )
    return summarize_study(config, [*arms, *others], recipe, BandsConfig())


@pytest.fixture(scope="module")
def study(folder) -> dict:
    return summarized(folder)


def test_accuracies_are_those_of_the_responses(study, folder):
    for name in ("headline", "all"):
        for reading_arm, bands in study["sets"][name]["accuracy"].items():
            reading, arm = reading_arm.split()
            for band, above in BANDS.items():
                rows = duckdb.sql(
                    f"SELECT avg(hit::INT), count(DISTINCT site_id) FROM '{folder}/{arm}/evaluation/responses.parquet' "
                    f"WHERE reading = '{reading}' AND entropy > {above} AND list_contains(sets, '{name}')"
                ).fetchall()[0]
                assert (bands[band]["value"], bands[band]["sites"]) == (pytest.approx(rows[0]), rows[1])
                assert bands[band]["low"] <= bands[band]["value"] <= bands[band]["high"]


def test_several_responses(study, folder):
    file = f"{folder}/rpt/evaluation/responses.parquet"
    # Of c hits in 4, pass@2 is 1 − C(4 − c, 2) / 6: 0, 1/2, 5/6, 1, 1.
    mean, two, four = duckdb.sql(
        "SELECT avg(c / 4), avg([0, 1/2, 5/6, 1, 1][c + 1]), avg((c > 0)::INT) FROM (SELECT sum(hit::INT)::INT c FROM "
        f"'{file}' WHERE reading = 'sampled' AND entropy > 1.5 AND list_contains(sets, 'all') GROUP BY site_id, policy)"
    ).fetchall()[0]
    found = study["sets"]["all"]["samples"]
    values = [found[f"{statistic} rpt"]["hard"]["value"] for statistic in ("mean", "pass@2", "pass@4")]
    assert values == pytest.approx([mean, float(two), four])


def test_intervals_over_seeds_by_hand(study, folder):
    """Mean ± t · se, se² = between documents + between seeds, from grouped queries."""
    table = (
        f"'{folder}/rpt/evaluation/responses.parquet' WHERE reading = 'reasoning' AND list_contains(sets, 'headline')"
    )
    runs = [r[0] for r in duckdb.sql(f"SELECT avg(hit::INT) FROM {table} GROUP BY policy").fetchall()]
    mean = sum(runs) / 3
    seeds = sum((run - mean) ** 2 for run in runs) / 2 / 3
    documents = duckdb.sql(f"SELECT sum(hit::INT) / 3, count(DISTINCT site_id) FROM {table} GROUP BY doc_id").fetchall()
    sites, count = sum(n for _, n in documents), len(documents)
    between = count / (count - 1) * sum((hits - mean * n) ** 2 for hits, n in documents) / sites**2
    freedom = (between + seeds) ** 2 / (between**2 / (count - 1) + seeds**2 / 2)
    from scipy.stats import t

    reach = t.ppf(0.975, freedom) * math.sqrt(between + seeds)
    found = study["sets"]["headline"]["accuracy"]["reasoning rpt"]["easy"]
    assert (found["value"], found["low"], found["high"]) == pytest.approx((mean, mean - reach, mean + reach))


def test_differences_pair_sites_and_not_seeds(study, folder):
    (change,) = [
        d
        for d in study["sets"]["headline"]["differences"]
        if (d["reading"], d["baseline"]) == ("reasoning rpt", "reasoning sft")
    ]
    accuracy = study["sets"]["headline"]["accuracy"]
    for band, found in change["bands"].items():
        own, other = (accuracy[f"reasoning {arm}"][band]["value"] for arm in ("rpt", "sft"))
        assert found["value"] == pytest.approx(own - other)
        assert found["low"] < found["value"] < found["high"]


def test_chance_is_the_most_frequent_target(study, folder):
    for band, above in BANDS.items():
        most, sites = duckdb.sql(
            f"SELECT max(n), sum(n) FROM (SELECT count(*) n FROM '{folder}/base/evaluation/responses.parquet' WHERE "
            f"reading = 'direct' AND entropy > {above} AND list_contains(sets, 'headline') GROUP BY target)"
        ).fetchall()[0]
        assert study["sets"]["headline"]["chance"][band] == pytest.approx(most / sites)


def test_questions_before_and_after(study, folder):
    for arm, found in study["finetuned"]["accuracy"].items():
        for when in ("before", "after"):
            (share,) = duckdb.sql(
                f"SELECT avg(hit::INT) FROM '{folder}/{arm}/rlvr-*/answers.parquet' WHERE policy = '{when}'"
            ).fetchall()[0]
            assert found[when]["value"] == pytest.approx(share)
    gain = study["finetuned"]["gains"]["rpt"]["value"]
    own = study["finetuned"]["accuracy"]["rpt"]
    assert gain == pytest.approx(own["after"]["value"] - own["before"]["value"])


def test_compute_and_scaling_are_those_of_the_metrics(study):
    assert study["compute"]["rpt"] == {"flops": 2e13, "seconds": 40.0, "tokens": 2000.0}
    hard = study["scaling"]["hard"]
    assert hard["points"][0][0] == 0 and len(hard["points"]) == 11
    assert hard["law"]["plateau"]["low"] < 0.7 < hard["law"]["plateau"]["high"]
    assert hard["law"]["alpha"]["low"] < 0.7 < hard["law"]["alpha"]["high"] and not hard["objections"]


def test_patterns_and_traces(study, folder):
    shares = {name: (g["after"]["value"], g["before"]["value"]) for name, g in study["patterns"].items()}
    assert shares["deduction"] == shares["hypothesis"] == (1.0, 0.0) and shares["reflection"] == (0.0, 1.0)
    assert study["traces"] and all(
        t["after"] == THOUGHT["rpt"] and t["before"] == THOUGHT["base"] for t in study["traces"]
    )


def test_verdicts_follow_the_intervals(study):
    verdicts = {claim["claim"]: claim["verdict"] for claim in study["claims"]}

    def verdict(beginning):
        (found,) = [v for claim, v in verdicts.items() if claim.startswith(beginning)]
        return found

    assert verdict("Before training, reasoning") == REPRODUCED
    assert verdict("RPT raises") == REPRODUCED
    assert verdict("After RPT, reasoning is above") == REPRODUCED
    assert verdict("Accuracy follows") == REPRODUCED
    assert verdict("RPT also improves the policy's direct") == NOT
    assert verdict("Before RL on questions") == NOT, "0.3 in both"
    assert verdict("After RL on questions, RPT's policy answers more") == REPRODUCED
    assert verdict("After RL on questions, RPT's policy is above one with supervised") == NOT
    assert verdict("RPT's gain is more than learning the form") == REPRODUCED
    assert verdict("With shuffled targets, reasoning does not rise above chance") == REPRODUCED
    assert verdict("With shuffled targets, reasoning does not rise above a guess") == REPRODUCED
    assert verdict("RPT's reasoning predicts as well") == verdict("RPT improves zero-shot") == UNTESTED
    assert IN_PART not in verdicts.values()


def test_a_control_above_chance_is_seen(study, folder, tmp_path):
    from pipeline.evaluation.study.claims import judge

    broken = json.loads(json.dumps(study))
    for band in broken["sets"]["headline"]["accuracy"]["reasoning shuffled_targets"].values():
        band["low"] = 0.9
    for change in broken["sets"]["headline"]["differences"]:
        if (change["reading"], change["baseline"]) == ("reasoning shuffled_targets", "direct base"):
            change["bands"]["easy"]["low"] = 0.1
    of_chance, of_a_guess = (c for c in judge(broken) if c.claim.startswith("With shuffled"))
    assert (of_chance.verdict, of_a_guess.verdict) == (NOT, IN_PART)


@pytest.mark.parametrize(
    ("lows", "verdict"),
    [((-0.0499, 0.2, 0.1), REPRODUCED), ((-0.05, 0.2, 0.1), IN_PART), ((-0.05, -0.2, -0.051), NOT)],
)
def test_as_well_as_a_larger_model_is_at_most_five_points_behind(study, lows, verdict):
    from pipeline.evaluation.study.claims import judge

    bands = {name: {"value": low + 0.03, "low": low, "high": low + 0.06} for name, low in zip(BANDS, lows, strict=True)}
    against = {"reading": "reasoning rpt", "baseline": "direct larger", "bands": bands}
    headline = study["sets"]["headline"]
    headline = headline | {"differences": [*headline["differences"], against]}
    (claim,) = [c for c in judge(study | {"sets": study["sets"] | {"headline": headline}}) if c.source == "Figure 4"]
    assert claim.verdict == verdict and "reasoning rpt − direct larger" in claim.why


def test_a_larger_model_is_one_policy_beside_arms_of_several_seeds(folder, tmp_path):
    write_responses(tmp_path / "evaluation", "base", ["larger"], random.Random(1))
    found = summarized(folder, others=[Arm("larger", tmp_path / "evaluation")])
    (claim,) = [claim for claim in found["claims"] if claim["source"] == "Figure 4"]
    assert claim["verdict"] == REPRODUCED, "0.8 by reasoning against 0.4"
    assert "direct larger" in found["sets"]["headline"]["accuracy"] and "larger" not in found["compute"]


def test_two_seeds_test_nothing(folder):
    claims = summarized(folder, seeds=(0, 1))["claims"]
    assert {claim["verdict"] for claim in claims} == {UNTESTED}
    assert any("2 seeds, at least 3 are needed" in claim["why"] for claim in claims)


def test_the_report_holds_every_figure_and_loads_nothing(study, tmp_path):
    class Reader(HTMLParser):
        def __init__(self):
            super().__init__()
            self.text, self.loads = "", []

        def handle_data(self, data):
            self.text += data

        def handle_starttag(self, tag, attributes):
            self.loads += [v for k, v in attributes if k in ("src", "href") and v and not v.startswith("#")]
            assert tag not in ("script", "link", "img", "iframe")

    page = write_report(study, tmp_path)
    reader = Reader()
    reader.feed(page.read_text())
    words = (tmp_path / "report.md").read_text()
    assert not [link for link in reader.loads if not link.startswith("#")]
    for reading, bands in study["sets"]["headline"]["accuracy"].items():
        for band in bands.values():
            shown = f"{100 * band['value']:.1f} [{100 * band['low']:.1f}, {100 * band['high']:.1f}]"
            assert reading in words and shown in words and shown in reader.text
    for claim in study["claims"]:
        assert claim["claim"] in words and claim["verdict"] in words and claim["claim"] in reader.text
    assert (tmp_path / "scaling.svg").exists() and (tmp_path / "arms.svg").exists()
    again = tmp_path / "again"
    again.mkdir()
    write_report(json.loads(json.dumps(study)), again)
    assert (again / "report.md").read_text() == words, "a function of study.json"
