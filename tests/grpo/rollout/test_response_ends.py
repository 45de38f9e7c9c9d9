"""One rule for what ends a response, on policies whose files disagree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.errors import UserError
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.rollout.response_ends import ResponseEnds, response_ends
from tests.toys import byte_level_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|end|>", "<|im_start|>", "<|im_end|>", "<|pad|>")


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A tokenizer with four special tokens, and none of the files that name an end."""
    folder = byte_level_tokenizer(tmp_path / "policy", ["some text"])
    tree = json.loads((folder / "tokenizer.json").read_text())
    known = {token["content"]: token for token in tree["added_tokens"]}
    top = max(max(tree["model"]["vocab"].values()), max(token["id"] for token in tree["added_tokens"]))
    for name in SPECIAL:
        if name not in known:
            top += 1
            tree["added_tokens"].append(known["<|end|>"] | {"id": top, "content": name})
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    write(folder, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    return folder


def write(folder: Path, name: str, **tree: Any) -> None:
    (folder / name).write_text(json.dumps(tree))


def ends_of(folder: Path) -> tuple[ResponseEnds, dict[str, int]]:
    tokens = CorpusTokenizer.load(folder)
    ids = {name: tokens.id_of(name) for name in SPECIAL}
    return response_ends(folder, tokens), {name: id for name, id in ids.items() if id is not None}


def test_it_is_the_union_of_what_all_files_name(policy: Path) -> None:
    tokens = CorpusTokenizer.load(policy)
    end, pad = tokens.id_of("<|end|>"), tokens.id_of("<|pad|>")
    write(policy, "tokenizer_config.json", eos_token={"content": "<|end|>"}, chat_template=CHATML)
    write(policy, "generation_config.json", eos_token_id=[pad, end])
    write(policy, "config.json", eos_token_id=5)
    ends, ids = ends_of(policy)
    assert ends.ids == {ids["<|im_end|>"], end, pad, 5}
    assert ends.named[ids["<|end|>"]] == ("tokenizer", "generation configuration")
    assert ends.of_response == ids["<|im_end|>"], "sft teaches the end of turn, which is an end of the sampler"
    assert ends.of_text == end, "documents end as the tokenizer says"
    assert f"'<|im_end|>' (token {ids['<|im_end|>']})" in ends.described(tokens)


@pytest.mark.parametrize(
    ("file", "tree", "name"),
    [
        ("tokenizer_config.json", {"eos_token": "<|end|>"}, "<|end|>"),
        ("special_tokens_map.json", {"eos_token": {"content": "<|pad|>"}}, "<|pad|>"),
        ("tokenizer_config.json", {"chat_template": CHATML}, "<|im_end|>"),
        ("tokenizer_config.json", {"chat_template": [{"name": "default", "template": CHATML}]}, "<|im_end|>"),
        ("generation_config.json", {"eos_token_id": "<|pad|>"}, "<|pad|>"),
        ("config.json", {"eos_token_id": ["<|pad|>"]}, "<|pad|>"),
        ("config.json", {"text_config": {"eos_token_id": "<|pad|>"}}, "<|pad|>"),
    ],
)
def test_any_file_alone_is_enough(policy: Path, file: str, tree: dict[str, Any], name: str) -> None:
    """A tokenizer without `eos_token` is no obstacle."""
    if file.endswith("config.json") and not file.startswith("tokenizer"):
        tree = json.loads(json.dumps(tree).replace('"<|pad|>"', str(CorpusTokenizer.load(policy).id_of("<|pad|>"))))
    write(policy, file, **tree)
    ends, ids = ends_of(policy)
    assert ends.ids == {ids[name]} and ends.of_response == ends.of_text == ids[name]


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"eos_token": None},
        {"chat_template": "{{ messages[0]['content'] }}"},  # an answer is not shown
        {"chat_template": "{% for m in messages %}{{ m['content'] }}</think>{% endfor %}"},  # no special token
        {"chat_template": "{{ raise_exception('no answers') }}"},
    ],
)
def test_a_policy_that_names_no_end_is_refused(policy: Path, tree: dict[str, Any]) -> None:
    write(policy, "tokenizer_config.json", **tree)
    write(policy, "config.json", eos_token_id=10**6)
    with pytest.raises(UserError, match=r"names no token that ends a response.*set `eos_token`"):
        ends_of(policy)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "config.json"])
@pytest.mark.parametrize("content", ["{", "[]", "3"])
def test_a_file_that_is_no_object_is_an_error_that_names_it(policy: Path, name: str, content: str) -> None:
    tokens = CorpusTokenizer.load(policy)
    (policy / name).write_text(content)
    with pytest.raises(UserError, match=name):
        response_ends(policy, tokens)
