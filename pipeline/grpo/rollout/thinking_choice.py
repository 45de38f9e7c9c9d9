"""Choice of how a policy thinks, for `task.thinking: auto`. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.recipe import Recipe
from pipeline.config.task import TaskConfig
from pipeline.core.progress import log
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.policy.rendezvous import is_first_rank
from pipeline.grpo.rollout.chat_template import ChatTemplate
from pipeline.task.templates import template_of
from pipeline.task.thinking import Mode, Thinking, choose_mode


def with_thinking(recipe: Recipe, folder: Path, tokens: CorpusTokenizer, command: str) -> Recipe:
    """Return the recipe with mode and template of its task in place of `auto`, and log both in one line.

    Args:
        recipe: the recipe.
        folder: the policy's folder.
        tokens: the policy's tokenizer.
        command: its name, for the log.

    Raises:
        UserError: the prompt template is refused (`template_of`).
    """
    mode, reason = mode_of(recipe.task, ChatTemplate.of(folder), tokens)
    template = template_of(recipe.task.template, mode)
    if is_first_rank():
        log(f"{command:<12} thinking: {mode}, template: {template.name}; {reason}")
    named = template.name if recipe.task.template == "auto" else recipe.task.template
    task = recipe.task.model_copy(update={"thinking": mode, "template": named})
    return recipe.model_copy(update={"task": task})


def mode_of(task: TaskConfig, chat: ChatTemplate | None, tokens: CorpusTokenizer) -> tuple[Mode, str]:
    """Return the mode of a task for a policy, and the reason.

    Args:
        task: the recipe's task.
        chat: the policy's chat template, if it has one.
        tokens: the policy's tokenizer.
    """
    if task.thinking != "auto":
        return task.thinking, f"as the recipe says (task.thinking: {task.thinking})"
    mode, reason = choose_mode(
        *task.think_marks, are_tokens=_are_tokens(task, tokens), in_template=_in_template(task, chat)
    )
    return mode, f"{reason} (auto)"


def thinking_of(task: TaskConfig, chat: ChatTemplate | None, tokens: CorpusTokenizer) -> Thinking:
    """Return how a policy thinks in a task; see `mode_of` for the arguments."""
    return Thinking(mode_of(task, chat, tokens)[0], *task.think_marks, task.prefill)


def knows_marks(task: TaskConfig, chat: ChatTemplate | None, tokens: CorpusTokenizer) -> bool:
    """Return whether the policy's tokenizer or chat template has the marks; see `mode_of` for the arguments."""
    return _are_tokens(task, tokens) or _in_template(task, chat)


def _are_tokens(task: TaskConfig, tokens: CorpusTokenizer) -> bool:
    return all(tokens.id_of(mark) is not None for mark in task.think_marks)


def _in_template(task: TaskConfig, chat: ChatTemplate | None) -> bool:
    return chat is not None and all(mark in chat.text for mark in task.think_marks)
