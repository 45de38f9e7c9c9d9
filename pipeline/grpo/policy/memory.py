"""Estimate of the memory that a training run needs per rank, part by part, without loading the policy.

Weights and optimizer follow from DeepSpeed's layout, the tensors that autograd keeps during an update from a formula
(`activation_bytes`). Fragmentation, buffers of NCCL and of the C++ libraries, and short-lived temporaries are not
counted: leave a tenth of the memory free.

Shape names: P contexts, G responses per context, R = P·G, C and T tokens of a context and of a response.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.filesize import decimal
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from pipeline.config.recipe import LoraConfig, Recipe
from pipeline.core.progress import counted, quantity
from pipeline.grpo.model.adapters import add_adapters
from pipeline.grpo.model.batch import responses_that_fit
from pipeline.grpo.model.logprobs import LOGITS_ON_GPU
from pipeline.grpo.model.prefix_attention import can_share
from pipeline.grpo.policy.deepspeed_config import zero_stage

Shape = tuple[int, int, int, int]
"""P, G, C, T of a micro-batch."""

MASTER, MOMENTS = 4, 8
"""AdamW's bytes per parameter in fp32: a master copy of the weight, and its two moments."""


@dataclass(frozen=True)
class Part:
    """A part of a rank's memory."""

    name: str
    bytes: int
    on_host: bool = False
    """True if it is held in the host's memory (offload) instead of the device's."""
    phase: Literal["always", "sample", "update"] = "always"
    """The phase in which it is held."""


