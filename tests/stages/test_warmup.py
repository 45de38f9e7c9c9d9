"""Warm-ups end to end: real policy, shards and DeepSpeed; resume, cost, and the run that starts from one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.config.loading import load
from pipeline.config.recipe import PolicyConfig, Recipe
from pipeline.config.training import WarmupConfig
from pipeline.core.artifact import current_record
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.evaluation.policies import before_and_after, warm_up_of
from pipeline.grpo.data.pass_rates import read_right_responses
from pipeline.grpo.rollout.sampler import Sampler
from pipeline.grpo.types import SamplingRequest
from pipeline.shards.reader import ShardReader
from pipeline.task.extraction import extract_prediction
from stages.warmup import for_one_pass, screening_for, warmup_recipe
from tests.grpo.colours import metrics_of
from tests.grpo.prompts import prompts_for
from tests.stages.warmups import HELD_OUT

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    done = subprocess.run(
        [sys.executable, "-m", "tests.stages.warmups_worker", str(folder)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder / "log").write_text(done.stderr)
    return folder


def closed_boxes(runs: Path, policy: Path) -> float:
    """The share of responses to held-out sites, without thinking, that end and have a prediction."""
    recipe = load(Recipe, runs / "recipe.yaml", ["task.thinking=none"])
    tokens = CorpusTokenizer.load(policy)
    prompts = prompts_for(policy, recipe.task)
    sites = ShardReader(current_record(runs / "work" / "colours", "materialize").files("validation"))
    ids = [prompts.ids(site.context) for site in sites]
    request = SamplingRequest(ids, 4, 1.0, recipe.rollout.max_new_tokens, list(range(4 * len(ids))))
    said = Sampler.load(policy, tokens).sample(request)
    return sum(r.finished and bool(extract_prediction(r.text, prompts.thinking)) for r in said) / (4 * HELD_OUT)


def test_a_policy_that_knows_nothing_learns_to_close_its_boxes(runs: Path) -> None:
    assert closed_boxes(runs, runs / "blank") == 0
    assert closed_boxes(runs, runs / "form" / "policy") > 0.8


def test_each_example_is_learned_once_and_counted(runs: Path) -> None:
    first, *rows = metrics_of(runs / "rules")
    assert sum(row["examples"] for row in rows) in (50, 51), "the last step may begin a second pass"
    assert rows[-1]["loss"] < rows[0]["loss"] and "eval/next_token_loss" in first
    assert [row["lr"] for row in rows[:2]] == [0.01, 0.01] or rows[0]["lr"] < 0.01
    assert rows[-1]["compute/tokens"] == sum(row["tokens/trained"] for row in rows)


def test_a_warm_up_that_was_stopped_and_killed_takes_the_same_steps(runs: Path) -> None:
    assert metrics_of(runs / "disturbed") == metrics_of(runs / "rules"), "bit for bit"
    trained = [runs / run / "policy" / "model.safetensors" for run in ("rules", "disturbed")]
    assert trained[0].read_bytes() == trained[1].read_bytes()
    assert (runs / "rules" / "prompt.json").read_bytes() == (runs / "disturbed" / "prompt.json").read_bytes()


def test_it_learns_from_the_policys_own_right_responses(runs: Path) -> None:
    work = runs / "work" / "colours"
    stored = read_right_responses(current_record(work, "screen"))
    shards = current_record(work, "materialize")
    hard = [s for s in ShardReader(shards.files("train"), "band = 'hard'") if s.site_id in stored]
    rows = metrics_of(runs / "sampled")[1:]
    assert len(hard) > 5 and sum(row["examples"] for row in rows) in (len(hard), len(hard) + 1)


def test_what_starts_from_a_warm_up_says_so_and_what_it_took(runs: Path) -> None:
    about = json.loads((runs / "trained" / "run.json").read_text())
    origin, last = about["policy_from"], metrics_of(runs / "rules")[-1]
    assert origin == warm_up_of(runs / "trained")
    assert (origin["command"], origin["tokens"], origin["flops"]) == (
        "warmup",
        last["compute/tokens"],
        last["compute/flops"],
    )
    for file in ("tokenizer.json", "tokenizer_config.json"):
        own, base = (folder / file for folder in (runs / "rules" / "policy", runs / "policy"))
        assert own.read_bytes() == base.read_bytes(), "or it could not start from there: other tokens, other shards"
    assert origin["examples"] == sum(row.get("examples", 0) for row in metrics_of(runs / "rules"))
    assert "train        its policy comes from rpt warmup: " in (runs / "log").read_text()
    recipe = load(Recipe, runs / "recipe.yaml", [f"policy.model={runs / 'rules' / 'policy'}"])
    assert before_and_after(recipe, runs / "trained") == {
        "before": runs / "policy",
        "warm-up": runs / "rules" / "policy",
        "after": runs / "trained" / "policy",
    }
    plain = load(Recipe, runs / "recipe.yaml")
    assert list(before_and_after(plain, runs / "rules")) == ["before", "after"], "of the warm-up alone"


@pytest.mark.parametrize(
    ("batch", "lengths", "steps", "batch_tokens"),
    [
        (30, [10] * 9, 3, 30),
        (40, [10] * 9, 2, 45),
        (1000, [10] * 9, 1, 90),
        (30, [10, 70, 10], 1, 90),
        (10, [60, 10], 1, 70),
    ],
)
def test_steps_are_of_equal_size_and_hold_the_longest_example(
    batch: int, lengths: list[int], steps: int, batch_tokens: int
) -> None:
    recipe = warmup_recipe(Recipe(name="r", policy=PolicyConfig(model="m"), warmup=WarmupConfig(batch_tokens=batch)))
    found = for_one_pass(recipe, lengths)
    assert (found.budget.steps, found.supervised.batch_tokens) == (steps, batch_tokens)
    assert found.optimizer.lr == WarmupConfig().lr and found.optimizer.warmup_steps == 0
    assert for_one_pass(recipe, [batch] * 50).optimizer.warmup_steps == 5
    assert Recipe.model_validate_json(found.model_dump_json()) == found, "a run stores it"


@given(st.lists(st.integers(4, 90), min_size=1, max_size=60), st.floats(0, 0.9), st.integers(20, 500))
def test_plain_text_has_its_share_of_a_step_and_the_examples_pass_once(
    lengths: list[int], share: float, batch: int
) -> None:
    warm = WarmupConfig(batch_tokens=batch, plain_text=share)
    found = for_one_pass(warmup_recipe(Recipe(name="r", policy=PolicyConfig(model="m"), warmup=warm)), lengths)
    text = round(found.supervised.plain_text * found.supervised.batch_tokens)
    answers = found.supervised.batch_tokens - text
    assert text == pytest.approx(share * found.supervised.batch_tokens, abs=0.5)
    assert answers >= max(lengths), "the longest example fits"
    assert sum(lengths) <= found.budget.steps * answers, "each example is learned"
    assert found.supervised.window <= max(2, text or found.supervised.batch_tokens)


def test_sampled_thoughts_need_a_screening(runs: Path, tmp_path: Path) -> None:
    recipe = warmup_recipe(load(Recipe, runs / "recipe.yaml", ["warmup.thoughts=sampled"]))
    shards = current_record(runs / "work" / "colours", "materialize")
    with pytest.raises(UserError, match=r"not screened.*warmup.thoughts: sampled.*rpt screen"):
        screening_for(recipe, shards, tmp_path)


@pytest.mark.parametrize("bad", ["examples=0", "lr=0", "batch_tokens=1", "thoughts=none", "wheres=true"])
def test_bad_keys_are_refused(runs: Path, bad: str) -> None:
    with pytest.raises(UserError, match=f"warmup.{bad.partition('=')[0]}"):
        load(Recipe, runs / "recipe.yaml", [f"warmup.{bad}"])
