"""What a model leaves to chance when it trains is off: the policy that learns is the one that sampled."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    FalconConfig,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    OPTConfig,
    PhimoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from pipeline.config.errors import UserError
from pipeline.grpo.model.batch import batch_of
from pipeline.grpo.model.logprobs import PolicyLogprobs, checkpoint_layers
from tests.grpo.model.test_logprobs import OBJECTIVE
from tests.grpo.models import TEMPERATURE, VOCAB, plain_gradients, some_groups

IDS = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
}
EXPERTS = {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
CHANCE: dict[str, PreTrainedConfig] = {
    "attributes of layers": OPTConfig(
        **IDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, word_embed_proj_dim=32,
        dropout=0.4, attention_dropout=0.4, activation_dropout=0.4,
    ),
    "whole layers": OPTConfig(
        **IDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, word_embed_proj_dim=32,
        layerdrop=0.5, dropout=0.0,
    ),
    "modules": GPT2Config(**IDS, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.4, embd_pdrop=0.4, attn_pdrop=0.4),
    "attributes of configurations": FalconConfig(
        **IDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, hidden_dropout=0.4, attention_dropout=0.4
    ),
    "attention alone": LlamaConfig(**IDS, **SIZES, attention_dropout=0.4),
    "router and its inputs": PhimoeConfig(
        **IDS, **SIZES, **EXPERTS, router_jitter_noise=0.3, input_jitter_noise=0.3, attention_dropout=0.4,
        rope_parameters=ROPE,
    ),
    "experts": GptOssConfig(**IDS, **SIZES, **EXPERTS, head_dim=8, attention_dropout=0.4, rope_parameters=ROPE),
}  # fmt: skip


def policy(kind: str) -> PreTrainedModel:
    """A random policy, in training mode, which leaves something to chance."""
    torch.manual_seed(0)
    return Auto.from_config(copy.deepcopy(CHANCE[kind])).train()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", CHANCE)
def test_gradients_are_those_of_the_policy_that_sampled(kind: str, checkpointing: bool) -> None:
    model, groups = policy(kind), some_groups(3, 2)
    _, expected = plain_gradients(model.eval(), groups, TEMPERATURE)
    model.train().zero_grad()
    learner, batch = PolicyLogprobs(model), batch_of(groups)
    if checkpointing:
        checkpoint_layers(model)
    (OBJECTIVE.summed(batch, *learner(batch, TEMPERATURE)) / batch.mask_RT.sum()).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=2e-4, atol=largest * 1e-5, msg=name)


def test_a_model_whose_layers_cannot_be_run_again_is_refused() -> None:
    with pytest.raises(UserError, match=r"does not support gradient checkpointing.*policy\.gradient_checkpointing"):
        checkpoint_layers(torch.nn.Linear(2, 2))
