"""Plans: where the sample is the whole corpus, what a run then counts; the interval covers; nothing is left behind."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from rich.console import Console

from commands.plan.check import made_by_run
from commands.plan.estimate import plan
from commands.plan.tables import tables
from pipeline.config.loading import load
from pipeline.config.manifest import Manifest
from pipeline.config.selection import SelectConfig
from pipeline.shards.cost import Trial, estimate_total, kept_share
from stages.ingest import ingest
from stages.materialize import materialize
from stages.score import score
from stages.select import select
from tests.scoring.models import qwen, save
from tests.stages.published import InProcess
from tests.toys import byte_level_tokenizer, problems, write_jsonl

TRAIN = {"folds": 2, "vocab_size": 300, "hidden_size": 32, "layers": 1, "heads": 2, "context": 64, "max_steps": 8}


@pytest.fixture(autouse=True)
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers score all of their sample, however busy the machine is."""
    monkeypatch.setattr("commands.plan.estimate.TRY_SECONDS", math.inf)


def corpus(folder: Path, proxy: dict[str, Any]) -> Path:
    """A manifest of 150 problems, of which a column says which are held out."""
    rows = [row | {"part": "validation" if n % 5 == 0 else "train"} for n, row in enumerate(problems(150))]
    write_jsonl(folder / "problems.jsonl", rows)
    byte_level_tokenizer(folder / "policy", [row["problem"] + row["solution"] for row in rows])
    manifest = {
        "name": "toy",
        "corpus": {
            "source": str(folder / "problems.jsonl"),
            "text": "{problem}\n{solution}",
            "validation": {"column": "part"},
            "near_duplicates": None,
            "shard_documents": 40,
        },
        "proxy": proxy,
        "score": {"window": 64, "overlap": 16},
        "select": {"where": "entropy > 1.0 AND field = 'solution'", "validation_where": "entropy > 1.5"},
        "materialize": {"policy_tokenizer": str(folder / "policy")},
    }
    (folder / "toy.yaml").write_text(yaml.safe_dump(manifest))
    return folder / "toy.yaml"


def made(path: Path, work: Path) -> dict[str, Any]:
    """What a run counts, and the bytes it publishes."""
    manifest, executor = Manifest.model_validate(yaml.safe_load(path.read_text())), InProcess()
    documents = ingest(manifest, source=None, work=work, executor=executor)
    scores = score(manifest, documents, work=work, executor=executor)
    sites = select(manifest, documents, scores, work=work, executor=executor)
    shards = materialize(manifest, documents, scores, sites, work=work, executor=executor)
    records = {"score": scores, "select": sites, "materialize": shards}
    return {
        "documents": documents.counters["documents"],
        "tokens": scores.counters["tokens"],
        "sites": sites.counters["kept.train"] + sites.counters["kept.validation"],
        "examples": shards.counters["kept.train"] + shards.counters["kept.validation"],
        "bytes": {
            name: sum(entry.bytes for done in record.completions() for entry in done.files.values())
            for name, record in records.items()
        },
    }


