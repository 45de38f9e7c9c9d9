"""Prompts as token ids: the chat template's text around the context's own tokens.

The template is rendered once and cut at its slot. A prompt is then `prefix + encode(context) + suffix`. A context that
contains `<think>` or an end-of-turn token cannot break out of the user's message, because its text is never parsed for
special tokens. The rendered text is stored in the run's folder, because a chat template may insert the date.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.base import canonical_json
from pipeline.config.errors import UserError
from pipeline.config.task import TaskConfig
from pipeline.core.sealed import write_json
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.rollout.chat_template import ChatTemplate
from pipeline.grpo.rollout.thinking_choice import knows_marks, thinking_of
from pipeline.task.extraction import TAGS
from pipeline.task.templates import SLOT, template_of
from pipeline.task.thinking import Thinking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEPT = "prompt.json"
"""File in a run's folder with the rendered prompt and a digest of its inputs."""


@dataclass(frozen=True)
class PromptText:
    """The prompt's text before and after the context, with special tokens as text, and how its responses are read."""

    before: str
    after: str
    """Up to where the response goes on: it may open a thought, and ends with the given beginning (`task.prefill`)."""
    thinking: Thinking = TAGS


def rendered(chat: ChatTemplate | None, tokens: CorpusTokenizer, task: TaskConfig) -> PromptText:
    """Render the task's template as one user message of the policy's chat template, with the generation prompt added.

    `Thinking.prompt_end` adds what the mode and the prefill ask for.

    Raises:
        UserError: the prompt template is refused (`template_of`), or the chat template fails, loses the context, or
            repeats it.
    """
    text, thinking = template_of(task.template, task.thinking).text, thinking_of(task, chat, tokens)
    if chat:
        text = chat.render([{"role": "user", "content": text}], add_generation_prompt=True)
    if (count := text.count(SLOT)) != 1:
        raise UserError(
            f"the policy's chat template must contain the context once, but contains it {count} times",
            where=chat.where if chat else "",
            hint="repair `chat_template` in the policy's folder, or remove it",
        )
    before, _, after = text.partition(SLOT)
    return PromptText(before, thinking.prompt_end(after, knows_marks(task, chat, tokens)), thinking)


def kept_prompt(run: Path, folder: Path, tokens: CorpusTokenizer, task: TaskConfig) -> PromptText:
    """Return the prompt stored in a run if it was rendered from the same task and chat template, else render it now.

    Args:
        run: the run's folder; it need not exist.
        folder: the policy's folder.
        tokens: the policy's tokenizer.
        task: the recipe's task.
    """
    return _first_kept([run], folder, tokens, task)


def prompts_of(policies: Mapping[str, Path], task: TaskConfig, run: Path | None = None) -> dict[str, PromptText]:
    """Return the prompt that each policy is evaluated with, by the policy's name.

    It is the one that a run keeps, where it was rendered from the same task and chat template: the run that the policy
    lies in as `policy/`, else the run that is evaluated, else the run of another of the policies. A chat template that
    holds the date then shows every policy the date that the trained one knows.

    Args:
        policies: folders by name.
        task: the recipe's.
        run: the folder of the run that is evaluated; need not exist.
    """
    runs = [*([run] if run else []), *(folder.parent for folder in policies.values())]
    return {
        name: _first_kept([folder.parent, *runs], folder, CorpusTokenizer.load(folder), task)
        for name, folder in policies.items()
    }


def _first_kept(runs: Iterable[Path], folder: Path, tokens: CorpusTokenizer, task: TaskConfig) -> PromptText:
    """The prompt of the first run that keeps one of this task and chat template; else as it renders now."""
    chat = ChatTemplate.of(folder)
    made_from, thinking = _made_from(chat, tokens, task), thinking_of(task, chat, tokens)
    for run in runs:
        kept = _read(run / KEPT)
        if kept.get("made_from") == made_from:
            return PromptText(kept["before"], kept["after"], thinking)
    return rendered(chat, tokens, task)


def keep_prompt(run: Path, text: PromptText, folder: Path, tokens: CorpusTokenizer, task: TaskConfig) -> None:
    """Store the prompt for `kept_prompt`, which describes the arguments."""
    made_from = _made_from(ChatTemplate.of(folder), tokens, task)
    write_json(run / KEPT, {"made_from": made_from, "before": text.before, "after": text.after})


def _made_from(chat: ChatTemplate | None, tokens: CorpusTokenizer, task: TaskConfig) -> str:
    used = {name: token for name, token in chat.special_tokens.items() if name in chat.text} if chat else {}
    form = [*thinking_of(task, chat, tokens), knows_marks(task, chat, tokens)]
    parts = [template_of(task.template, task.thinking).text, chat.text if chat else None, used, form]
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def _read(path: Path) -> Mapping[str, str]:
    """Return the stored prompt; empty if there is none or it is unreadable."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    names = ("made_from", "before", "after")
    return kept if isinstance(kept, dict) and all(isinstance(kept.get(name), str) for name in names) else {}


class PromptBuilder:
    """Builds prompts of contexts for one policy and one rendered prompt template.

    A policy without a chat template gets the plain text, preceded by the beginning-of-sequence token if it has one.

    Attributes:
        prefix_ids: token ids before the context.
        suffix_ids: token ids after the context, up to where the response goes on.
        after: bytes of the text after the context, without the given beginning of the response.
        thinking: how the responses are read.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, corpus_tokenizer: CorpusTokenizer, text: PromptText) -> None:
        bos = [] if tokenizer.chat_template or corpus_tokenizer.bos_id is None else [corpus_tokenizer.bos_id]
        self.prefix_ids: list[int] = bos + tokenizer.encode(text.before, add_special_tokens=False)
        self.suffix_ids: list[int] = tokenizer.encode(text.after, add_special_tokens=False)
        self.after: bytes = text.after.removesuffix(text.thinking.prefill).encode()
        self.thinking = text.thinking
        self._corpus_tokenizer = corpus_tokenizer

    def ids(self, context: bytes) -> list[int]:
        """Return the prompt's token ids for a context (UTF-8; a character cut at its start becomes U+FFFD)."""
        text = context.decode("utf-8", errors="replace")
        return [*self.prefix_ids, *self._corpus_tokenizer.encode(text).tolist(), *self.suffix_ids]

    def longest(self, context_tokens: int, max_new_tokens: int) -> int:
        """Return an upper bound of the tokens of a prompt and its response.

        A context cut to `context_tokens` at its front may take a few more tokens when it is encoded again; 64 are
        added.
        """
        return len(self.prefix_ids) + context_tokens + 64 + len(self.suffix_ids) + max_new_tokens

    def bare_ids(self, text: str) -> list[int]:
        """Return the token ids of a text without a prompt, after the beginning-of-sequence token if there is one."""
        beginning = [] if self._corpus_tokenizer.bos_id is None else [self._corpus_tokenizer.bos_id]
        return [*beginning, *self._corpus_tokenizer.encode(text).tolist()]
