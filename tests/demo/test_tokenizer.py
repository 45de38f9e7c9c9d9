from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import demo
from demo.corpus import WHEELS
from demo.tokenizer import ASSISTANT, BOS, END, PAD, USER

FOLDER = Path(demo.__file__).parent
TOKENIZER = AutoTokenizer.from_pretrained(FOLDER / "policy")


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_it_is_lossless_on_any_text(text: str) -> None:
    assert TOKENIZER.decode(encode(text), clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize("text", ["e\u0301 ≠ é", "ﬁ \u212b", " two  spaces ", "\r\n\t", "𝔘 👩‍👩‍👧 \x00"])
def test_it_normalises_nothing(text: str) -> None:
    assert TOKENIZER.decode(encode(text)) == text


def test_states_digits_and_the_box_are_single_tokens() -> None:
    for wheel in WHEELS.values():
        assert all(len(encode(state)) == 1 for state in wheel)
    assert len(encode("1234567890")) == 10
    assert TOKENIZER.tokenize("\\boxed{4}") == ["\\boxed{", "4", "}"]
    assert TOKENIZER.tokenize("\\boxed{ red}") == ["\\boxed{", "Ġred", "}"]


def test_marks_and_thoughts_are_single_tokens() -> None:
    for mark in (PAD, BOS, END, USER, ASSISTANT, "<think>", "</think>"):
        assert len(encode(mark)) == 1
    declared = TOKENIZER.pad_token, TOKENIZER.bos_token, TOKENIZER.eos_token
    assert declared == (PAD, BOS, END)


def test_the_generation_prompt_opens_a_thought() -> None:
    chat = TOKENIZER.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True)
    assert chat == "<|bos|><|user|>x<|assistant|><think>"


def test_proxy_and_policy_share_it() -> None:
    proxy: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(FOLDER / "proxy")
    assert proxy.get_vocab() == TOKENIZER.get_vocab()
