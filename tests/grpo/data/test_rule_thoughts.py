"""Thoughts by rule: what they say, that they vary, and that they use nothing but context and next token."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.data.rule_thoughts import KINDS, WORDINGS, rule_thought
from tests.grpo.colours import COLOURS, context
from tests.toys import byte_level_tokenizer


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> CorpusTokenizer:
    texts = [context(i) + c for i in range(40) for c in COLOURS]
    return CorpusTokenizer.load(byte_level_tokenizer(tmp_path_factory.mktemp("policy"), texts, vocab_size=330))


def said(tokens: CorpusTokenizer, key: int, token_class: str = "word_start") -> str:
    """The thought after `One, two, three`, one token per letter, with ` red` as next token."""
    letters = [tokens.encode(letter).tolist()[0] for letter in "One, two, three"]
    thought = rule_thought(tokens, letters, tokens.encode(" red").tolist(), token_class, key)
    return tokens.decode_bytes(thought, continues=True).decode()


def test_a_thought_repeats_the_end_of_the_context_and_goes_on(tokens: CorpusTokenizer) -> None:
    """Keys 0 to 4 are the wordings with two tokens, 5 to 9 those with three."""
    assert said(tokens, key=0) == 'The text goes on: "…ee red"\n'
    assert said(tokens, key=1) == 'I expect a word. The text goes on: "…ee red"\n'
    assert said(tokens, key=5) == 'The text goes on: "…ree red"\n', "one more token"
    assert said(tokens, key=9, token_class="digit") == 'What comes next? "…ree red", so it is a number.\n'


@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 329), max_size=30), st.sampled_from(sorted(KINDS)))
def test_it_is_made_of_the_last_tokens_the_next_one_and_a_wording(
    tokens: CorpusTokenizer, key: int, ids: list[int], token_class: str
) -> None:
    thought = rule_thought(tokens, ids, [7], token_class, key)
    assert thought == rule_thought(tokens, ids, [7], token_class, key)
    wordings = [
        [tokens.encode(part.format(kind=KINDS[token_class])).tolist() for part in (wording.before, wording.after)]
        for wording in WORDINGS
    ]
    tails = [ids[-n:] for n in range(2, 7)]
    assert thought in [[*before, *tail, 7, *after] for before, after in wordings for tail in tails]
    longer = [1, 2, 3, *ids] if len(ids) >= 6 else ids
    assert thought == rule_thought(tokens, longer, [7], token_class, key), "what lies further back does not matter"
