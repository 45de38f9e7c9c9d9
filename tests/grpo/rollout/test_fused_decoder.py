"""What is read in few operations is read as by the model's own modules."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PhiConfig, PreTrainedModel, Qwen3Config

from pipeline.grpo.rollout.decoding import Keyed, Shared, contexts_by_modules, token_by_modules
from pipeline.grpo.rollout.fused_decoder import FusedDecoder, can_fuse
from pipeline.grpo.types import SamplingRequest
from tests.grpo.models import assert_same_draws, tiny
from tests.grpo.rollout.test_sampler import sampler_of, seeds_of, some_prompts

SIZES: dict[str, Any] = {
    "vocab_size": 61, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "hidden_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
    "max_position_embeddings": 256,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "biases everywhere": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "wide heads": LlamaConfig(**SIZES, head_dim=24),
    "yarn": LlamaConfig(**SIZES, rope_parameters=YARN),
    "llama3": LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
}


def made(name: str) -> PreTrainedModel:
    """A random model whose norms and biases say something."""
    if name == "qwen2":
        model = tiny()
    else:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="sdpa").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2 if parameter.ndim == 1 else 0.02)
    return model


@pytest.mark.parametrize("name", ["qwen2", *CONFIGS])
def test_logits_are_the_modules(name: str) -> None:
    """Over steps between which rows leave; weights that are loaded later count."""
    model = made(name)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    fused, plain = FusedDecoder(model), made(name)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    for other in (model, plain):
        other.load_state_dict({key: value * 1.3 for key, value in state.items()})
    P, G, W = 3, 2, 7
    layers = [[tuple(torch.randn(2, P, 2, W, heads_of(model))) for _ in range(2)]]
    mask = torch.arange(W) >= torch.tensor([[0], [3], [6]])
    first, second = (Shared(read, layers, mask, G, 8) for read in (fused, partial(token_by_modules, plain)))
    positions = mask.sum(dim=1).repeat_interleave(G)
    with torch.inference_mode():
        for step in range(5):
            if step == 3:
                kept = torch.tensor([1, 4, 5])
                first.select(kept)
                second.select(kept)
                positions = positions[kept]
            ids = torch.randint(61, (len(positions),))
            found, expected = (rows.step(ids, positions + step) for rows in (first, second))
            assert expected.std() > 0.1
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["qwen2", *CONFIGS])
def test_contexts_are_read_as_by_the_modules(name: str) -> None:
    """Of unequal lengths, in two parts of one width; all that is real of keys and values."""
    model, plain, width = made(name), made(name), 23
    fused, prompts = FusedDecoder(model), [*some_prompts(4), [5], list(range(width))]
    found: Keyed = []
    expected: Keyed = []
    with torch.inference_mode():
        for part in (prompts[:3], prompts[3:]):
            logits = fused.read_contexts(part, width, found)
            theirs = contexts_by_modules(plain, part, width, expected)
            assert theirs.std() > 0.1
            torch.testing.assert_close(logits, theirs, rtol=1e-4, atol=1e-4)
            assert torch.equal(fused.read_contexts(part, width, None), logits)
    assert len(found) == len(expected) == 4, "two layers, two parts"
    for kept, theirs_kept, part in zip(found, expected, (prompts[:3],) * 2 + (prompts[3:],) * 2, strict=True):
        for states, of_theirs in zip(kept, theirs_kept, strict=True):
            assert states.shape == of_theirs.shape
            for p, prompt in enumerate(part):
                real = slice(width - len(prompt), None)
                torch.testing.assert_close(states[p, :, real], of_theirs[p, :, real], rtol=1e-4, atol=1e-4)


def heads_of(model: PreTrainedModel) -> int:
    return int(model.model.layers[0].self_attn.head_dim)


def test_the_sampler_takes_it() -> None:
    prompts, sampler = some_prompts(5), sampler_of(tiny())
    assert isinstance(sampler._rows.args[0], FusedDecoder)  # type: ignore[attr-defined]
    request = SamplingRequest(prompts, 3, 1.0, 30, seeds_of(prompts, 3))
    found = sampler.sample(request)
    sampler._read = partial(contexts_by_modules, sampler.model)
    sampler._rows = partial(Shared, partial(token_by_modules, sampler.model))
    assert_same_draws(tiny(), request, [r.ids for r in found], [r.ids for r in sampler.sample(request)])


def test_models_that_only_look_like_the_family_are_left_alone() -> None:
    from transformers import GraniteConfig

    rotated_in_part = LlamaConfig(**SIZES, rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5})
    windowed = MistralConfig(**SIZES, sliding_window=8)
    gelu = LlamaConfig(**SIZES, hidden_act="gelu")
    others = [PhiConfig(**SIZES), GraniteConfig(**SIZES), rotated_in_part, windowed, gelu]
    assert not any(can_fuse(AutoModelForCausalLM.from_config(c, attn_implementation="sdpa")) for c in others)
    assert all(map(can_fuse, map(made, ["qwen2", *CONFIGS])))
