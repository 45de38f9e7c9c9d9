from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, GemmaConfig, PreTrainedModel

from pipeline.grpo.fused_norms import fuse_norms
from tests.grpo.models import VOCAB, tiny


def with_gradients(model: PreTrainedModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    logits = model(torch.arange(1, VOCAB)[None]).logits
    logits.logsumexp(dim=-1).sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_logits_and_gradients_are_those_of_the_norms_that_were_there(kind: str) -> None:
    plain, fused = tiny(kind), tiny(kind)
    for model in (plain, fused):
        for seed, (name, parameter) in enumerate(model.named_parameters()):
            if "norm" in name:
                torch.nn.init.normal_(parameter, 1, 0.5, torch.Generator().manual_seed(seed))
    assert fuse_norms(fused) == 5
    (logits, gradients), (expected, expected_gradients) = with_gradients(fused), with_gradients(plain)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    for name, gradient in gradients.items():
        largest = float(expected_gradients[name].abs().max())
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-3, atol=largest * 1e-4, msg=name)


def test_other_norms_stay_as_they_are() -> None:
    """Gemma's multiplies by 1 + w."""
    gemma = AutoModelForCausalLM.from_config(
        GemmaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
                    intermediate_size=8, head_dim=8)
    )  # fmt: skip
    assert fuse_norms(gemma) == 0
    assert fuse_norms(tiny("gpt2")) == 0
