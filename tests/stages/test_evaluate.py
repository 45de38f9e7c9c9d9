"""The evaluate page on real shards and policies whose answers are known: accuracies counted by hand."""

import json
import math
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.errors import UserError
from pipeline.config.recipe import PolicyConfig, Recipe
from pipeline.config.selection import BandsConfig
from pipeline.core.artifact import Record, Shard, publish, scratch_folder, write_record
from pipeline.core.parquet import write_rows
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.evaluation.gate import fold_of
from pipeline.evaluation.held_out import site_labels
from pipeline.evaluation.policies import named_policies
from pipeline.evaluation.report import in_words
from pipeline.evaluation.responses import RESPONSES
from pipeline.grpo.run.spec import write_spec
from pipeline.selection.metadata import metadata_fields
from pipeline.shards.schema import SHARDS
from stages.evaluate import EvaluateSpec, evaluate
from tests.evaluation.scripted import END, as_row, reasoner, save_policy, site, tie

# A document a line; the policies below predict by the context's last byte, or always box the same answer.
SITES = [
    site("d0", 5, 2.0, "2 + 2 =", ["4", "."], "solution"),
    site("d0", 9, 0.7, "2 + 2 =4.", [" ", "T"], "solution"),
    site("d1", 5, 1.2, "4 + 3 =", ["7", "."], "solution"),
    site("d1", 9, 0.6, "4 + 3 =7. S", ["e", "v"], "problem"),
    site("d2", 4, 1.1, "Find 4 =", ["7", "="], "problem"),
    site("d2", 9, 1.7, "Find 4 =7=", ["7", " "], "solution"),
    site("d3", 1, 0.4, "数", ["学", "7"], "solution"),
]


def shards_of(folder: Path, *parts: list, metadata: dict | None = None, of_document: dict | None = None) -> Record:
    """A record of materialize whose shards hold the sites, with the declared metadata of their documents."""
    schema = pa.schema([*SHARDS, *metadata_fields(metadata or {})])
    shards = [Shard(i, {}, {}) for i in range(len(parts))]
    for shard, sites in zip(shards, parts, strict=True):
        with scratch_folder(folder, shard.index) as scratch:
            if sites:
                rows = (as_row(one) | (of_document or {}).get(one.doc_id, {}) for one in sites)
                write_rows(scratch / "validation.parquet", schema, rows)
            publish(folder, shard.index, scratch, {}, 0.0)
    return write_record(folder, "materialize", 1, {"max_context_tokens": 64}, {}, shards)


@pytest.fixture(scope="module")
def policies(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("policies")
    return {
        # direct: "4" after "=", a space after a full stop, else "e"; reasoning: "4" always
        "before": reasoner(folder / "before", "4", {"=": "4", ".": " "}, "e"),
        # direct: "e" always; reasoning: "7" always
        "after": reasoner(folder / "after", "7", {}, "e"),
    }


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Record:
    return shards_of(tmp_path_factory.mktemp("work") / "materialize" / "0123456789ab", SITES[:3], [], SITES[3:])


def recipe_with(**evaluate_settings) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "toy",
            "policy": {"model": "unused", "dtype": "float32"},
            "task": {"template": "brief"},
            "rollout": {"max_new_tokens": 8, "batch_rows": 3},
            "evaluate": {"where": "field = 'solution'"} | evaluate_settings,
        }
    )


def accuracies(summary):
    return {
        name: [estimate and (round(estimate["value"] * estimate["sites"]), estimate["sites"])
               for estimate in reading["accuracy"].values()]
        for name, reading in summary["readings"].items()
    }  # fmt: skip


