"""Supervised examples as token ids, and the sampler that divides them into steps of about equal token counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.config.errors import UserError
from pipeline.core.artifact import InputFile
from pipeline.core.parquet import read_table
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.data.written import ResponseWriter
from pipeline.grpo.rollout.prompt import PromptBuilder
from pipeline.shards.order import permutation
from pipeline.shards.reader import ShardReader
from pipeline.task.extraction import extract_prediction
from pipeline.task.reward import response_bytes

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Example:
    """A prompt, and a response that the loss covers, each of at least one token."""

    prompt: Ids
    response: Ids

    @property
    def length(self) -> int:
        """Return the number of tokens of both."""
        return len(self.prompt) + len(self.response)


class EpochSampler:
    """An endless sequence of epochs, each a new permutation of the examples, in steps of about `step_tokens` tokens.

    An example belongs to the step in which its first token falls. The examples of a step depend on (examples, seed,
    step) alone.

    Raises:
        UserError: there is no example, or one is longer than a step.
    """

    def __init__(self, examples: Sequence[Example], seed: int, step_tokens: int, what: str) -> None:
        """`what` names the examples in error messages."""
        self._examples, self._seed, self._step_tokens = examples, seed, step_tokens
        self._lengths = np.array([example.length for example in examples], dtype=np.int64)
        if not len(examples):
            raise UserError("no training examples", where=what)
        self.longest = int(self._lengths.max())
        if self.longest > step_tokens:
            raise UserError(
                f"an example of {self.longest:,} tokens is longer than its share of a step, {step_tokens:,} tokens",
                where=what,
                hint="raise `supervised.batch_tokens`",
            )

    def __len__(self) -> int:
        return len(self._examples)

    def of_step(self, step: int) -> list[Example]:
        """Return the examples of a step, at least one."""
        begin, total = step * self._step_tokens, int(self._lengths.sum())
        end = begin + self._step_tokens
        chosen: list[int] = []
        for epoch in range(begin // total, (end - 1) // total + 1):
            order = permutation(len(self._examples), self._seed, epoch)
            ends = epoch * total + np.cumsum(self._lengths[order])
            starts = ends - self._lengths[order]
            chosen += order[(starts >= begin) & (starts < end)].tolist()
        return [self._examples[i] for i in chosen]


def subsample(examples: Sequence[Example], most: int, seed: int) -> tuple[Example, ...]:
    """Return at most `most` of the examples, chosen by seed."""
    return tuple(examples[i] for i in permutation(len(examples), seed, 0, stop=most))


# ------------------------------------------------------------------------------------------------------ text


def text_examples(
    files: Sequence[InputFile], split: str, tokens: CorpusTokenizer, end: int, window: int
) -> list[Example]:
    """Return the documents of a split as examples, each token to be predicted from those before it in its document.

    Args:
        files: files of the table `documents`.
        split: `train` or `validation`.
        tokens: the policy's tokenizer; its beginning-of-sequence token, if any, precedes each document.
        end: the token that follows each document.
        window: maximum tokens of an example; longer documents are divided.
    """
    before = [] if tokens.bos_id is None else [tokens.bos_id]
    examples: list[Example] = []
    for file in files:
        table = read_table(file, ["text", "split"])
        texts = [row["text"] for row in table.to_pylist() if row["split"] == split]
        for ids in tokens.encode_batch(texts):
            examples += pieces(np.concatenate([before, ids, [end]]).astype(np.int32), window)
    return examples


def pieces(ids: Ids, window: int) -> Iterator[Example]:
    """Yield a text in pieces of at most `window` tokens that overlap by one, so that the loss covers each token once.

    Example:
        >>> [(e.prompt.tolist(), e.response.tolist()) for e in pieces(np.array([7, 8, 9, 10]), 3)]
        [([7], [8, 9]), ([9], [10])]
    """
    for start in range(0, len(ids) - 1, window - 1):
        yield Example(ids[start : start + 1], ids[start + 1 : start + window])


# --------------------------------------------------------------------------------------------------- answers


def thought_examples(files: Sequence[Path], prompts: PromptBuilder, tokens: CorpusTokenizer) -> list[Example]:
    """Return contexts with the correct responses that a run sampled: thought, and continuation in its box.

    Args:
        files: tables of rollouts (`rollouts.ROLLOUTS`).
        prompts: builds the prompts of the contexts.
        tokens: the policy's tokenizer.

    Raises:
        UserError: there is no correct response, or the rollouts were produced with a different tokenizer, or in another
            form than that of the prompts.
    """
    columns = ["context", "response", "response_ids", "prediction"]
    tables = [pl.scan_parquet(file).filter(pl.col("reason") == "match").select(columns) for file in files]
    rows = pl.concat(tables).collect() if tables else pl.DataFrame()
    if not len(rows):
        raise UserError(
            "the rollouts contain no correct response", where=", ".join(map(str, files[:3])) or "--rollouts"
        )
    examples = []
    for context, response, response_ids, prediction in rows.iter_rows():
        ids = np.array(response_ids, dtype=np.int32)
        sampled = response_bytes(response_ids[:-1], tokens.token_bytes)  # the last id ends the response
        if not response.endswith(sampled.decode("utf-8", errors="replace")):
            raise UserError(
                "the rollouts were produced with a different tokenizer",
                where=files[0],
                hint="use rollouts of a run that started from the same policy",
            )
        if extract_prediction(sampled, prompts.thinking) != prediction:
            raise UserError(
                "the rollouts were answered in another form than this recipe's",
                where=files[0],
                hint="use the `task.thinking`, `task.think_marks` and `task.prefill` of the run that sampled them",
            )
        examples.append(Example(np.array(prompts.ids(context.encode()), dtype=np.int32), ids))
    return examples


def answer_examples(sites: ShardReader, prompts: PromptBuilder, tokens: CorpusTokenizer, end: int) -> list[Example]:
    """Return contexts with the true next token in a box, without a thought, in the form that the prompts ask for.

    Args:
        sites: sites of the training split.
        prompts: builds the prompts of the contexts.
        tokens: the policy's tokenizer.
        end: the token that ends a response.
    """
    writer = ResponseWriter(tokens, prompts.thinking, end)
    examples = []
    for i in range(len(sites)):
        site = sites[i]
        prompt, response = prompts.ids(site.context), writer.ids("", site.target)
        examples.append(Example(np.array(prompt, dtype=np.int32), np.array(response, dtype=np.int32)))
    return examples
