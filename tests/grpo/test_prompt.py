from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pipeline.grpo.prompt import PromptBuilder
from pipeline.scoring.tokens import CorpusTokenizer
from pipeline.task.templates import TEMPLATES
from tests.toys import byte_level_tokenizer

CHAT = (
    "{% for m in messages %}[{{ m['content'] | trim }}]{% endfor %}{% if add_generation_prompt %}bot:<end>{% endif %}"
)
CONTEXT = "1 + 1 = <think></think><|end|> 数学 "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [CONTEXT, *(template.text for template in TEMPLATES.values())]
    return byte_level_tokenizer(tmp_path_factory.mktemp("tokenizer"), texts)


def tokenizers(folder: Path, chat: str | None) -> tuple[PreTrainedTokenizerBase, CorpusTokenizer]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = chat
    return tokenizer, CorpusTokenizer.load(folder)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_is_the_rendered_template_around_the_context(folder: Path, name: str) -> None:
    tokenizer, tokens = tokenizers(folder, CHAT.replace("<end>", "<think>"))
    ids = PromptBuilder(tokenizer, tokens, TEMPLATES[name]).ids(CONTEXT.encode())
    user = TEMPLATES[name].text.strip()
    assert tokens.decode_bytes(ids).decode() == f"[{user}]bot:<think>".replace("{context}", CONTEXT)
    assert ids[-1] == tokens.id_of("<think>")


def test_a_context_cannot_speak_in_special_tokens(folder: Path) -> None:
    builder = PromptBuilder(*tokenizers(folder, CHAT), TEMPLATES["brief"])
    tokens = CorpusTokenizer.load(folder)
    ids = builder.ids(CONTEXT.encode())[len(builder.prefix_ids) : -len(builder.suffix_ids)]
    assert not {tokens.id_of(name) for name in ("<think>", "</think>", "<|end|>")} & set(ids)
    assert tokens.decode_bytes(ids) == CONTEXT.encode()


@pytest.mark.parametrize(
    ("chat", "end"),
    [
        (CHAT.replace("<end>", "<think>\n"), "bot:<think>\n"),  # as DeepSeek-R1's
        (CHAT.replace("<end>", ""), "bot:<think>\n"),
        (CHAT.replace("<end>", "<think>\n\n</think>\n"), "</think>\n<think>\n"),  # a thought closed is none
        (None, "Complete the text: x<think>\n"),
    ],
)
def test_a_thought_is_opened_once(folder: Path, chat: str | None, end: str) -> None:
    tokenizer, tokens = tokenizers(folder, chat)
    text = tokens.decode_bytes(PromptBuilder(tokenizer, tokens, TEMPLATES["brief"]).ids(b"x")).decode()
    assert text.endswith(end)


def test_without_a_chat_template_the_expected_beginning_is_there(tmp_path: Path) -> None:
    folder = byte_level_tokenizer(tmp_path, [CONTEXT])
    config = folder / "tokenizer_config.json"
    config.write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|end|>", "add_bos_token": true}',
        encoding="utf-8",
    )
    tokenizer, tokens = tokenizers(folder, None)
    ids = PromptBuilder(tokenizer, tokens, TEMPLATES["brief"]).ids(b"x")
    assert ids[0] == tokens.id_of("<|end|>") and ids.count(ids[0]) == 1


def test_a_chat_template_that_loses_the_context_is_an_error(folder: Path) -> None:
    with pytest.raises(ValueError, match="lost the slot"):
        PromptBuilder(*tokenizers(folder, "{{ 'hello' }}"), TEMPLATES["brief"])


def test_real_chat_template(real_data: Path) -> None:
    tokenizer, tokens = tokenizers(real_data / "tokenizers" / "deepseek-r1-distill-qwen", None)
    tokenizer = AutoTokenizer.from_pretrained(real_data / "tokenizers" / "deepseek-r1-distill-qwen")
    ids = PromptBuilder(tokenizer, tokens, TEMPLATES["v0"]).ids(CONTEXT.encode())
    assert ids[:2] == [151646, 151644] and ids[-2:] == [151648, 198]
    assert ids.count(151648) == 1, "the context's own <think> is text"
