"""What a training run needs of a rank's memory, part by part, before anything of the real size is loaded.

Weights and optimizer follow from DeepSpeed's layout. What autograd keeps of an update is measured: a copy of the policy
with one and two layers and a small vocabulary reads small batches, and the bytes, which are a sum of a few products of
the batch's numbers, are extrapolated to the recipe's micro-batch. Fragmentation, buffers of NCCL and of the C++
libraries, and short-lived temporaries are not counted: leave a tenth free.

Shape names: P contexts, G responses of each, C and T tokens of a context and of a response.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.filesize import decimal
from rich.table import Table
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from pipeline.core.config import LoraConfig, PolicyConfig, Recipe
from pipeline.grpo.batch import batch_of, responses_that_fit
from pipeline.grpo.logprobs import LOGITS_ON_GPU, PolicyLogprobs, checkpoint_layers
from pipeline.grpo.lora import add_adapters
from pipeline.grpo.packed_attention import repeated
from pipeline.grpo.topology import zero_stage
from pipeline.grpo.types import Group, Response

MASTER, MOMENTS = 4, 8
"""Bytes a parameter of AdamW in fp32: a copy of the weight, and its two moments."""


@dataclass(frozen=True)
class Part:
    """A part of a rank's memory."""

    name: str
    bytes: int
    on_host: bool = False
    """In the host's memory (offload) instead of the device's."""
    phase: Literal["always", "sample", "update"] = "always"
    """When it is held."""


def recipe_memory(
    recipe: Recipe, folder: Path, topologies: Mapping[str, Mapping[str, Any]], ranks: int, context_tokens: int
) -> dict[str, Any]:
    """The memory of one rank under each topology, as JSON values.

    Args:
        recipe: of the run.
        folder: of the policy; only its configuration is read.
        topologies: DeepSpeed's configurations by name.
        ranks: that share the run.
        context_tokens: of the longest prompt.
    """
    config = AutoConfig.from_pretrained(folder)
    numbers, work = parameter_sizes(config), working_parts(config, recipe, ranks, context_tokens)
    adapters = adapter_sizes(config, recipe.policy.lora) if recipe.policy.lora else []
    layouts = {
        name: layout_parts(numbers, recipe, topology, ranks, adapters) + work for name, topology in topologies.items()
    }
    return {
        "recipe": recipe.name,
        "policy": recipe.policy.model,
        "parameters": sum(numbers),
        "ranks": ranks,
        "context_tokens": context_tokens,
        "topologies": {
            name: {
                "device": peak(parts),
                "host": sum(part.bytes for part in parts if part.on_host),
                "parts": [asdict(part) for part in parts],
            }
            for name, parts in layouts.items()
        },
    }


def memory_table(found: Mapping[str, Any]) -> Table:
    """The same for people: a row a part, a column a topology."""
    size = f"{found['parameters'] / 1e9:.2f} billion parameters, {found['ranks']} ranks"
    title = f"{found['recipe']}: {size}, prompts of {found['context_tokens']:,} tokens; memory of a rank"
    table = Table("", title=title, title_justify="left")
    layouts = found["topologies"]
    for name in layouts:
        table.add_column(name, justify="right")
    parts = {name: {part["name"]: part for part in layout["parts"]} for name, layout in layouts.items()}
    for row in dict.fromkeys(name for column in parts.values() for name in column):
        cells = [column.get(row) for column in parts.values()]
        phase = next(cell["phase"] for cell in cells if cell)
        label = row if phase == "always" else f"{row} (while it {phase}s)"
        table.add_row(label, *(f"{decimal(c['bytes'])}{' host' * c['on_host']}" if c else "" for c in cells))
    table.add_section()
    table.add_row("most on the device at a time", *(decimal(layout["device"]) for layout in layouts.values()))
    table.add_row("on the host", *(decimal(layout["host"]) for layout in layouts.values()))
    return table


