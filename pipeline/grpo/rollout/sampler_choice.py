"""Choice of the sampler for `rollout.sampler: auto`. Imports no torch."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Literal

from pipeline.config.recipe import Recipe
from pipeline.config.task import READING_REWARDS
from pipeline.core.hardware import torch_device
from pipeline.core.progress import log
from pipeline.grpo.policy.rendezvous import is_first_rank

SAMPLERS = {"built_in": "built-in sampler", "vllm": "vLLM sampler"}


def with_sampler(recipe: Recipe, server: str | None) -> Recipe:
    """Return the recipe with `rollout.sampler: auto` replaced by this machine's sampler, and log the choice."""
    if recipe.rollout.sampler != "auto":
        return recipe
    world = int(os.environ.get("WORLD_SIZE", "1"))
    installed = find_spec("vllm") is not None
    gpu = installed and torch_device() == "cuda"
    sampler, reason = choose_sampler(recipe.task.reward, server, world, installed=installed, gpu=gpu)
    if is_first_rank():
        log(f"train        rollouts by the {SAMPLERS[sampler]}: {reason} (rollout.sampler: auto)")
    return recipe.model_copy(update={"rollout": recipe.rollout.model_copy(update={"sampler": sampler})})


def choose_sampler(
    reward: str, server: str | None, ranks: int, *, installed: bool, gpu: bool
) -> tuple[Literal["built_in", "vllm"], str]:
    """Return the sampler that `rollout.sampler: auto` means, and the reason.

    Args:
        reward: `task.reward`.
        server: address of a vLLM server, if one was given.
        ranks: number of ranks of the run.
        installed: True if vLLM is installed.
        gpu: True if PyTorch can use a GPU.
    """
    if reward in READING_REWARDS:
        return "built_in", f"task.reward: {reward} reads probabilities, which vLLM does not give"
    if server:
        return "vllm", f"a server was given, {server}"
    if not installed:
        return "built_in", "vLLM is not installed"
    if not gpu:
        return "built_in", "PyTorch has no GPU"
    if ranks > 1:
        return "built_in", "for several ranks vLLM needs a server (--vllm-server)"
    return "vllm", "vLLM is installed and there is a GPU"
