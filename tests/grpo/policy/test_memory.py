from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from pipeline.config.recipe import PolicyConfig, Recipe
from pipeline.config.training import ObjectiveConfig, OptimizerConfig, RolloutConfig
from pipeline.grpo.model.batch import batch_of
from pipeline.grpo.model.logprobs import PolicyLogprobs, checkpoint_layers
from pipeline.grpo.policy.memory import (
    activation_bytes,
    layout_parts,
    memory_table,
    parameter_sizes,
    recipe_memory,
    working_parts,
)
from pipeline.grpo.types import Group, Response
from tests.grpo.models import saved, tiny


def recipe(*, checkpointing: bool = False, dtype: str = "float32", **parts: object) -> Recipe:
    policy = PolicyConfig(model="tiny", dtype=dtype, gradient_checkpointing=checkpointing)
    return Recipe(name="a", policy=policy, rollout=RolloutConfig(group_size=4), **parts)


def saved_bytes(policy: PolicyLogprobs, shape: tuple[int, int, int, int]) -> int:
    """Bytes of distinct storages that a forward leaves for its backward, the weights not counted."""
    groups, size, context, room = shape
    response = Response((0,) * room, b"", True, (0.0,) * room)
    # The first context is shorter, so that there is padding; a prompt's last token is the first that responses read.
    lengths = [context] + [context + 1] * (groups - 1)
    batch = batch_of([Group((0,) * length, (response,) * size, (1.0,) * size) for length in lengths])
    weights = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        policy(batch, 1.0)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def model_of(kind: str, dtype: torch.dtype) -> PreTrainedModel:
    """Wide enough for its parts to have about the shares that they have in models of use."""
    sizes = {"vocab_size": 16, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    made: PretrainedConfig = {
        "llama": LlamaConfig(**sizes, num_key_value_heads=2, intermediate_size=192),
        "qwen2": Qwen2Config(**sizes, num_key_value_heads=1, intermediate_size=384),
        "gpt2": GPT2Config(**sizes),
        "sliding": MistralConfig(**sizes, num_key_value_heads=2, intermediate_size=192, sliding_window=8),
    }[kind]
    made.pad_token_id = made.bos_token_id = made.eos_token_id = 2
    model: PreTrainedModel = AutoModelForCausalLM.from_config(made, dtype=dtype)
    return model.eval()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("shape", [(3, 4, 170, 80), (2, 8, 20, 100)])
@pytest.mark.parametrize(("kind", "within"), [("llama", 0.1), ("qwen2", 0.1), ("sliding", 0.15), ("gpt2", 0.15)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_are_about_what_autograd_keeps(
    kind: str, within: float, checkpointing: bool, dtype: str, shape: tuple[int, int, int, int]
) -> None:
    model = model_of(kind, getattr(torch, dtype))
    expected = activation_bytes(model.config, recipe(checkpointing=checkpointing, dtype=dtype), shape)
    policy = PolicyLogprobs(model, repeat_heads=True)
    plain = saved_bytes(policy, shape)
    kept = plain
    if checkpointing:
        checkpoint_layers(model)
        kept = saved_bytes(policy, shape)
        assert kept < 0.5 * plain
        kept += (plain - kept) // 4  # of its four layers, one is run again at a time
    assert expected == pytest.approx(kept, rel=within)


def test_parts_by_hand() -> None:
    small = recipe(objective=ObjectiveConfig(kl=0.1))
    partitioned = {"zero_optimization": {"stage": 3, "reduce_bucket_size": 1000, "stage3_max_live_parameters": 50}}
    parts = {part.name: part.bytes for part in layout_parts([100, 31], small, partitioned, ranks=4)}
    assert parts == {  # 25 + 8 numbers on a rank, two models
        "weights": 33 * 4 * 2,
        "gradients": 33 * 4,
        "optimizer": 33 * 12,
        "reduction bucket": 4000,
        "weights gathered": 200,
    }
    whole = {part.name: part.bytes for part in layout_parts([100, 31], recipe(), {}, ranks=4)}
    assert whole == {"weights": 131 * 4, "gradients": 131 * 4, "optimizer": 131 * 8}
    offloaded = partitioned["zero_optimization"] | {"offload_optimizer": {}, "offload_param": {}}
    on_host = [p.name for p in layout_parts([100], small, {"zero_optimization": offloaded}, ranks=1) if p.on_host]
    assert on_host == ["weights", "gradients", "optimizer"]


def test_the_cache_is_that_of_contexts_once_and_every_response() -> None:
    config = tiny("llama").config  # 2 layers, 2 key-value heads of 8
    rollout = RolloutConfig(group_size=4, sites_per_step=10, batch_rows=12, max_new_tokens=7)
    own = Recipe(name="a", policy=PolicyConfig(model="tiny", dtype="float32"), rollout=rollout)
    parts = {part.name: part.bytes for part in working_parts(config, own, ranks=1, context_tokens=20)}
    assert parts["sampler's cache"] == 3 * (20 + 4 * 7) * 2 * 2 * 2 * 8 * 4
    assert parts["sampler's weights"] == 4 * sum(parameter_sizes(config))
    four = {part.name: part.bytes for part in working_parts(config, own, ranks=5, context_tokens=20)}
    assert four["sampler's cache"] == parts["sampler's cache"] // 3 * 2, "two sites a rank"
    vllm = own.model_copy(update={"rollout": rollout.model_copy(update={"sampler": "vllm"})})
    assert {part.name for part in working_parts(config, vllm, 1, 20)} == {"activations", "logits"}


def test_what_is_planned_is_shown(tmp_path: Path) -> None:
    folder = saved(tmp_path / "policy")
    topologies = {"zero3": {"zero_optimization": {"stage": 3}}, "zero0": {}}
    micro = recipe(optimizer=OptimizerConfig(micro_batch_tokens=100))
    found = recipe_memory(micro, folder, topologies, ranks=2, context_tokens=30)
    assert found["topologies"]["zero3"]["device"] > found["topologies"]["zero0"]["device"], "a bucket of half a billion"
    assert found["topologies"]["zero3"]["host"] == 0
    assert memory_table(found).row_count == len(found["topologies"]["zero3"]["parts"]) + 2
