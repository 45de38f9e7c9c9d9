"""A chat template that asks for the date: a run's policy is evaluated with the prompt that the run keeps.

What the run of these tests keeps ends otherwise than what the template renders now, so that the policy answers to it.
"""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import polars as pl
import pytest

from pipeline.audit.browse.document import prompt_builder
from pipeline.config.recipe import Recipe
from pipeline.config.selection import BandsConfig
from pipeline.config.task import TaskConfig
from pipeline.core.artifact import Record, Shard, publish, scratch_folder, write_record
from pipeline.core.parquet import write_rows
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.rollout.prompt import PromptText, keep_prompt, prompts_of
from pipeline.shards.schema import SHARDS
from pipeline.task.templates import TEMPLATES
from stages.evaluate import evaluate
from stages.finetune import report
from stages.screen import screen
from tests.evaluation.scripted import as_row, reasoner, site
from tests.stages.published import InProcess

BRIEF, TASK = TEMPLATES["brief"], TaskConfig(template="brief")
DATED = "{{ strftime_now('%Y') }} {{ messages[0]['content'] }}"
KEPT = PromptText(f"1999 {BRIEF.before}", "\n")
"""After `\\n` the policies box 7, as after what is rendered now."""
SILENT = PromptText(f"1999 {BRIEF.before}", "=")
"""After `=` they box nothing."""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = reasoner(tmp_path_factory.mktemp("policies") / "base", "7", {"=": "7"}, "e")
    (folder / "chat_template.jinja").write_text(DATED, encoding="utf-8")
    return folder


@pytest.fixture
def run(policy: Path, tmp_path: Path) -> Path:
    """A run whose policy is the one that it began with."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "policy").symlink_to(policy)
    return tmp_path / "run"


@pytest.fixture(scope="module")
def shards(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Record:
    folder = tmp_path_factory.mktemp("work") / "materialize" / "0123456789ab"
    sites = [site(f"{n:032x}", 5, 2.0, f"{n} + 2 =", ["7", "."]) for n in range(3)]
    with scratch_folder(folder, 0) as scratch:
        for split in ("train", "validation"):
            write_rows(scratch / f"{split}.parquet", SHARDS, map(as_row, sites))
        publish(folder, 0, scratch, {}, 0.0)
    inputs = {"policy_tokenizer": CorpusTokenizer.load(policy).digest}
    return write_record(folder, "materialize", 1, {"max_context_tokens": 64}, inputs, [Shard(0, {}, {})])


def keep(run: Path, text: PromptText, policy: Path) -> None:
    (run / "prompt.json").unlink(missing_ok=True)  # a run keeps what it began with
    keep_prompt(run, text, policy, CorpusTokenizer.load(policy), TASK)


def recipe(policy: Path, **more: object) -> Recipe:
    tree = {
        "name": "dated",
        "policy": {"model": str(policy), "dtype": "float32"},
        "task": {"template": "brief"},
        "rollout": {"max_new_tokens": 4, "batch_rows": 8},
        "evaluate": {"where": "true"},
        "screen": {"samples": 1},
    }
    return Recipe.model_validate(tree | more)


def test_an_evaluation_reads_all_policies_with_what_the_run_keeps(
    policy: Path, run: Path, shards: Record, tmp_path: Path
) -> None:
    keep(run, KEPT, policy)
    policies, out = {"before": policy, "after": run / "policy"}, tmp_path / "out"
    first = evaluate(policies, recipe(policy), BandsConfig(), shards, out=out, run=run)
    tokens = CorpusTokenizer.load(policy)
    rows = pl.read_parquet(out / "responses.parquet").filter(reading="reasoning")
    prompts = {tokens.decode_bytes(ids).decode() for ids in rows["prompt_ids"].to_list()}
    assert prompts == {f"1999 {BRIEF.before}{n} + 2 =\n" for n in range(3)}
    assert set(rows["policy"]) == {"before", "after"} and rows["hit"].all()
    assert (
        evaluate(policies, recipe(policy), BandsConfig(), shards, out=out, run=run)["fingerprint"]
        == first["fingerprint"]
    )
    keep(run, SILENT, policy)
    other = evaluate(policies, recipe(policy), BandsConfig(), shards, out=out, run=run)
    assert other["fingerprint"] != first["fingerprint"]
    assert not pl.read_parquet(out / "responses.parquet").filter(reading="reasoning")["hit"].any()


def test_a_policy_keeps_the_prompt_of_the_run_it_lies_in(policy: Path, run: Path, tmp_path: Path) -> None:
    keep(run, KEPT, policy)
    evaluated = tmp_path / "evaluated"
    evaluated.mkdir()
    keep(evaluated, SILENT, policy)
    named = {"base": policy, "trained": run / "policy"}
    assert prompts_of(named, TASK, evaluated) == {"base": SILENT, "trained": KEPT}
    assert prompts_of(named, TASK) == {"base": KEPT, "trained": KEPT}, "compared on the same day"
    now = prompts_of({"base": policy}, TASK)["base"]
    assert now == PromptText(f"{date.today().year} {BRIEF.before}", "<think>\n")


def test_the_report_of_a_finetuning_asks_what_the_run_asked(policy: Path, run: Path, shards: Record) -> None:
    answering = recipe(policy, task={"template": "brief", "reward": "answer"}, questions={"source": "not read"})
    keep(run, KEPT, policy)
    boxed = report(answering, shards, run=run)
    keep(run, SILENT, policy)
    silent = report(answering, shards, run=run)
    assert json.loads((run / "finetune.json").read_text()) == silent and silent["fingerprint"] != boxed["fingerprint"]
    for found, answers in ((boxed, True), (silent, False)):
        assert all(("unfinished" not in reasons) == answers for reasons in found["reasons"].values()), found["reasons"]


def test_a_screening_says_which_prompt_it_asked(policy: Path, shards: Record, tmp_path: Path) -> None:
    record = screen(recipe(policy), shards, work=tmp_path, executor=InProcess())
    assert record.config["prompt"] == [f"{date.today().year} {BRIEF.before}", "<think>\n"]
    assert record.counters["always_right"] == 3


def test_the_browser_shows_what_the_run_was_asked(policy: Path, run: Path) -> None:
    keep(run, KEPT, policy)
    tokens = CorpusTokenizer.load(policy)
    shown = [tokens.decode_bytes(prompt_builder(str(policy), TASK, of).ids(b"x")).decode() for of in (run, None)]
    assert shown == [f"1999 {BRIEF.before}x\n", f"{date.today().year} {BRIEF.before}x<think>\n"]
