"""The prompts that a policy's folder stands for."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from pipeline.config.task import TaskConfig
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.rollout.prompt import PromptBuilder, prompts_of

BRIEF = TaskConfig(template="brief")


def prompts_for(folder: Path, task: TaskConfig = BRIEF) -> PromptBuilder:
    """Return the builder of a policy's prompts, as it is evaluated with."""
    text = prompts_of({"policy": folder}, task)["policy"]
    return PromptBuilder(AutoTokenizer.from_pretrained(folder), CorpusTokenizer.load(folder), text)