def test_accuracies_counted_by_hand(policies, shards, tmp_path, capsys):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(
        '{"step": 0, "eval/hard/reasoning": 0.1, "eval/hard/reasoning_low": 0.0, "eval/hard/reasoning_high": 0.2}\n'
    )
    out = tmp_path / "evaluation"
    report = evaluate(policies, recipe_with(), BandsConfig(), shards, out=out, metrics=metrics, full=True)
    # (hits, sites) in easy > 0.5, medium > 1.0, hard > 1.5
    assert accuracies(report["sets"]["all"]) == {
        "direct before": [(3, 6), (1, 4), (1, 2)],  # "4", " " and "e" are right once each
        "reasoning before": [(1, 6), (1, 4), (1, 2)],
        "reasoning after": [(3, 6), (3, 4), (1, 2)],
        "direct after": [(1, 6), (0, 4), (0, 2)],
    }
    assert accuracies(report["sets"]["headline"]) == {
        "direct before": [(2, 4), (1, 3), (1, 2)],
        "reasoning before": [(1, 4), (1, 3), (1, 2)],
        "reasoning after": [(2, 4), (2, 3), (1, 2)],
        "direct after": [(0, 4), (0, 3), (0, 2)],
    }
    assert (report["sets"]["all"]["sites"], report["sets"]["headline"]["sites"]) == (7, 5)
    by_class = report["sets"]["all"]["readings"]["reasoning after"]["by_class"]
    assert {name: (e["value"], e["sites"]) for name, e in by_class.items()} == {"word_start": (3 / 7, 7)}
    assert (report["template"], report["temperature"], report["policies"]) == (
        "brief, version 1", 0.0, ["before", "after"],
    )  # fmt: skip
    printed = " ".join(capsys.readouterr().out.split())  # lines end where the width says
    assert "Positions where field = 'solution': accuracy" in printed
    assert "All positions: accuracy" in printed
    assert "the two intervals overlap" in printed
    assert json.loads((tmp_path / "evaluation" / "evaluation.json").read_text()) == report
    assert report["scaling"]["hard"]["objections"], "a point is no law"
    assert "no law is claimed" in printed
    assert "![held-out" in (tmp_path / "evaluation" / "evaluation.md").read_text()
    assert {p.name for p in (tmp_path / "evaluation").iterdir()} == {
        "accuracy.png", "accuracy.svg", "evaluation.json", "evaluation.md", "report.html", "responses.parquet",
        "scaling.svg",
    }  # fmt: skip


def test_responses_tell_every_answer(policies, shards, tmp_path):
    report = evaluate(policies, recipe_with(), BandsConfig(), shards, out=tmp_path)
    table = pq.read_table(tmp_path / "responses.parquet")
    assert table.schema.equals(RESPONSES)
    rows = pl.DataFrame(pl.from_arrow(table))
    assert len(rows) == len(SITES) * 2 * 2
    counted = (
        rows.filter(pl.col("sets").list.contains("headline") & (pl.col("entropy") > 1.0))
        .group_by("reading", "policy")
        .agg(pl.col("hit").mean())
    )
    for reading, policy, hit in counted.iter_rows():
        accuracy = report["sets"]["headline"]["readings"][f"{reading} {policy}"]["accuracy"]["medium"]
        assert accuracy["value"] == pytest.approx(hit)
    (row,) = rows.filter(
        (pl.col("site_id") == "d1-5") & (pl.col("policy") == "after") & (pl.col("reading") == "reasoning")
    ).to_dicts()
    assert row["response"] == r"</think>\boxed{7}" and row["prediction"] == b"7" and row["reason"] == "match"
    assert row["length"] == len(row["response_ids"]) == 3
    tokenizer = CorpusTokenizer.load(policies["after"])
    assert tokenizer.decode_bytes(row["prompt_ids"]) == b"Complete the text: 4 + 3 =<think>\n"
    assert rows.filter(site_id="d3-1", reading="direct")["prediction"].to_list() == [b"e", b"e"]


def test_the_hybrid_reading_of_few_sites_is_the_better_reading_of_the_others(policies, shards, tmp_path):
    """Of too few sites gates are constants: each fold's takes the reading that was better at the other folds' sites."""
    report = evaluate(policies, recipe_with(where="true"), BandsConfig(), shards, out=tmp_path)
    patterns = report["patterns"]
    assert (patterns["before"], patterns["after"]) == ("before", "after") and not in_words(patterns["groups"])
    rows = pl.read_parquet(tmp_path / "responses.parquet")
    direct = rows.filter(policy="before", reading="direct")
    assert direct["own_margin"].is_between(0.5, 30.0).all() and (direct["own_logprob"] < 0).all()
    assert (direct["own_entropy"] > 0).all() and direct["context_end"].to_list() == [
        s.context.decode()[-1] for s in SITES
    ]
    assert rows.filter(reading="reasoning")["own_entropy"].is_null().all()
    hits = {
        (policy, reading): rows.filter(policy=policy, reading=reading).sort("site_id")["hit"].to_list()
        for policy in policies
        for reading in ("direct", "reasoning")
    }
    folds = [fold_of(doc) for doc in rows.filter(policy="after", reading="direct").sort("site_id")["doc_id"]]
    for policy in policies:
        right = []
        for n, fold in enumerate(folds):
            gain = sum(
                hits[policy, "reasoning"][i] - hits[policy, "direct"][i] for i, f in enumerate(folds) if f != fold
            )
            right.append(hits[policy, "reasoning" if gain > 0 else "direct"][n])
        entropies = rows.filter(policy=policy, reading="direct").sort("site_id")["entropy"]
        easy = [hit for hit, entropy in zip(right, entropies, strict=True) if entropy > 0.5]
        found = report["sets"]["all"]["hybrid"][policy]["easy"]
        assert found["hybrid"]["value"] == pytest.approx(sum(easy) / len(easy))
        assert report["gates"][policy]["pays"] + report["gates"][policy]["costs"] == sum(
            a != b for a, b in zip(hits[policy, "direct"], hits[policy, "reasoning"], strict=True)
        )


