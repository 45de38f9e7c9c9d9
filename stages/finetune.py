"""Finetune: a policy and questions with known answers → the policy after RLVR, and its accuracy before and after.

Input:   `questions` of the recipe (JSON lines, Parquet, CSV or JSON; a path, the Hub, any URL); a policy's folder.
Output:  `questions`, in rows of the shards' table; a run of `rpt train` on them, `runs/<recipe>/`, and in it
         `finetune.json` and `answers.parquet`: accuracy on held-out questions before and after, and every answer.
Command: rpt finetune RECIPE [--policy FOLDER] [--ranks N]
         It prepares the questions here, starts `stages.train` on them, and then this page for the report.

The loop, the objective and the engine are those of `rpt train`; the reward is a rule (`task.reward: answer` or `math`).
"""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from pipeline.config.base import Config
from pipeline.config.errors import UserError
from pipeline.config.recipe import Recipe
from pipeline.config.task import QuestionsConfig
from pipeline.core.artifact import Counters, Record, Shard, fingerprint, published_record
from pipeline.core.executor import Executor
from pipeline.core.files import atomic_replacement
from pipeline.core.model_files import model_digest, resolve_model
from pipeline.core.parquet import write_rows
from pipeline.core.progress import Throughput, log, progress_bar
from pipeline.core.sealed import write_json
from pipeline.core.stage import Stage, run_stage
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.corpus.files import corpus_files
from pipeline.corpus.plan import as_slice, source_digest
from pipeline.corpus.scan import Scan, scan
from pipeline.corpus.template import Template
from pipeline.evaluation.held_out import choose_held_out
from pipeline.evaluation.intervals import difference, proportion
from pipeline.evaluation.predictions import Prediction, log_first, predict_with_reasoning
from pipeline.evaluation.report import points
from pipeline.evaluation.responses import ANSWER, answer_row
from pipeline.grpo.data.questions import question_rows, read_questions, to_corpus_config
from pipeline.grpo.rollout.prompt import PromptText, prompts_of
from pipeline.grpo.run.launch import run_rank
from pipeline.grpo.run.policy_dtype import with_dtype
from pipeline.grpo.run.policy_loading import load_sampler
from pipeline.grpo.run.spec import RunSpec
from pipeline.shards.schema import SHARDS
from pipeline.task.answers import judge_of

if TYPE_CHECKING:
    from pipeline.shards.reader import Site

VERSION = 1

ANSWERS = pa.schema(
    [
        pa.field("policy", pa.string(), nullable=False),
        pa.field("site_id", pa.string(), nullable=False),
        pa.field("question", pa.large_string(), nullable=False),
        pa.field("answer", pa.large_string(), nullable=False),
        *ANSWER,
    ]
)
"""A row is an answer of a policy (`before` or `after`) to a held-out question."""


# --------------------------------------------------------------------------------------------------- prepare


class QuestionsStageConfig(Config):
    """The part of the recipe that `run` needs. The tokenizer enters the fingerprint by its content instead."""

    locations: ClassVar[frozenset[str]] = frozenset({"questions", "tokenizer"})

    questions: QuestionsConfig
    asked: dict[str, Any]
    """The keys of `questions` that decide the output."""
    max_context_tokens: int
    tokenizer: str


def questions(recipe: Recipe, *, work: Path, executor: Executor) -> Record:
    """Bring the recipe's questions up to date and return a record which `rpt train` accepts as shards.

    Raises:
        UserError: the recipe has no questions or no answer reward, a source or column is missing, `math-verify` is not
            installed, or no question is left to train on or to hold out.
    """
    config = recipe.questions
    if config is None or recipe.task.reward not in ("answer", "math"):
        hint = "give `questions` and `task.reward: answer` (texts and plain numbers) or `math` (LaTeX)"
        raise UserError("the recipe has no questions with an answer reward", where=recipe.name, hint=hint)
    if recipe.task.reward == "math" and importlib.util.find_spec("math_verify") is None:
        raise UserError("math-verify is not installed", where="task.reward: math", hint="pip install 'rpt[eval]'")
    folder = resolve_model(recipe.policy.model, recipe.policy.revision)
    held_out = _scans(config, config.held_out_source) if config.held_out_source else []
    training = _scans(config, config.source)
    details = {
        "train": [asdict(part) for about in training for part in about.slices],
        "validation": [asdict(part) for about in held_out for part in about.slices],
    }
    inputs = {
        "train": source_digest(training),
        "validation": source_digest(held_out),
        "policy_tokenizer": CorpusTokenizer.load(folder).digest,
    }
    stage_config = QuestionsStageConfig(
        questions=config,
        asked=config.identity(),
        max_context_tokens=config.max_question_tokens,
        tokenizer=str(folder),
    )
    stage = Stage("questions", VERSION, run, unit="records")
    record = run_stage(stage, stage_config, [Shard(0, {}, details)], inputs, work, executor)
    for split, what in (("train", "train on"), ("validation", "hold out")):
        if not record.counters[split]:
            counted = ", ".join(f"{name} {count:,}" for name, count in record.counters.items() if count)
            raise UserError(f"no question to {what}", where=config.source, hint=f"counted: {counted}")
    return record


def _scans(config: QuestionsConfig, source: str) -> list[Scan]:
    """Scan the files of a source and check that they have the columns of the templates."""
    corpus = to_corpus_config(config, source)
    scans = [scan(file, corpus) for file in corpus_files(corpus)]
    for about in scans:
        if about.columns:
            for key, template in (("question", config.question), ("answer", config.answer)):
                Template.parse(template).check(about.columns, about.file.name, f"questions.{key}")
    return scans


