"""Tiny policies and groups made on the spot, and the plain twin of what the trainer computes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM as Auto
from transformers import GPT2Config, LlamaConfig, PreTrainedModel, Qwen2Config

from pipeline.grpo.rollout.token_sampling import uniform
from pipeline.grpo.types import Group, Response, SamplingRequest

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


NEAR = 2e-5
"""A draw this close to the bound between two tokens may fall on either side. Machines, thread counts and batch shapes
round logits otherwise, which moves a bound by 1e-7 to 1e-6. One draw in 400 is as close with `VOCAB` tokens."""


def assert_same_draws(
    model: PreTrainedModel,
    request: SamplingRequest,
    found: Sequence[Sequence[int]],
    expected: Sequence[Sequence[int]],
) -> None:
    """Two samplers drew the same ids for a request, or differ first where the draw is `NEAR` the bound between two."""
    size, split = len(expected) // len(request.prompts), 0
    assert len(found) == len(expected) == len(request.seeds)
    for row, (one, other) in enumerate(zip(found, expected, strict=True)):
        if tuple(one) == tuple(other):
            continue
        split += 1
        t = next((t for t, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), -1)
        assert t >= 0, f"row {row}: one response goes on where the other ends"
        low, high = sorted((one[t], other[t]))
        with torch.no_grad():
            logits_V = model(torch.tensor([[*request.prompts[row // size], *one[:t]]])).logits[0, -1].double()
        if request.temperature == 0:
            assert logits_V.max() - logits_V[[low, high]].min() < NEAR, f"row {row}, token {t}"
            continue
        bounds_V = (logits_V / request.temperature).softmax(-1).cumsum(-1)
        noise = float(uniform(np.array([request.seeds[row]], dtype=np.uint64), t)[0])
        between = bounds_V[low:high]
        assert (between - noise).abs().max() < NEAR, f"row {row}, token {t}: {one[t]} and {other[t]}"
    assert split <= 1 + len(expected) // 20, f"{split} of {len(expected)} responses differ"


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