def test_several_responses_of_a_policy_that_tosses_a_coin(shards, tmp_path):
    boxes = (r"\boxed{4}", r"\boxed{7}")
    coin = save_policy(
        tmp_path / "coin", {"\n": "</think>", "</think>": boxes[0], **dict.fromkeys(boxes, END)}, "e", boxes
    )
    tie(coin, "</think>", boxes)
    report = evaluate(
        {"coin": coin}, recipe_with(samples=8, sample_temperature=0.3), BandsConfig(), shards, out=tmp_path / "out"
    )
    rows = pl.read_parquet(tmp_path / "out" / "responses.parquet").filter(pl.col("reading") == "sampled")
    assert rows["sample"].unique().sort().to_list() == list(range(8))
    assert set(rows["prediction"].to_list()) == {b"4", b"7"} and not (set(rows["reason"]) - {"match", "mismatch"})
    hits = rows.filter(pl.col("entropy") > 1.0).group_by("site_id").agg(pl.col("hit").sum())["hit"].to_list()
    assert len(hits) == 4 and 0 < sum(hits) < 32
    medium = report["sets"]["all"]["samples"]["sampled coin"]["medium"]
    assert medium["mean"]["value"] == pytest.approx(sum(hits) / 32)
    for k in (2, 4, 8):
        subsets = [list(combinations([1] * h + [0] * (8 - h), k)) for h in hits]
        by_counting = sum(sum(map(any, drawn)) / len(drawn) for drawn in subsets) / 4
        assert medium[f"pass@{k}"]["value"] == pytest.approx(by_counting)


def test_accuracy_by_declared_metadata(policies, tmp_path, capsys):
    hostile = "a[/b]" + chr(0x202E) + "<i>|"
    levels = {"d0": 10.0, "d1": 2.0, "d2": 2.5, "d3": None}
    declared = {"level": "number", "source": "text", "odd": "boolean", "tags": "json", "long": "text"}
    of_document = {
        doc_id: {"level": level, "source": hostile if doc_id == "d0" else "web", "odd": doc_id in ("d1", "d3")}
        | {"tags": "[]", "long": "x" * 81 if doc_id == "d0" else "x"}
        for doc_id, level in levels.items()
    }
    shards = shards_of(
        tmp_path / "materialize" / "0123456789ab", SITES[:3], SITES[3:], metadata=declared, of_document=of_document
    )
    report = evaluate(policies, recipe_with(), BandsConfig(), shards, out=tmp_path / "out", full=True)
    found = report["sets"]["all"]["readings"]["reasoning after"]["by_metadata"]
    # "7" is right at d1-5, d2-4 and d2-9
    assert {column: [(label, e["value"], e["sites"]) for label, e in by.items()] for column, by in found.items()} == {
        "level": [("2", 1 / 2, 2), ("2.5", 1.0, 2), ("10", 0.0, 2), ("(no value)", 0.0, 1)],
        "source": [("a[/b]⟨U+202E⟩<i>|", 0.0, 2), ("web", 3 / 5, 5)],
        "odd": [("false", 2 / 4, 4), ("true", 1 / 3, 3)],
    }  # fmt: skip
    assert report["sets"]["headline"]["readings"]["direct before"]["by_metadata"]["odd"]["true"]["sites"] == 2
    printed, page = capsys.readouterr().out, (tmp_path / "out" / "evaluation.md").read_text()
    assert "accuracy by `source`" in printed and "a[/b]⟨U+202E⟩<i>|" in printed
    assert "| a[/b]⟨U+202E⟩&lt;i>\\|<br>2 sites |" in page
    many = {"n": "number"}
    of_site = {f"d{i}": {"n": float(i)} for i in range(21)}
    sites = [site(f"d{i}", 5, 2.0, "2 + 2 =", ["4", "."], "solution") for i in range(21)]
    for count, columns in ((20, ["n"]), (21, [])):
        folder = tmp_path / str(count) / "materialize" / "0123456789ab"
        shards = shards_of(folder, sites[:count], metadata=many, of_document=of_site)
        assert list(site_labels(shards, sites[:count])[1]) == columns


def test_bands_by_another_model(policies, shards, tmp_path):
    # after "=" it holds two digits for as likely, ln 2 nats; elsewhere it is sure
    other = save_policy(tmp_path / "other", {"=": "4"}, "e")
    tie(other, "=", ("7",))
    recipe = recipe_with(where="true", bands_by=str(other))
    report = evaluate({"model": policies["after"]}, recipe, BandsConfig(), shards, out=tmp_path / "out")
    rows = pl.read_parquet(tmp_path / "out" / "responses.parquet").filter(pl.col("reading") == "direct")
    entropies = dict(rows.select("site_id", "entropy").iter_rows())
    unsure = {"d0-5", "d1-5", "d2-4", "d2-9"}
    assert entropies == pytest.approx({s.site_id: math.log(2) * (s.site_id in unsure) for s in SITES}, abs=1e-3)
    assert [band["sites"] for band in report["sets"]["all"]["bands"].values()] == [4, 0, 0]
    assert report["bands_by"] == str(other)


