"""Supervised examples: what is read, what is learned, and in which step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.core.parquet import write_rows
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.data.examples import EpochSampler, Example, answer_examples, pieces, text_examples, thought_examples
from pipeline.grpo.rollout.rollouts import ROLLOUTS
from pipeline.shards.reader import ShardReader
from pipeline.task.thinking import Thinking
from tests.grpo.colours import COLOURS, context, publish_shards
from tests.grpo.prompts import prompts_for
from tests.stages.published import publish_tables
from tests.toys import byte_level_tokenizer


def example(number: int, length: int) -> Example:
    """Of `length` tokens, all of them its number."""
    return Example(np.full(1, number, np.int32), np.full(length - 1, number, np.int32))


@given(st.lists(st.integers(2, 9), min_size=1, max_size=12), st.integers(9, 40), st.integers(0, 3))
def test_steps_pass_through_all_examples_epoch_by_epoch(lengths: list[int], step_tokens: int, seed: int) -> None:
    stream = EpochSampler([example(i, length) for i, length in enumerate(lengths)], seed, step_tokens, "examples")
    taken = [stream.of_step(step) for step in range(12)]
    assert all(taken), "no step is empty"
    drawn, n = [int(e.prompt[0]) for step in taken for e in step], len(lengths)
    epochs = [drawn[i : i + n] for i in range(0, len(drawn) - n + 1, n)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs), "each once an epoch, none left out"
    begins = np.cumsum([0, *(sum(e.length for e in step) for step in taken)])
    assert all(abs(int(begin) - step * step_tokens) < 9 for step, begin in enumerate(begins)), "within one example"
    again = EpochSampler([example(i, length) for i, length in enumerate(lengths)], seed, step_tokens, "examples")
    assert [e.prompt[0] for e in again.of_step(7)] == [e.prompt[0] for e in taken[7]], "whatever came before"


def test_too_long_or_too_few_examples_are_refused() -> None:
    with pytest.raises(UserError, match="10 tokens is longer"):
        EpochSampler([example(0, 10)], 0, 9, "examples")
    with pytest.raises(UserError, match="no training examples"):
        EpochSampler([], 0, 9, "examples")


@given(st.integers(2, 50), st.integers(2, 20))
def test_every_token_but_the_first_is_learned_once(length: int, window: int) -> None:
    ids = np.arange(length, dtype=np.int32)
    cut = list(pieces(ids, window))
    assert np.concatenate([piece.response for piece in cut]).tolist() == list(range(1, length))
    assert all(piece.prompt.tolist() == [piece.response[0] - 1] and piece.length <= window for piece in cut)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [context(i) + c for i in range(40) for c in COLOURS] + ["</think>\\boxed{}"] * 9
    return byte_level_tokenizer(tmp_path_factory.mktemp("policy"), texts, vocab_size=330)


def test_a_document_is_read_from_its_beginning_to_its_end(policy: Path, tmp_path: Path) -> None:
    rows = [("One red.", "train"), ("Two blue.", "validation"), ("Three.", "train")]
    table = pa.table({"text": [text for text, _ in rows], "split": [split for _, split in rows]})
    tokens = CorpusTokenizer.load(policy)
    files = publish_tables(tmp_path, "ingest", [{"documents": table}]).files("documents")
    read = text_examples(files, "train", tokens, 0, 1000)
    assert [[*e.prompt.tolist(), *e.response.tolist()] for e in read] == [
        [*tokens.encode(text).tolist(), 0] for text in ("One red.", "Three.")
    ]
    assert [len(e.prompt) for e in read] == [1, 1]


def test_right_responses_are_learned_as_they_were_sampled(policy: Path, tmp_path: Path) -> None:
    tokens = CorpusTokenizer.load(policy)
    prompts = prompts_for(policy)
    end = tokens.id_of("<|end|>")
    said = {"match": "It is red.</think>\\boxed{ red}", "mismatch": "</think>\\boxed{ blue}"}
    ids = {reason: [*tokens.encode(text).tolist(), end] for reason, text in said.items()}
    rows = [
        {
            "step": 0, "site_id": "s", "band": "hard", "sample": i, "prompt_ids": [1], "response_ids": ids[reason],
            "context": context(3), "response": said[reason], "target": b" red", "prediction": b" red", "reward": 1.0,
            "reason": reason, "advantage": 0.0, "finished": True, "length": len(ids[reason]), "importance": 1.0,
        }
        for i, reason in enumerate(["mismatch", "match", "match"])
    ]  # fmt: skip
    write_rows(tmp_path / "r.parquet", ROLLOUTS, rows)
    read = thought_examples([tmp_path / "r.parquet"], prompts, tokens)
    assert [e.response.tolist() for e in read] == [ids["match"]] * 2
    assert read[0].prompt.tolist() == prompts.ids(context(3).encode())
    rows[1]["response_ids"] = [end, *ids["match"]]
    write_rows(tmp_path / "other.parquet", ROLLOUTS, rows[1:2])
    with pytest.raises(UserError, match="a different tokenizer"):
        thought_examples([tmp_path / "other.parquet"], prompts, tokens)
    write_rows(tmp_path / "right.parquet", ROLLOUTS, rows[2:])
    prompts.thinking = Thinking("none", prefill="\\boxed{")
    assert len(thought_examples([tmp_path / "right.parquet"], prompts, tokens)) == 1, "it is right in this form, too"
    prompts.thinking = Thinking("tags", "[T]", "[/T]")
    with pytest.raises(UserError, match="in another form"):
        thought_examples([tmp_path / "right.parquet"], prompts, tokens)
    write_rows(tmp_path / "wrong.parquet", ROLLOUTS, rows[:1])
    with pytest.raises(UserError, match="no correct response"):
        thought_examples([tmp_path / "wrong.parquet"], prompts, tokens)


def test_without_thoughts_the_true_token_stands_in_the_box(policy: Path, tmp_path: Path) -> None:
    tokens = CorpusTokenizer.load(policy)
    prompts = prompts_for(policy)
    shards = publish_shards(tmp_path, policy, sites=5)
    reader, end = ShardReader(shards.files("train")), tokens.id_of("<|end|>")
    read = answer_examples(reader, prompts, tokens, end)
    prompts.thinking = Thinking("none", prefill="\\boxed{")
    short = answer_examples(reader, prompts, tokens, end)
    assert [tokens.decode_bytes(e.response, continues=True) for e in short] == [
        reader[i].target + b"}<|end|>" for i in range(len(reader))
    ]
    for i, one in enumerate(read):
        assert one.prompt.tolist() == prompts.ids(reader[i].context)
        *response, last = one.response.tolist()
        assert last == end and response[0] == tokens.id_of("</think>")
        assert tokens.decode_bytes(response, continues=True) == b"</think>\\boxed{" + reader[i].target + b"}"
