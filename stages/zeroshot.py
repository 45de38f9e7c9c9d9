"""Zero-shot: a policy and a benchmark of multiple-choice questions → accuracy, direct or by reasoning.

Input:   a `transformers` folder; MMLU-Pro or SuperGPQA, from the Hub or a local copy.
Output:  in OUT: `<benchmark>-<mode>.json` (figures) and `.jsonl` (every question with its response); a table.
Command: rpt zeroshot POLICY --benchmark mmlu-pro [--source FILE] [--mode direct|reasoning] [--questions 200]

The model is run by lm-eval (extra `eval`).
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from pipeline.config.errors import UserError
from pipeline.core.hardware import torch_device
from pipeline.core.model_files import resolve_model
from pipeline.core.progress import counted, log, results
from pipeline.evaluation.report import Table, percent
from pipeline.evaluation.zeroshot import BENCHMARKS, letter_of, lm_eval_task, read_questions, summarize_zeroshot


def zeroshot(
    policy: str,
    *,
    benchmark: str,
    source: str | None,
    mode: str,
    questions: int | None,
    max_new_tokens: int,
    seed: int,
    out: Path,
) -> dict[str, Any]:
    """Evaluate the policy on the questions, write and print the result, and return the content of the JSON file.

    Args:
        policy: folder or Hub id.
        benchmark: a key of `BENCHMARKS`.
        source: a local copy of the benchmark; None: download it from the Hub.
        mode: `direct` or `reasoning`.
        questions: number of questions; None: all.
        max_new_tokens: maximum length of a response, in tokens.
        seed: seed of the choice of questions.
        out: folder to write to.

    Raises:
        UserError: lm-eval is not installed, or the policy or the questions cannot be read.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm-eval is not installed", where="rpt zeroshot", hint="pip install 'rpt[eval]'")
    folder = resolve_model(policy)
    asked, unusable = read_questions(BENCHMARKS[benchmark], source, questions, seed)
    log(f"zeroshot     {len(asked):,} questions of {benchmark}, {unusable:,} records unusable")
    samples = _ask(folder, lm_eval_task(f"{benchmark}-{mode}", asked, mode, max_new_tokens), mode)
    metric = "acc" if mode == "direct" else "exact_match"
    hits = [sample[metric] > 0 for sample in samples]
    answered = [mode == "direct" or letter_of(sample["resps"][0][0]) is not None for sample in samples]
    found = {
        "policy": policy,
        "benchmark": benchmark,
        "mode": mode,
        "unusable": unusable,
        **summarize_zeroshot(asked, hits, answered),
    }
    out.mkdir(parents=True, exist_ok=True)
    lines = (
        json.dumps({"question": q.question, "answer": q.answer, "hit": hit, "response": sample["filtered_resps"]})
        for q, hit, sample in zip(asked, hits, samples, strict=True)
    )
    name = out / f"{benchmark}-{mode}"
    name.with_suffix(".jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    name.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    console = results()
    console.print(table(found).terminal())
    console.print(sentence(found), soft_wrap=True)
    return found


def _ask(folder: Path, task: dict[str, Any], mode: str) -> list[dict[str, Any]]:
    """Return lm-eval's samples, in the order of the questions."""
    from lm_eval import simple_evaluate

    device = torch_device()
    results = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "dtype": "float32" if device == "cpu" else "auto"},
        tasks=[task],
        device=device,
        batch_size=16,
        bootstrap_iters=0,
        apply_chat_template=mode == "reasoning",
    )
    assert results is not None, "one rank"
    return sorted(results["samples"][task["task"]], key=lambda sample: sample["doc_id"])


def table(found: dict[str, Any]) -> Table:
    """Return a table with one row per category, after one for all questions."""
    rows = [
        (name, f"{own['accuracy']['sites']:,}", percent(own["accuracy"]), f"{100 * own['chance']:.1f}")
        for name, own in {"all": found, **found["categories"]}.items()
    ]
    title = f"{found['benchmark']}, {found['mode']}: accuracy, % [95 % interval]"
    return Table(title, ("", "questions", "accuracy", "chance"), tuple(rows))


def sentence(found: dict[str, Any]) -> str:
    """Return a sentence that compares the accuracy with chance."""
    against = "above chance" if found["above_chance"] else "not above chance"
    named = "" if found["mode"] == "direct" else f" {100 * found['answered']:.1f} % of the responses name an option."
    return (
        f"Of {counted(found['questions'], 'question')} {percent(found['accuracy'])} % are answered correctly, "
        f"{100 * found['chance']:.1f} % by chance: {against}.{named}"
    )