def layout_parts(
    numbers: Sequence[int], recipe: Recipe, topology: Mapping[str, Any], ranks: int, adapters: Sequence[int] = ()
) -> list[Part]:
    """Weights, gradients and optimizer, as DeepSpeed lays them out.

    Args:
        numbers: of every parameter of the policy.
        recipe: of the run.
        topology: DeepSpeed's configuration.
        ranks: that share the run.
        adapters: numbers of every parameter of adapters, which alone are trained if there are any.
    """
    size, held, trained = getattr(torch, recipe.policy.dtype).itemsize, [*numbers, *adapters], adapters or numbers
    stage, zero = zero_stage(dict(topology)), topology.get("zero_optimization", {})
    weights, whole = partitioned(held, ranks) if stage == 3 else sum(held), sum(held)
    gradients, states = (partitioned(trained, ranks) if stage >= least else sum(trained) for least in (2, 1))
    weights_off, states_off = "offload_param" in zero, "offload_optimizer" in zero
    master = MASTER if stage or recipe.policy.dtype != "float32" else 0  # a partition's copy, of fp32 weights too
    models = 2 if recipe.objective.kl and not adapters else 1  # the reference
    parts = [
        Part("weights", weights * size * models, on_host=weights_off),
        Part("gradients", gradients * size, on_host=states_off),
        Part("optimizer", states * (master + MOMENTS), on_host=states_off),
    ]
    if stage:
        parts.append(Part("reduction bucket", int(zero.get("reduce_bucket_size", 5e8)) * size, phase="update"))
    if stage == 3 and (ranks > 1 or weights_off):
        live = min(whole, int(zero.get("stage3_max_live_parameters", 1e9)))
        parts.append(Part("weights gathered", live * size, phase="update"))
    return parts


