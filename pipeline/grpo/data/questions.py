"""Questions with known answers, as rows of the shards' table: the question is the context, the answer its continuation.

Training draws, samples and rewards them like sites; only the rule that scores a response differs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from pipeline.config.corpus import CorpusConfig, ValidationConfig
from pipeline.config.task import QuestionsConfig
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.corpus.dedup.assignment import assign
from pipeline.corpus.documents import doc_id
from pipeline.corpus.quarantine import Unusable
from pipeline.corpus.readers.dispatch import read_records
from pipeline.corpus.readers.records import Slice
from pipeline.corpus.rendering import as_text
from pipeline.corpus.sources.splits import EVERY
from pipeline.corpus.template import Template


class Question(NamedTuple):
    """A usable record; `held_out` is set by its source or by its own column."""

    text: str
    answer: str
    held_out: bool


def to_corpus_config(config: QuestionsConfig, source: str) -> CorpusConfig:
    """Return one of the sources as a corpus configuration, for the corpus readers."""
    return CorpusConfig(
        source=source,
        format=config.format,
        revision=config.revision,
        splits=(EVERY,) if source == config.held_out_source else (),
        text=config.question,
        validation=ValidationConfig(documents=0) if config.held_out_source else config.held_out,
    )


def read_questions(
    config: QuestionsConfig, parts: Iterable[Slice], counters: Counter[str], *, held_out: bool
) -> Iterator[Question]:
    """Yield the questions of the slices, in order; unusable records are counted by reason.

    Args:
        config: columns, and the mark before a final answer.
        parts: slices to read.
        counters: receives `records`, `quarantined.<reason>` and `dropped.no_answer`.
        held_out: True if all of these questions are held out.
    """
    corpus = to_corpus_config(config, config.source)
    question, answer, column = Template.parse(config.question), Template.parse(config.answer), config.held_out.column
    for part in parts:
        for _, _, _, value in read_records(part, corpus):
            counters["records"] += 1
            try:
                if isinstance(value, Unusable):
                    raise value
                text, reply = question.render(value)[0], final_answer(answer.render(value)[0], config.answer_after)
                text.encode(), reply.encode()
                marked = column is not None and as_text(column, value) == config.held_out.value
            except Unusable as why:
                counters[f"quarantined.{why.reason}"] += 1
            except UnicodeEncodeError:
                counters["quarantined.lone_surrogate"] += 1
            else:
                if reply:
                    yield Question(text, reply, held_out or (marked and not config.held_out_source))
                counters["dropped.no_answer"] += not reply


def final_answer(text: str, after: str | None) -> str:
    r"""Return the stripped text behind the last `after` in an answer, or all of it without `after`; "" if none.

    Example:
        >>> final_answer("Half of 8 is 4.\n#### 4", "####"), final_answer("no mark", "####"), final_answer(" 4 ", None)
        ('4', '', '4')
    """
    return text.strip() if after is None else text.rpartition(after)[2].strip() if after in text else ""


def question_rows(
    questions: Sequence[Question], config: QuestionsConfig, tokens: CorpusTokenizer, counters: Counter[str]
) -> dict[str, list[dict[str, Any]]]:
    """Return rows of `SHARDS` by split; of equal questions only the first is kept.

    Args:
        questions: the questions, held-out ones first, so that they are not in training as well.
        config: the rule for held-out questions, and the maximum length.
        tokens: the policy's tokenizer.
        counters: receives `dropped.duplicate`, `dropped.too_long`, `train` and `validation`.
    """
    ids = [doc_id(question.text) for question in questions]
    rule = ValidationConfig(column="held_out") if config.held_out_source else config.held_out
    marked = [question.held_out for question in questions]
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    lengths = map(len, tokens.encode_batch([question.text for question in questions]))
    splits = assign(ids, marked, rule, config.seed)
    for question, own_id, split, length in zip(questions, ids, splits, lengths, strict=True):
        if split is None:
            counters["dropped.duplicate"] += 1
        elif length > config.max_question_tokens:
            counters["dropped.too_long"] += 1
        else:
            counters[split] += 1
            rows[split].append(_row(question, own_id, split))
    return rows


def _row(question: Question, own_id: str, split: str) -> dict[str, Any]:
    """Return the question as a row without proxy scores, whose answer counts as a single token."""
    text, answer = question.text.encode(), question.answer.encode()
    return {
        "site_id": f"{own_id}-0",
        "doc_id": own_id,
        "position": 0,
        "byte_offset": len(text),
        "field": "answer",
        "entropy": 0.0,
        "nll": 0.0,
        "rank": 0,
        "token_class": "",
        "band": "none",
        "split": split,
        "context": text,
        "target": answer,
        "continuation": answer,
        "token_lengths": [len(answer)],
        "context_truncated": False,
    }
