r"""Multiple-choice questions of general benchmarks, for lm-eval: MMLU-Pro and SuperGPQA (arXiv 2506.08007, Table 3).

*Direct*: the most likely option letter after the question. *Reasoning*: a response whose last `\boxed{}` or
"answer is" names a letter. The questions are those of the benchmarks, but both use our own plain prompt,
so figures are not comparable with leaderboards.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.config.corpus import CorpusConfig, ValidationConfig
from pipeline.config.errors import UserError
from pipeline.core.random_keys import random_key
from pipeline.corpus.quarantine import Unusable
from pipeline.corpus.readers.dispatch import read_records
from pipeline.corpus.readers.records import Slice
from pipeline.corpus.sources.finding import find_files
from pipeline.evaluation.intervals import proportion

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Benchmark:
    """Source and column names of a benchmark."""

    source: str
    """Default source; the user may give a copy."""
    answer: str
    """Name of the column with the letter of the right option."""
    category: str


BENCHMARKS = {
    "mmlu-pro": Benchmark("hf://datasets/TIGER-Lab/MMLU-Pro/data/test-00000-of-00001.parquet", "answer", "category"),
    "supergpqa": Benchmark("hf://datasets/m-a-p/SuperGPQA/SuperGPQA-all.jsonl", "answer_letter", "discipline"),
}


@dataclass(frozen=True)
class Question:
    """A question with its options; `answer` is the index of the right option."""

    question: str
    options: tuple[str, ...]
    answer: int
    category: str

    @property
    def prompt(self) -> str:
        """Return the question followed by its lettered options."""
        options = "\n".join(f"{LETTERS[i]}. {option.strip()}" for i, option in enumerate(self.options))
        return f"Question: {self.question.strip()}\nOptions:\n{options}"


def read_questions(
    benchmark: Benchmark, source: str | None, count: int | None, seed: int
) -> tuple[list[Question], int]:
    """Return `count` questions (all, if None) chosen by a hash of (seed, row), in the order of the source.

    Args:
        benchmark: Default source and column names.
        source: Path, glob or URL of a copy; None for the default source on the Hub.
        count: Number of questions.
        seed: Seed of the choice.

    Returns:
        The questions, and the number of records skipped because they lack a question, options, or a valid answer.

    Raises:
        UserError: The source cannot be read or contains no question.
    """
    place = source or benchmark.source
    known: list[tuple[int, Question]] = []
    unusable = 0
    for row, value in enumerate(_records(place)):
        question = _question(benchmark, value)
        if question is None:
            unusable += 1
        else:
            known.append((row, question))
    if not known:
        raise UserError(
            "the benchmark contains no usable question",
            where=place,
            hint=f"it needs the columns question, options, {benchmark.answer}",
        )
    ranked = sorted(known, key=lambda item: random_key("zeroshot", seed, item[0]))[:count]
    return [question for _, question in sorted(ranked, key=lambda item: item[0])], unusable


def _records(source: str) -> Iterator[Mapping[str, Any] | Unusable]:
    config = CorpusConfig(source=source, validation=ValidationConfig(documents=0))
    for file in find_files(source):
        for record in read_records(Slice(file), config):
            yield record.value


def _question(benchmark: Benchmark, value: Mapping[str, Any] | Unusable) -> Question | None:
    if isinstance(value, Unusable):
        return None
    text, options, letter = value.get("question"), value.get("options"), value.get(benchmark.answer)
    if not isinstance(text, str) or not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
        return None
    if not isinstance(letter, str) or letter not in LETTERS[: len(options)]:
        return None
    return Question(text, tuple(map(str, options)), LETTERS.index(letter), str(value.get(benchmark.category, "")))


def lm_eval_task(name: str, questions: Sequence[Question], mode: str, max_new_tokens: int) -> dict[str, Any]:
    """Return an lm-eval task configuration for the questions; no data set is downloaded.

    Args:
        name: Name of the task.
        questions: Questions, in the order in which they are asked.
        mode: `direct` or `reasoning`.
        max_new_tokens: Maximum length of a response.
    """

    def dataset(**_: Any) -> dict[str, Any]:
        from datasets import Dataset

        rows = [asdict(question) | {"prompt": question.prompt} for question in questions]
        return {"test": Dataset.from_list(rows)}

    common = {"task": name, "custom_dataset": dataset, "test_split": "test", "num_fewshot": 0}
    if mode == "direct":
        return common | {
            "output_type": "multiple_choice",
            "doc_to_text": lambda doc: f"{doc['prompt']}\nAnswer:",
            "doc_to_choice": lambda doc: [f" {letter}" for letter in LETTERS[: len(doc["options"])]],
            "doc_to_target": lambda doc: doc["answer"],
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
    return common | {
        "output_type": "generate_until",
        "doc_to_text": lambda doc: (
            f"{doc['prompt']}\nReason step by step, then give the right option's letter in \\boxed{{}}."
        ),
        "doc_to_target": lambda doc: LETTERS[doc["answer"]],
        "process_results": lambda doc, results: {"exact_match": float(letter_of(results[0]) == LETTERS[doc["answer"]])},
        "generation_kwargs": {"until": [], "max_gen_toks": max_new_tokens, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }


def letter_of(response: str) -> str | None:
    r"""Return the last option letter that a response gives as its answer; None if it gives none.

    Example:
        >>> [letter_of(text) for text in (r"so \boxed{C}", r"\boxed{A} no, \boxed{(B)}", "The answer is D.", "C")]
        ['C', 'B', 'D', None]
    """
    boxed = re.findall(r"\\boxed\{\s*(?:\\text\{)?\(?([A-J])\)?\W", response)
    stated = re.findall(r"answer is:?\s*\(?([A-J])\b", response)
    return (boxed or stated or [None])[-1]


def summarize_zeroshot(questions: Sequence[Question], hits: Sequence[bool], answered: Sequence[bool]) -> dict[str, Any]:
    """Return accuracy with intervals and chance level, overall and by category, as JSON values.

    Args:
        questions: The questions asked.
        hits: True for each question answered right, in the same order.
        answered: True for each response that gave a letter at all.

    Returns:
        `questions`, `accuracy`, `chance` (of picking an option at random), `above_chance` (the interval lies above it),
        `answered` and `categories`.
    """
    hits_N, chance_N = np.array(hits, dtype=bool), np.array([1 / len(q.options) for q in questions])
    ids_N, category_N = np.arange(len(questions)).astype(str), np.array([q.category for q in questions], dtype=str)

    def about(own_N: Any) -> dict[str, Any]:
        accuracy = proportion(hits_N[own_N], ids_N[own_N])
        assert accuracy is not None
        chance = float(chance_N[own_N].mean())
        return {"accuracy": asdict(accuracy), "chance": chance, "above_chance": accuracy.low > chance}

    return {
        "questions": len(questions),
        **about(np.ones(len(questions), dtype=bool)),
        "answered": float(np.mean(answered)),
        "categories": {str(name): about(category_N == name) for name in np.unique(category_N)},
    }