def test_a_sample_of_everything_is_what_a_run_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "proxy", qwen(300))
    path = corpus(tmp_path, {"model": str(tmp_path / "proxy")})
    before = sorted(path.name for path in tmp_path.iterdir())
    found = plan(path, workers=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == before, "nothing is kept"
    run = made(path, tmp_path / "work")
    stages = {stage["stage"]: stage for stage in found["stages"]}
    for name, value in (("tokens", found["tokens"]), ("sites", found["sites"])):
        assert value == {"value": run[name], "low": run[name], "high": run[name]}
    assert (found["documents"], found["shards"], stages["materialize"]["count"]) == (
        run["documents"],
        4,
        run["examples"],
    )
    assert not found["sites_are_at_most"]
    for name, size in run["bytes"].items():  # here two files of 75 documents, there four of 40
        assert 0.5 < stages[name]["bytes"] / size < 1.5, name
    assert all(stage["seconds"] > 0 and stage["hours"] > 0 for stage in found["stages"])
    assert "tokens" in json.dumps(found)
    assert "150 documents" in str(tables(found)[0].title)


def test_after_a_run_a_plan_says_how_far_it_was_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "proxy", qwen(300))
    path, work = corpus(tmp_path, {"model": str(tmp_path / "proxy")}), tmp_path / "work/toy"
    run = made(path, work)
    found = plan(path, workers=1)
    counts = {"ingest": 150, "score": run["tokens"], "select": run["sites"], "materialize": run["examples"]}
    assert {row["stage"]: row["count"] for row in found["made"]} == counts
    planned = {stage["stage"]: stage for stage in found["stages"]}
    for row in found["made"]:
        assert row["off"]["count"] == 0, "the whole corpus was the sample"
        for name in ("worker_seconds", "bytes"):
            assert row["off"][name] == pytest.approx(row[name] / planned[row["stage"]][name] - 1)
    of_ingest = sum(file.stat().st_size for name in PASSES for file in (work / name).glob("*/**/*.*"))
    assert found["made"][0]["bytes"] == of_ingest
    with Console(file=(out := io.StringIO()), width=200) as console:
        console.print(tables(found)[-1])
    assert f"{run['tokens']:,} tokens (+0.0 %)" in out.getvalue()

    half = [stage | {"count": stage["count"] / 2} for stage in found["stages"]]
    assert [row["off"]["count"] for row in made_by_run(half, load(Manifest, path), work)] == [1.0] * 4
    other = load(Manifest, path, ["select.where=entropy > 2"])
    assert [row["stage"] for row in made_by_run(half, other, work)] == ["ingest", "score"], "the rest is stale"
    assert made_by_run(half, other, tmp_path / "elsewhere") == []


PASSES = ("read", "assign", "ingest")


def test_the_tokens_of_a_corpus_that_was_read_whole_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("commands.plan.estimate.SAMPLE", 20)
    save(tmp_path / "proxy", qwen(300))
    path = corpus(tmp_path, {"model": str(tmp_path / "proxy")})
    found = plan(path, workers=1)
    assert found["sample"]["documents"] == 20
    counted = made(path, tmp_path / "work")["tokens"]
    assert found["tokens"] == {"value": counted, "low": counted, "high": counted}
    assert found["sites"]["low"] < found["sites"]["high"] and found["not_reached"] == []


def test_without_weights_the_rest_is_planned_and_what_is_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "proxy", qwen(300))
    path = corpus(tmp_path, {"model": str(tmp_path / "proxy")})
    counted = plan(path, workers=1)["tokens"]
    for weights in (tmp_path / "proxy").glob("*.safetensors"):
        weights.unlink()
    found = plan(path, workers=1)
    assert (found["documents"], found["tokens"], found["sites"]) == (150, counted, None)
    assert [stage["stage"] for stage in found["stages"]] == ["ingest"]
    assert found["not_reached"] == [f"weights of the proxy: {tmp_path / 'proxy'}"]

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    found = plan(path, ["proxy.model=owner/absent"], workers=1)
    assert (found["documents"], found["tokens"], found["sites"]) == (150, None, None)
    assert "owner/absent" in found["not_reached"][0]
    with Console(file=(out := io.StringIO()), width=200) as console:
        for table in tables(found):
            console.print(table)
    assert "unknown: no tokenizer" in out.getvalue() and "owner/absent" in out.getvalue()


def test_a_proxy_that_must_be_fitted_costs_its_own_time(tmp_path: Path) -> None:
    path = corpus(tmp_path, {"train": TRAIN})
    found = plan(path, workers=2)
    run = made(path, tmp_path / "work")
    proxy = next(stage for stage in found["stages"] if stage["stage"] == "proxy")
    assert proxy["count"] == 2 * 8 * 1024, "folds × steps × tokens of a step"
    assert proxy["seconds"] > 0
    assert found["sites_are_at_most"]
    assert found["sites"]["value"] > run["sites"]


