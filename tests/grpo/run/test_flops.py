"""FLOPs against what PyTorch counts when it computes the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from pipeline.config.recipe import PolicyConfig, Recipe
from pipeline.config.task import TaskConfig
from pipeline.config.training import ObjectiveConfig, OptimizerConfig
from pipeline.grpo.rollout.rollouts import Rollout
from pipeline.grpo.run.flops import ComputeUsed, ModelSize, grpo_flops
from pipeline.grpo.types import Group, Response
from pipeline.shards.reader import Site
from tests.grpo.models import VOCAB, saved, tiny

SITE = Site("d-1", "d", 1, 2.0, "hard", "text", b"a", b"b", b"b", (1,), "digit", 2.0, 3)


def counted(folder: Path, *, backward: bool) -> int:
    """FLOPs that PyTorch counts of 12 tokens; its count of attention knows no causality: all 12 tokens attend to 12."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        loss = model(torch.arange(12)[None], use_cache=False).logits.sum()
        if backward:
            loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(("kind", "tied"), [("qwen2", True), ("qwen2", False), ("llama", False), ("gpt2", True)])
def test_a_forward_and_a_backward_are_what_pytorch_counts(tmp_path: Path, kind: str, tied: bool) -> None:
    folder = saved(tmp_path, kind=kind, tied=tied)
    size = ModelSize.of(folder)
    everyone_attends = 4 * size.attention * 12 * 12
    plain = 2 * size.weights * 12 + everyone_attends
    assert counted(folder, backward=False) == pytest.approx(plain, rel=0.01), "rotations are the rest"
    assert counted(folder, backward=True) == pytest.approx(3 * plain, rel=0.03)
    causal = plain - size.forward(12)
    assert causal == 4 * size.attention * (12 * 12 - 12 * 13 // 2)


def test_reading_in_two_parts_costs_what_reading_at_once_does() -> None:
    size = ModelSize(weights=1000, attention=64)
    assert size.forward(5) + size.forward(7, before=5) == size.forward(12)


def rollout(prompt: int, *lengths: int) -> Rollout:
    responses = tuple(Response((3,) * n, b"", True, (0.0,) * n) for n in lengths)
    return Rollout(SITE, Group((3,) * prompt, responses, (1.0,) * len(lengths)), ())


def recipe_of(**objective: float) -> Recipe:
    return Recipe(name="a", policy=PolicyConfig(model="b"), objective=ObjectiveConfig(**objective))


def test_a_step_by_hand() -> None:
    """Ten weights, attention 1: a token that attends to t costs 20 + 4 t."""
    size = ModelSize(weights=10, attention=1)
    one, two = rollout(2, 1, 2), rollout(1, 1)
    prompt = (20 + 4) + (20 + 8)
    of_one = prompt + (20 + 12) + (20 + 12) + (20 + 16)
    of_two = (20 + 4) + (20 + 8)
    assert (size.group(one.group), size.group(two.group)) == (of_one, of_two)
    assert grpo_flops(size, recipe_of(), [one, two], [one], []) == of_one + of_two + 3 * of_one
    assert grpo_flops(size, recipe_of(kl=0.1), [one, two], [one], []) == of_one + of_two + 4 * of_one
    assert grpo_flops(size, recipe_of(kl=0.1, top_entropy=0.2), [one], [one], []) == of_one + 5 * of_one
    in_turn = recipe_of().model_copy(update={"optimizer": OptimizerConfig(updates_per_step=2)})
    assert grpo_flops(size, in_turn, [one], [one], []) == of_one + 4 * of_one
    assert grpo_flops(size, recipe_of(next_token=1), [one], [], [[5, 6]]) == of_one + 3 * prompt
    dense, gain = (recipe_of().model_copy(update={"task": TaskConfig(reward=r)}) for r in ("dense", "information_gain"))
    assert grpo_flops(size, dense, [one], [], []) == of_one + prompt
    after = (20 + 12) + (20 + 12) + (20 + 16)
    assert grpo_flops(size, gain, [one], [], []) == of_one + prompt + 2 * prompt + after


def test_what_was_spent_goes_on_from_a_checkpoint() -> None:
    spent = ComputeUsed().plus(1e9, 2.5, 7, 20).plus(1e9, 0.5, 3, 5)
    assert ComputeUsed(**spent.state()) == spent
    assert spent.metrics() == {
        "compute/flops": 2e9,
        "compute/seconds": 3.0,
        "compute/tokens": 10,
        "compute/sampled": 25,
    }


def test_the_size_of_a_tiny_decoder_by_hand(tmp_path: Path) -> None:
    tiny("qwen2", tied=False).save_pretrained(tmp_path)
    attention, mlp = 32 * 32 * 2 + 2 * 32 * 16, 3 * 32 * 48
    assert ModelSize.of(tmp_path) == ModelSize(weights=2 * (attention + mlp) + VOCAB * 32, attention=2 * 32)
