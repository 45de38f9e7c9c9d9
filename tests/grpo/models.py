"""Tiny policies and groups made on the spot, and the plain twin of what the trainer computes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM as Auto
from transformers import GPT2Config, LlamaConfig, PreTrainedModel, Qwen2Config

from pipeline.grpo.types import Group, Response

VOCAB, EOS, TEMPERATURE = 61, 2, 0.7


def tiny(kind: str = "qwen2", *, tied: bool = True, seed: int = 0) -> PreTrainedModel:
    """A random decoder of two layers. Its pad id is a token like any other, and also its end-of-sequence token's id."""
    torch.manual_seed(seed)
    ids = {
        "vocab_size": VOCAB,
        "bos_token_id": 1,
        "eos_token_id": EOS,
        "pad_token_id": EOS,
        "tie_word_embeddings": tied,
    }
    grouped = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 256,
    }
    if kind == "gpt2":
        config = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=256, **ids)
    elif kind == "sliding":
        layers = {
            "layer_types": ["full_attention", "sliding_attention"],
            "use_sliding_window": True,
            "sliding_window": 5,
        }
        config = Qwen2Config(**grouped, **ids, **layers)
    else:
        config = {"qwen2": Qwen2Config, "llama": LlamaConfig}[kind](**grouped, **ids)
    model = Auto.from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)  # far from uniform
    return model


def saved(folder: Path, **options: object) -> Path:
    """A folder with a tiny policy in it."""
    tiny(**options).save_pretrained(folder)  # type: ignore[arg-type]
    return folder


def some_groups(count: int, size: int, seed: int = 0) -> list[Group]:
    """Groups of every length; their tokens include the pad id."""
    rng = random.Random(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(VOCAB) for _ in range(rng.randint(low, high)))

    groups = []
    for _ in range(count):
        responses = [tokens(1, 7) for _ in range(size)]
        made = tuple(Response(ids, b"", True, tuple(rng.uniform(-5, 0) for _ in ids)) for ids in responses)
        groups.append(Group(tokens(2, 12), made, tuple(rng.choice([-0.5, 1.5]) for _ in range(size))))
    return groups


def groups_of(lengths: Sequence[tuple[int, Sequence[int]]], seed: int = 0) -> list[Group]:
    """Groups with a gradient whose prompts and responses have these lengths."""
    rng = random.Random(seed)
    groups = []
    for prompt, responses in lengths:
        ids = [tuple(rng.randrange(VOCAB) for _ in range(length)) for length in (prompt, *responses)]
        made = tuple(Response(row, b"", True, (0.0,) * len(row)) for row in ids[1:])
        groups.append(Group(ids[0], made, tuple(rng.choice([-0.5, 1.5]) for _ in made)))
    return groups


def plain_logprobs(
    model: PreTrainedModel, prompt: Sequence[int], response: Sequence[int], temperature: float
) -> Tensor:
    """Log-probabilities [T] of one response, read alone with its prompt: no padding, no cache, no sharing."""
    logits_TV = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1] / temperature
    return logits_TV.log_softmax(-1)[torch.arange(len(response)), torch.tensor(response)]


def plain_gradients(
    model: PreTrainedModel, groups: Sequence[Group], temperature: float
) -> tuple[float, dict[str, Tensor]]:
    """The objective in four lines: loss, and its gradient by parameter."""
    model.zero_grad()
    count, total = sum(len(r.ids) for group in groups for r in group.responses), 0.0
    for group in groups:
        for response, advantage in zip(group.responses, group.advantages, strict=True):
            loss = -advantage * plain_logprobs(model, group.prompt, response.ids, temperature).sum() / count
            loss.backward()
            total -= advantage * len(response.ids) / count  # at ratio 1
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