def recipe_memory(
    recipe: Recipe, folder: Path, topologies: Mapping[str, Mapping[str, Any]], ranks: int, context_tokens: int
) -> dict[str, Any]:
    """Return the memory of one rank under each topology, as JSON values.

    Args:
        recipe: the run's recipe.
        folder: the policy's folder; only its configuration is read.
        topologies: DeepSpeed configurations by name.
        ranks: number of ranks of the run.
        context_tokens: tokens of the longest prompt.
    """
    config = AutoConfig.from_pretrained(folder)
    sizes, work = parameter_sizes(config), working_parts(config, recipe, ranks, context_tokens)
    adapters = adapter_sizes(config, recipe.policy.lora) if recipe.policy.lora else []
    layouts = {
        name: layout_parts(sizes, recipe, topology, ranks, adapters) + work for name, topology in topologies.items()
    }
    return {
        "recipe": recipe.name,
        "policy": recipe.policy.model,
        "parameters": sum(sizes),
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
    """Format the result of `recipe_memory` as a table: one row per part, one column per topology."""
    size = f"{quantity(found['parameters'])} parameters, {counted(found['ranks'], 'rank')}"
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
    table.add_row("peak on the device", *(decimal(layout["device"]) for layout in layouts.values()))
    table.add_row("on the host", *(decimal(layout["host"]) for layout in layouts.values()))
    return table


def layout_parts(
    sizes: Sequence[int], recipe: Recipe, topology: Mapping[str, Any], ranks: int, adapters: Sequence[int] = ()
) -> list[Part]:
    """Return the memory of weights, gradients and optimizer, as DeepSpeed lays them out.

    Args:
        sizes: number of elements of every parameter of the policy.
        recipe: the run's recipe.
        topology: DeepSpeed configuration.
        ranks: number of ranks of the run.
        adapters: number of elements of every adapter parameter; if there are any, only they are trained.
    """
    size, held, trained = getattr(torch, recipe.policy.dtype).itemsize, [*sizes, *adapters], adapters or sizes
    stage, zero = zero_stage(dict(topology)), topology.get("zero_optimization", {})
    weights, whole = partitioned(held, ranks) if stage == 3 else sum(held), sum(held)
    gradients, states = (partitioned(trained, ranks) if stage >= least else sum(trained) for least in (2, 1))
    weights_off, states_off = "offload_param" in zero, "offload_optimizer" in zero
    master = MASTER if stage or recipe.policy.dtype != "float32" else 0  # a partition's copy, of fp32 weights too
    models = 2 if recipe.objective.kl and not adapters else 1  # the second is the reference policy
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
    """Return the working memory of a step: a micro-batch's activations and logits, the built-in sampler's parts."""
    rollout, size = recipe.rollout, getattr(torch, recipe.policy.dtype).itemsize
    length, group, tokens = rollout.max_new_tokens, rollout.group_size, recipe.optimizer.micro_batch_tokens
    groups = max(1, tokens // (context_tokens + group * length))
    responses = min(group, responses_that_fit(context_tokens, length, tokens))
    logits = min(LOGITS_ON_GPU, groups * responses * length * config.vocab_size)
    shape = groups, responses, context_tokens, length
    parts = [
        Part("activations", activation_bytes(config, recipe, shape), phase="update"),
        # The logits, their softmax, and one temporary copy, each in fp32.
        Part("logits", 3 * 4 * logits, phase="update"),
    ]
    if rollout.sampler != "vllm":
        contexts = min(math.ceil(rollout.sites_per_step / ranks), max(1, rollout.batch_rows // group))
        cache = contexts * (context_tokens + group * length) * cache_bytes(config, size)
        parts += [
            Part("sampler's weights", sum(parameter_sizes(config)) * size),
            Part("sampler's cache", cache, phase="sample"),
        ]
    return parts


def peak(parts: Sequence[Part]) -> int:
    """Return the peak bytes on the device; sampling and updating alternate, so only the larger of the two counts.

    Example:
        >>> peak([Part("weights", 5), Part("cache", 3, phase="sample"), Part("activations", 4, phase="update")])
        9
    """
    held: Counter[str] = Counter()
    for part in parts:
        held[part.phase] += 0 if part.on_host else part.bytes
    return held["always"] + max(held["sample"], held["update"])


def partitioned(sizes: Sequence[int], ranks: int) -> int:
    """Return the elements in a rank's partition; each parameter is padded to a multiple of the ranks.

    Example:
        >>> partitioned([10, 7], 4)
        5
    """
    return sum(math.ceil(size / ranks) for size in sizes)


def adapter_sizes(config: PreTrainedConfig, lora: LoraConfig) -> list[int]:
    """Return the number of elements of every adapter parameter."""
    model = _meta_model(config)
    with torch.device("meta"):
        add_adapters(model, lora)
    return [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]


def parameter_sizes(config: PreTrainedConfig) -> list[int]:
    """Return the number of elements of every parameter; tied ones count once."""
    return [parameter.numel() for parameter in _meta_model(config).parameters()]


def cache_bytes(config: PreTrainedConfig, size: int) -> int:
    """Return the bytes of one token's keys and values over all layers; `size` is the bytes per number."""
    return 2 * config.num_hidden_layers * _head_widths(config)[1] * size


def activation_bytes(config: PreTrainedConfig, recipe: Recipe, shape: Shape) -> int:
    """Return the bytes that autograd keeps for the backward of a micro-batch, by a formula for Llama's family.

    With s bytes per number, hidden size E, query heads' width A, key heads' width B and MLP width F, a layer keeps for
    each of its N tokens (Korthikanti et al. 2022, arXiv 2205.05198, section 4, for this architecture):

        2 (4 + 2 s) E   two norms: input in fp32, normed, and scaled, which is the projections' input
        4 s F           gate, silu(gate), up and their product
        s A             input of the output projection

    and for attention (`packed_attention.attend`, with its heads repeated), of S = N slots,

        s (2 A + 2 B) S              queries, keys, values and output
        2 s A R (C + T)              each response's copy of its context's keys and values, and its own
        s Q (C + T)                  the mask of its Q = R T queries, as a bias

    If contexts are not shared, N = Q = R (C + T). With checkpointing a layer keeps only its input, s E N, and one layer
    at a time keeps all of the above while it is run again. Adapters add little, because they share the layers' inputs.

    Compared with what autograd keeps for small models, the formula is within 10 % for Llama and Qwen2, and within 15 %
    for GPT-2 and for sliding windows (`tests/grpo/policy/test_memory.py`).
    """
    groups, responses, context, length = shape
    rows, size = groups * responses, getattr(torch, recipe.policy.dtype).itemsize
    packed = can_share(_meta_model(config))
    tokens = groups * context + rows * length if packed else rows * (context + length)
    queries = rows * length if packed else tokens
    hidden, (query, key) = config.hidden_size, _head_widths(config)
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    per_token = 2 * (4 + 2 * size) * hidden + 4 * size * inner + size * query + size * (2 * query + 2 * key)
    per_row = (context + length) * size * 2 * query
    layer = tokens * per_token + rows * per_row + queries * (context + length) * size
    ends = tokens * (4 + 2 * size) * hidden  # the norm after the last layer
    layers = config.num_hidden_layers
    return ends + (layers * tokens * size * hidden + layer if recipe.policy.gradient_checkpointing else layers * layer)


def _head_widths(config: PreTrainedConfig) -> tuple[int, int]:
    """Return the width of all query heads together, and of all key-value heads together."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads * size, (getattr(config, "num_key_value_heads", None) or heads) * size


def _meta_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Return the model on the meta device: shapes without data."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model
