from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from pipeline.config.errors import UserError
from pipeline.config.recipe import Recipe
from pipeline.config.task import TaskConfig
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.rollout.chat_template import ChatTemplate
from pipeline.grpo.rollout.prompt import PromptBuilder, PromptText, keep_prompt, kept_prompt
from pipeline.grpo.rollout.thinking_choice import with_thinking
from pipeline.task.templates import TEMPLATES
from tests.grpo.prompts import prompts_for
from tests.toys import byte_level_tokenizer

CHAT = (
    "{% for m in messages %}[{{ m['content'] | trim }}]{% endfor %}{% if add_generation_prompt %}bot:<end>{% endif %}"
)
CONTEXT = "1 + 1 = <think></think><|end|> 数学 "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [CONTEXT, *(template.text for template in TEMPLATES.values())]
    return byte_level_tokenizer(tmp_path_factory.mktemp("tokenizer"), texts)


def policy_with(folder: Path, chat: str | None, target: Path) -> Path:
    shutil.copytree(folder, target)
    if chat is not None:
        (target / "chat_template.jinja").write_text(chat, encoding="utf-8")
    return target


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_is_the_rendered_template_around_the_context(folder: Path, name: str, tmp_path: Path) -> None:
    policy = policy_with(folder, CHAT.replace("<end>", "<think>"), tmp_path / "policy")
    tokens = CorpusTokenizer.load(policy)
    ids = prompts_for(policy, TaskConfig(template=name)).ids(CONTEXT.encode())
    user = TEMPLATES[name].text.strip()
    assert tokens.decode_bytes(ids).decode() == f"[{user}]bot:<think>".replace("{context}", CONTEXT)
    assert ids[-1] == tokens.id_of("<think>")


def test_a_context_cannot_speak_in_special_tokens(folder: Path, tmp_path: Path) -> None:
    builder = prompts_for(policy_with(folder, CHAT, tmp_path / "policy"))
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
def test_a_thought_is_opened_once(folder: Path, chat: str | None, end: str, tmp_path: Path) -> None:
    ids = prompts_for(policy_with(folder, chat, tmp_path / "policy")).ids(b"x")
    text = CorpusTokenizer.load(folder).decode_bytes(ids).decode()
    assert text.endswith(end)


def test_without_a_chat_template_the_expected_beginning_is_there(tmp_path: Path) -> None:
    folder = byte_level_tokenizer(tmp_path, [CONTEXT])
    config = folder / "tokenizer_config.json"
    config.write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|end|>", "add_bos_token": true}',
        encoding="utf-8",
    )
    tokens, ids = CorpusTokenizer.load(folder), prompts_for(folder).ids(b"x")
    assert ids[0] == tokens.id_of("<|end|>") and ids.count(ids[0]) == 1


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        ("{{ 'hello' }}", "contains it 0 times"),
        ("{{ messages[0]['content'] | upper }}", "contains it 0 times"),
        ("{{ messages[0]['content'] }} again: {{ messages[0]['content'] }}", "contains it 2 times"),
        ("{{ raise_exception('no system message') }}", "no system message"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ nothing.at.all }}", "UndefinedError"),
        ("{{ messages.__class__.__mro__ }}", "cannot be rendered|contains it 0 times"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ 'x' * 10000000000 }}", "takes more than 1024 MiB"),
        ("{{ 'x' * 2000000 }}", "renders 2,000,000 characters"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "too much time or memory"),
        ("{{ 9 ** (9 ** 9) }}", "too much time or memory"),
    ],
)
def test_a_chat_template_that_does_harm_is_an_error_that_says_so(
    folder: Path, chat: str, said: str, tmp_path: Path
) -> None:
    policy = policy_with(folder, chat, tmp_path / "policy")
    with pytest.raises(UserError, match=f"chat template.*({said})"):
        prompts_for(policy)


BRIEF = TaskConfig(template="brief")
DATED = "{{ strftime_now('%d %b %Y') }} {{ messages[0]['content'] }}"


def test_a_date_stays_what_it_was_when_the_run_began(folder: Path, tmp_path: Path) -> None:
    policy, tokens = policy_with(folder, DATED, tmp_path / "policy"), CorpusTokenizer.load(folder)
    chat, brief = ChatTemplate.of(policy), TEMPLATES["brief"]
    assert chat is not None
    ask = [{"role": "user", "content": "x"}]
    days = [chat.render(ask, add_generation_prompt=True, now=datetime(2025, month, 7)) for month in (1, 2)]
    assert days == ["07 Jan 2025 x", "07 Feb 2025 x"]

    run = tmp_path / "run"
    run.mkdir()
    first = PromptText(f"07 Jan 2025 {brief.before}", "<think>\n")
    keep_prompt(run, first, policy, tokens, BRIEF)
    assert kept_prompt(run, policy, tokens, BRIEF) == first, "on any later date"
    today = kept_prompt(tmp_path / "new run", policy, tokens, BRIEF)
    assert today != first and today.before.endswith(f" {brief.before}")
    assert kept_prompt(run, policy, tokens, TaskConfig(template="v0")).before.endswith(TEMPLATES["v0"].before), (
        "another prompt"
    )
    (policy / "chat_template.jinja").write_text("{{ messages[0]['content'] }}", encoding="utf-8")
    assert kept_prompt(run, policy, tokens, BRIEF) == PromptText(brief.before, "<think>\n"), "another chat template"