def working_parts(config: PreTrainedConfig, recipe: Recipe, ranks: int, context_tokens: int) -> list[Part]:
    """What a step works with: activations and logits of a micro-batch, the built-in sampler's weights and cache."""
    rollout, size = recipe.rollout, getattr(torch, recipe.policy.dtype).itemsize
    room, group, tokens = rollout.max_new_tokens, rollout.group_size, recipe.optimizer.micro_batch_tokens
    groups = max(1, tokens // (context_tokens + group * room))
    responses = min(group, responses_that_fit(context_tokens, room, tokens))
    logits = min(LOGITS_ON_GPU, groups * responses * room * config.vocab_size)
    shape = groups, responses, context_tokens, room
    parts = [
        Part("activations", activation_bytes(config, recipe, shape), phase="update"),
        # They, their softmax, and a copy on the way.
        Part("logits", 3 * 4 * logits, phase="update"),
    ]
    if rollout.sampler != "vllm":
        contexts = min(math.ceil(rollout.sites_per_step / ranks), max(1, rollout.batch_rows // group))
        cache = contexts * (context_tokens + group * room) * cache_bytes(config, size)
        parts += [
            Part("sampler's weights", sum(parameter_sizes(config)) * size),
            Part("sampler's cache", cache, phase="sample"),
        ]
    return parts


def peak(parts: Sequence[Part]) -> int:
    """Most bytes of the device at a time: sampling and updating take turns.

    Example:
        >>> peak([Part("weights", 5), Part("cache", 3, phase="sample"), Part("activations", 4, phase="update")])
        9
    """
    held: Counter[str] = Counter()
    for part in parts:
        held[part.phase] += 0 if part.on_host else part.bytes
    return held["always"] + max(held["sample"], held["update"])


def partitioned(numbers: Sequence[int], ranks: int) -> int:
    """Numbers of a rank's partition: each parameter is padded to a multiple of the ranks.

    Example:
        >>> partitioned([10, 7], 4)
        5
    """
    return sum(math.ceil(count / ranks) for count in numbers)


def parameter_sizes(config: PreTrainedConfig) -> list[int]:
    """Numbers of every parameter; tied ones count once."""
    with torch.device("meta"):
        return [parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters()]


def adapter_sizes(config: PreTrainedConfig, lora: LoraConfig) -> list[int]:
    """Numbers of every parameter of adapters."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        add_adapters(model, lora)
    return [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]


def cache_bytes(config: PreTrainedConfig, size: int) -> int:
    """Keys and values of one token, over all layers."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * _head_dimension(config) * size


Shape = tuple[int, int, int, int]
"""P, G, C, T"""


def activation_bytes(config: PreTrainedConfig, recipe: Recipe, shape: Shape) -> int:
    """What autograd keeps between forward and backward of a micro-batch, by the attention that GPUs have.

    With checkpointing these are the layers' inputs, and beside them what one layer keeps while it is run again.
    """
    models = [_model(config, recipe.policy, layers) for layers in (1, 2)]
    policies = [PolicyLogprobs(model, attend=repeated) for model in models]
    first, both = (_extrapolated(policy, shape) for policy in policies)
    again = both - first
    if not recipe.policy.gradient_checkpointing:
        return round(first + (config.num_hidden_layers - 1) * again)
    for model in models:
        checkpoint_layers(model)
    first, both = (_extrapolated(policy, shape) for policy in policies)
    return round(first + (config.num_hidden_layers - 1) * (both - first) + again)


def saved_bytes(policy: PolicyLogprobs, shape: Shape) -> int:
    """Bytes of distinct storages that a forward leaves for its backward, the weights not counted.

    The first of several contexts is a token shorter, so that there is padding, as there nearly always is.
    """
    groups, size, context, room = shape
    response = Response((0,) * room, b"", True, (0.0,) * room)
    lengths = [context - (groups > 1)] + [context] * (groups - 1)
    batch = batch_of([Group((0,) * length, (response,) * size, (1.0,) * size) for length in lengths])
    weights = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        logprobs_RT, _ = policy(batch, 1.0)
    del logprobs_RT
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _extrapolated(policy: PolicyLogprobs, shape: Shape) -> float:
    """`saved_bytes` of a batch too large to run: a sum of multiples of `_products`, which small ones tell."""
    small = [(2, 1, 20, 10), (2, 3, 20, 30), (4, 2, 60, 10), (3, 1, 90, 50), (2, 2, 130, 20), (3, 4, 10, 60)]
    with _UncomputedLayers():
        found = [saved_bytes(policy, one) for one in small]
    lines = np.array([_products(one, packed=policy.packs) for one in small], dtype=np.float64)
    factors, *_ = np.linalg.lstsq(lines, np.array(found, dtype=np.float64), rcond=None)
    return float(np.array(_products(shape, packed=policy.packs)) @ factors)


def _products(shape: Shape, *, packed: bool) -> list[int]:
    """Tokens of contexts, of their copies, of responses; masks. Where nothing is packed, there are copies alone."""
    groups, size, prompt, room = shape
    rows, context = groups * size, prompt - 1  # a prompt's last token is the first that responses read
    if packed:
        return [groups * context - (groups > 1), rows * context, rows * room, rows * room * (context + room)]
    return [rows * context, rows * room, rows * (context + room) ** 2]


def _head_dimension(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


class _UncomputedLayers(TorchFunctionMode):
    """Within, linear layers compute nothing: what is kept for a backward is the same."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every operation."""
        if function is torch.nn.functional.linear:
            return _Uncomputed.apply(*args[:2])
        return function(*args, **(kwargs or {}))


class _Uncomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(inputs)
        return inputs.new_zeros(*inputs.shape[:-1], len(weight))


def _model(config: PreTrainedConfig, policy: PolicyConfig, layers: int) -> Any:
    small = copy.deepcopy(config)
    small.num_hidden_layers, small.vocab_size = layers, 64
    small.pad_token_id = small.bos_token_id = small.eos_token_id = None
    if getattr(small, "layer_types", None):
        small.layer_types = small.layer_types[:layers]
    with torch.device("meta"):
        dtype = getattr(torch, policy.dtype)
        model = AutoModelForCausalLM.from_config(small, dtype=dtype, attn_implementation="sdpa")
        if policy.lora:
            add_adapters(model, policy.lora)
    return model.to_empty(device="cpu")  # no weight is ever looked at