def test_several_sources_are_planned_as_the_run_makes_them(tmp_path: Path) -> None:
    """Two sources with templates of their own; forty problems are in both."""
    save(tmp_path / "proxy", qwen(300))
    path = corpus(tmp_path, {"model": str(tmp_path / "proxy")})
    tree = yaml.safe_load(path.read_text())
    again = [{"question": row["problem"], "answer": row["solution"], "part": "train"} for row in problems(190)[110:]]
    write_jsonl(tmp_path / "again.jsonl", again)
    first = {"name": "problems", "source": tree["corpus"].pop("source"), "text": tree["corpus"].pop("text")}
    second = {"name": "again", "source": str(tmp_path / "again.jsonl"), "text": "{question}\n{answer}"}
    tree["corpus"]["sources"] = [first, second]
    tree["select"]["where"] = "entropy > 1.0 AND (field = 'solution' OR corpus = 'again')"
    path.write_text(yaml.safe_dump(tree))
    found = plan(path, workers=1)
    run = made(path, tmp_path / "work")
    assert (found["documents"], run["documents"]) == (190, 190)
    assert (found["tokens"]["value"], found["sites"]["value"]) == (run["tokens"], run["sites"])
    stages = {stage["stage"]: stage for stage in found["stages"]}
    assert stages["materialize"]["count"] == run["examples"]
    assert 0.5 < stages["materialize"]["bytes"] / run["bytes"]["materialize"] < 1.5

    tree["select"]["mixture"] = {"weights": {"problems": 1, "again": 2}}
    path.write_text(yaml.safe_dump(tree))
    found, run = plan(path, workers=1), made(path, tmp_path / "work")
    assert found["sites"]["value"] == pytest.approx(run["sites"], abs=1)
    assert not found["sites_are_at_most"]


def test_what_rules_over_the_corpus_leave_by_hand() -> None:
    """Of half a corpus: six sites of `a`, two of `b`, two held out."""
    rows = {"split": ["train"] * 8 + ["validation"] * 2, "corpus": [*"aaaaaabb", "a", "b"]}
    trial = Trial(0.0, 0, tables={"sites": pa.table(rows)})
    for rules, left in (
        ({}, 10),
        ({"max_sites": 4}, 2 + 2),
        ({"max_sites": 400}, 10),
        ({"top_fraction": 0.5}, 4 + 2),
        ({"mixture": {"weights": {"a": 1, "b": 1}}}, 4 + 2),
        ({"mixture": {"weights": {"a": 3, "b": 1}}, "max_sites": 8}, 4 + 2),
    ):
        assert kept_share(SelectConfig.model_validate(rules), [trial], share=2.0) == left / 10, rules


def test_the_interval_covers() -> None:
    rng = np.random.default_rng(0)
    corpus_D = rng.lognormal(5, 0.7, 600).astype(int)
    covered = 0
    for _ in range(400):
        estimate = estimate_total(rng.choice(corpus_D, 80, replace=False).tolist(), 600)
        covered += estimate.low <= corpus_D.sum() <= estimate.high
    assert 0.90 < covered / 400 < 0.985
    # Hand-worked: mean 5, spread √2, half of the population unseen: 1.96 · 4 · √2 · √(½ / 2) = 5.54.
    by_hand = estimate_total([4, 6], 4)
    assert (by_hand.value, round(by_hand.high - by_hand.value, 2)) == (20.0, 5.54)


def test_of_a_recipe_the_memory_of_a_rank_is_planned(repository: Path) -> None:
    policy = f"policy.model={repository / 'demo' / 'policy'}"
    found = plan(repository / "recipes" / "demo.yaml", [policy], ranks=2)
    assert set(found["topologies"]) == {path.stem for path in (repository / "deepspeed_configs").glob("*.json")}
    weights = next(p for p in found["topologies"]["zero3_cpu"]["parts"] if p["name"] == "weights")
    assert weights["bytes"] == pytest.approx(found["parameters"] * 4 / 2, rel=0.01)
    assert [table.row_count > 5 for table in tables(found)] == [True]


def test_a_recipe_that_comes_with_the_package_is_planned_by_its_name(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = plan(Path("omnimath-14b"), [f"policy.model={repository / 'demo' / 'policy'}", "policy.revision=null"])
    assert found["recipe"] == "omnimath-14b"