def test_policies_are_named():
    assert list(named_policies(["a=.", "b=."])) == ["a", "b"]
    for bad in (["."], ["=."], ["a=.", "a=."]):
        with pytest.raises(UserError, match="NAME=FOLDER"):
            named_policies(bad)


def test_the_same_evaluation_is_not_done_again(policies, shards, tmp_path, capsys):
    first = evaluate(policies, recipe_with(), BandsConfig(), shards, out=tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = evaluate(policies, recipe_with(), BandsConfig(), shards, out=tmp_path)
    assert again == first
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    captured = capsys.readouterr()
    assert "up to date" in captured.err and captured.out.count("Positions where field = 'solution': accuracy, %") == 2
    (tmp_path / "report.html").unlink()
    evaluate(policies, recipe_with(), BandsConfig(), shards, out=tmp_path)
    assert (tmp_path / "report.html").exists(), "what is printed names it"
    first_look = capsys.readouterr().out
    assert "All positions: accuracy" not in first_look, "only --full prints the rest"
    lines = first_look.splitlines()
    assert len(lines) <= 20 and max(map(len, lines)) <= 100, "one screen"
    assert max(len(line) for line in lines[: lines.index("")]) <= 80, "the table fits a narrow terminal"
    swapped = {"before": policies["before"], "after": policies["before"]}
    other = evaluate(swapped, recipe_with(), BandsConfig(), shards, out=tmp_path)
    assert other["sets"]["all"]["differences"][0]["bands"]["easy"]["value"] == 0.0
    wider = evaluate(swapped, recipe_with(where="entropy > 0.5"), BandsConfig(), shards, out=tmp_path)
    assert wider["sets"]["headline"]["sites"] == 6


def test_all_positions_once_if_nothing_else_is_asked(policies, shards, tmp_path):
    report = evaluate(policies, recipe_with(where="true"), BandsConfig(), shards, out=tmp_path)
    assert list(report["sets"]) == ["all"]


def test_fewer_sites_are_part_of_more(policies, shards, tmp_path):
    few = evaluate(policies, recipe_with(where="true", sites=3), BandsConfig(), shards, out=tmp_path / "few")
    assert few["sets"]["all"]["sites"] == 3
    three = set(pq.read_table(tmp_path / "few" / "responses.parquet")["site_id"].to_pylist())
    evaluate(policies, recipe_with(where="true", sites=5), BandsConfig(), shards, out=tmp_path / "more")
    assert three < set(pq.read_table(tmp_path / "more" / "responses.parquet")["site_id"].to_pylist())


def test_a_band_without_sites_is_a_dash(policies, shards, tmp_path, capsys):
    bands = BandsConfig(easy=0.5, medium=1.0, hard=30.0)
    report = evaluate(policies, recipe_with(), bands, shards, out=tmp_path)
    assert report["sets"]["all"]["readings"]["reasoning after"]["accuracy"]["hard"] is None
    assert "–" in capsys.readouterr().out
    assert "| – |" in (tmp_path / "evaluation.md").read_text()


def test_one_policy_alone(policies, shards, tmp_path):
    report = evaluate({"model": policies["after"]}, recipe_with(), BandsConfig(), shards, out=tmp_path)
    assert [d["baseline"] for d in report["sets"]["all"]["differences"]] == ["direct model"]


def test_nothing_to_evaluate_at(policies, shards, tmp_path):
    with pytest.raises(UserError, match=r"no site to read.*field = 'nowhere'"):
        evaluate(policies, recipe_with(where="field = 'nowhere'"), BandsConfig(), shards, out=tmp_path)
    empty = shards_of(tmp_path / "materialize" / "ba9876543210", [])
    with pytest.raises(UserError, match=r"no held-out site.*validation_where"):
        evaluate(policies, recipe_with(), BandsConfig(), empty, out=tmp_path)


def test_the_command_wants_a_trained_policy(repository, tmp_path):
    recipe = Recipe(name="toy", policy=PolicyConfig(model="nowhere"))
    spec = EvaluateSpec(recipe=recipe, run=Path("runs/toy"), shards=tmp_path, bands=BandsConfig())
    write_spec(spec, tmp_path / "spec.json")
    run = subprocess.run(
        [sys.executable, "-m", "stages.evaluate", "spec.json"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert "error: the run has no trained policy yet: runs/toy/policy (run `rpt train` first)" in run.stderr
    assert "Traceback" not in run.stderr