def test_a_file_that_keeps_no_prompt_is_not_read(folder: Path, tmp_path: Path) -> None:
    tokens, brief = CorpusTokenizer.load(folder), TEMPLATES["brief"]
    for content in ("", "[]", "{}", '{"made_from": 1}', "\x00"):
        (tmp_path / "prompt.json").write_text(content)
        assert kept_prompt(tmp_path, folder, tokens, BRIEF) == PromptText(brief.before, "<think>\n")


def test_the_prompt_of_a_folder_is_that_of_its_tokenizer(folder: Path, tmp_path: Path) -> None:
    policy = policy_with(folder, "{{ eos_token }}" + CHAT.replace("<end>", ""), tmp_path / "policy")
    tokenizer, tokens = AutoTokenizer.from_pretrained(policy), CorpusTokenizer.load(policy)
    text = kept_prompt(tmp_path, policy, tokens, BRIEF)
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": TEMPLATES["brief"].text}], tokenize=False, add_generation_prompt=True
    )
    assert f"{text.before}{{context}}{text.after}" == f"{expected}<think>\n" and expected.startswith("<|end|>[")
    assert PromptBuilder(tokenizer, tokens, text).ids(b"x") == prompts_for(policy).ids(b"x")


def test_real_chat_template(real_data: Path) -> None:
    folder = real_data / "tokenizers" / "deepseek-r1-distill-qwen"
    ids = prompts_for(folder, TaskConfig(template="v0")).ids(CONTEXT.encode())
    assert ids[:2] == [151646, 151644] and ids[-2:] == [151648, 198]
    assert ids.count(151648) == 1, "the context's own <think> is text"


@pytest.mark.parametrize(
    ("chat", "marks", "task", "mode", "after"),
    [
        (CHAT.replace("<end>", ""), True, {}, "tags", "bot:<think>\n"),
        (CHAT.replace("<end>", ""), False, {}, "free", "bot:"),
        (CHAT.replace("<end>", "{# <think></think> #}"), False, {}, "tags", "bot:<think>\n"),
        (CHAT.replace("<end>", "{# <think> #}"), False, {}, "free", "bot:"),
        (None, True, {}, "tags", "<think>\n"),
        (None, False, {}, "free", ""),
        (None, False, {"thinking": "tags"}, "tags", "<think>\n"),
        (None, True, {"think_marks": ["[T]", "[/T]"]}, "free", ""),
        (CHAT.replace("<end>", "[T][/T]"), True, {"think_marks": ["[T]", "[/T]"]}, "tags", "bot:[T][/T][T]\n"),
        (CHAT.replace("<end>", "<think>\n"), True, {"thinking": "none"}, "none", "bot:<think>\n\n</think>\n\n"),
        (CHAT.replace("<end>", ""), True, {"thinking": "none"}, "none", "bot:<think>\n\n</think>\n\n"),
        (CHAT.replace("<end>", ""), False, {"thinking": "none"}, "none", "bot:"),
        (None, False, {"prefill": "A{}: \\boxed{"}, "free", "A{}: \\boxed{"),
        (None, True, {"prefill": "{context}"}, "tags", "<think>\n{context}"),
    ],
)
def test_how_a_policy_is_asked_to_think(
    tmp_path: Path, chat: str | None, marks: bool, task: dict[str, object], mode: str, after: str
) -> None:
    policy = byte_level_tokenizer(tmp_path / "policy", [CONTEXT], marks=marks)
    if chat:
        (policy / "chat_template.jinja").write_text(chat, encoding="utf-8")
    tokens = CorpusTokenizer.load(policy)
    recipe = Recipe.model_validate(
        {"name": "r", "policy": {"model": str(policy)}, "task": {"template": "brief"} | task}
    )
    resolved = with_thinking(recipe, policy, tokens, "train")
    text = kept_prompt(tmp_path, policy, tokens, recipe.task)
    assert resolved.task.thinking == text.thinking.mode == mode
    assert text.after == ("]" if chat else "") + after
    assert kept_prompt(tmp_path, policy, tokens, resolved.task) == text, "resolved or not"
    builder = PromptBuilder(AutoTokenizer.from_pretrained(policy), tokens, text)
    assert tokens.decode_bytes(builder.suffix_ids).decode() == text.after
    assert (tokens.id_of("<think>") in builder.suffix_ids) == ("<think>" in after and marks)


def test_auto_is_resolved_and_said_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = CorpusTokenizer.load(folder)
    said = {}
    for thinking in ("auto", "none"):
        task = TaskConfig.model_validate({"thinking": thinking})
        recipe = Recipe.model_validate({"name": "r", "policy": {"model": str(folder)}}).model_copy(
            update={"task": task}
        )
        said[thinking] = with_thinking(recipe, folder, tokens, "train").task
    assert (said["auto"].thinking, said["auto"].template) == ("tags", "v0")
    assert (said["none"].thinking, said["none"].template) == ("none", "direct")
    first, second = capsys.readouterr().err.splitlines()
    assert first.split(None, 1) == [
        "train",
        "thinking: tags, template: v0; <think> and </think> are tokens of the policy (auto)",
    ]
    assert "thinking: none, template: direct; as the recipe says" in second


def test_another_form_is_another_prompt(folder: Path, tmp_path: Path) -> None:
    tokens = CorpusTokenizer.load(folder)
    first = PromptText("of another day ", "<think>\n")
    keep_prompt(tmp_path, first, folder, tokens, BRIEF)
    assert kept_prompt(tmp_path, folder, tokens, BRIEF) == first
    for task in ({"thinking": "free"}, {"prefill": "Hm."}, {"think_marks": ["[T]", "[/T]"]}, {"template": "v1"}):
        other = kept_prompt(tmp_path, folder, tokens, BRIEF.model_copy(update=task))
        assert other.before != first.before, task