def run(config: QuestionsStageConfig, shard: Shard, out: Path) -> Counters:
    """Write all questions of the sources as rows of the shards' table, by split."""
    counters: Counter[str] = Counter(records=0, train=0, validation=0)
    found = [
        question
        for split in ("validation", "train")  # a question that is held out is not trained on as well
        for question in read_questions(
            config.questions, map(as_slice, shard.details[split]), counters, held_out=split == "validation"
        )
    ]
    tokens = CorpusTokenizer.load(Path(config.tokenizer))
    for split, rows in question_rows(found, config.questions, tokens, counters).items():
        write_rows(out / f"{split}.parquet", SHARDS, rows)
    return dict(counters)


# ---------------------------------------------------------------------------------------------------- report


def report(recipe: Recipe, asked: Record, *, run: Path) -> dict[str, Any]:
    """Answer the held-out questions greedily before and after training, write `finetune.json` and log the change.

    Args:
        recipe: its `policy` is the policy before training.
        asked: record of `questions`.
        run: the run's folder; its `policy/` is the policy after training.

    Returns:
        The content of `finetune.json`.

    Raises:
        UserError: the run has no trained policy.
    """
    recipe = with_dtype(recipe, "finetune", run)
    policies = {"before": resolve_model(recipe.policy.model, recipe.policy.revision), "after": run / "policy"}
    if not policies["after"].is_dir():
        raise UserError("the run has no trained policy yet", where=policies["after"], hint="run `rpt finetune` again")
    settings = {key: recipe.identity()[key] for key in ("evaluate", "task", "seed", "rollout")}
    prompts = prompts_of(policies, recipe.task, run)
    settings["prompts"] = {name: asdict(prompt) for name, prompt in prompts.items()}
    inputs = {"questions": asked.content} | {name: model_digest(folder) for name, folder in policies.items()}
    identity, done = fingerprint("finetune", VERSION, settings, inputs), run / "finetune.json"
    if done.exists() and (known := json.loads(done.read_text(encoding="utf-8")))["fingerprint"] == identity:
        log(f"finetune     up to date  {done}")
        return dict(known)

    evaluated = recipe.evaluate
    sites = choose_held_out(asked.files("validation"), evaluated.where, evaluated.sites, recipe.seed)
    answers = {
        name: read_policy(name, folder, recipe, prompts[name], sites, asked.config["max_context_tokens"])
        for name, folder in policies.items()
    }
    hits = {name: np.array([answer.hit for answer in read]) for name, read in answers.items()}
    own_N = [site.doc_id for site in sites]
    change = difference(hits["after"], hits["before"], own_N)
    assert change is not None
    found: dict[str, Any] = {
        "fingerprint": identity,
        "questions": len(sites),
        "accuracy": {name: asdict(share) for name in policies if (share := proportion(hits[name], own_N))},
        "difference": asdict(change),
        "reasons": {name: dict(Counter(answer.outcome.reason for answer in read)) for name, read in answers.items()},
        "mean_length": {name: float(np.mean([len(a.response_ids) for a in read])) for name, read in answers.items()},
    }
    done.unlink(missing_ok=True)  # written last: while it is missing, the answers may be another report's
    write_answers(run / "answers.parquet", sites, answers)
    write_json(done, found)
    for name, share in found["accuracy"].items():
        value, low, high = (f"{100 * share[part]:.1f}" for part in ("value", "low", "high"))
        log(f"{name:<12} {value} % [{low}, {high}] of {len(sites):,} questions")
    log(f"difference   {points(vars(change))} points")
    return found


def read_policy(
    name: str, folder: Path, recipe: Recipe, text: PromptText, sites: Sequence[Site], longest_question: int
) -> list[Prediction]:
    """Return a policy's answers to the questions, sampled at `evaluate.temperature`."""
    policy, prompts = load_sampler(
        folder,
        text,
        dtype=recipe.policy.dtype,
        batch_rows=recipe.rollout.batch_rows,
        longest_context=longest_question,
        max_new_tokens=recipe.rollout.max_new_tokens,
    )
    with progress_bar(f"answers {name}", Throughput(len(sites), "tokens", steps="questions")) as advance:
        judge = judge_of(recipe.task.reward)
        answers = predict_with_reasoning(policy, prompts, sites, recipe, advance=advance, judge=judge)
    log_first("finetune", sites, answers, prompts)
    return answers


def write_answers(path: Path, sites: Sequence[Site], answers: dict[str, list[Prediction]]) -> None:
    """Write every answer to `path`, one policy after the other."""
    rows = (
        {
            "policy": name,
            "site_id": site.site_id,
            "question": site.context.decode(),
            "answer": site.target.decode(),
            **answer_row(answer),
        }
        for name, read in answers.items()
        for site, answer in zip(sites, read, strict=True)
    )
    with atomic_replacement(path) as temporary:
        write_rows(temporary, ANSWERS, rows)


class FinetuneSpec(RunSpec):
    """The specification of the report of `rpt finetune`."""

    questions: Path
    """The prepared questions."""


def main(spec: FinetuneSpec) -> None:
    """Write the report, which `rpt finetune` starts in a new process once the policy is trained."""
    report(spec.recipe, published_record(spec.questions), run=spec.run)


if __name__ == "__main__":
    run_rank(FinetuneSpec, main)
