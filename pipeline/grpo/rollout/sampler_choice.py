"""Which sampler a run takes, where its recipe leaves that open. Starts without torch."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Literal

from pipeline.config.recipe import Recipe
from pipeline.config.task import READING_REWARDS
from pipeline.core.hardware import torch_device
from pipeline.core.progress import log

SAMPLERS = {"built_in": "built-in sampler", "vllm": "vLLM sampler"}


def with_sampler(recipe: Recipe, server: str | None) -> Recipe:
    """The recipe with its `rollout.sampler` settled, if that is `auto`: what it is on this machine, which is said."""
    if recipe.rollout.sampler != "auto":
        return recipe
    main, world = os.environ.get("RANK", "0") == "0", int(os.environ.get("WORLD_SIZE", "1"))
    installed = find_spec("vllm") is not None
    gpu = installed and torch_device() == "cuda"
    sampler, reason = choose_sampler(recipe.task.reward, server, world, installed=installed, gpu=gpu)
    if main:
        log(f"train        rollouts by the {SAMPLERS[sampler]}: {reason} (rollout.sampler: auto)")
    return recipe.model_copy(update={"rollout": recipe.rollout.model_copy(update={"sampler": sampler})})


def choose_sampler(
    reward: str, server: str | None, ranks: int, *, installed: bool, gpu: bool
) -> tuple[Literal["built_in", "vllm"], str]:
    """What `rollout.sampler: auto` stands for, and why.

    Args:
        reward: `task.reward`.
        server: address of a vLLM server, if one was given.
        ranks: that share the run.
        installed: whether vLLM is.
        gpu: whether PyTorch can use one.
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
