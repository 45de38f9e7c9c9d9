"""Every family of `transformers` that a proxy may be of: our scores are those of the model's own logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pipeline.config.errors import UserError
from pipeline.config.manifest import ScoreConfig
from pipeline.scoring.documents import score_documents
from pipeline.scoring.entropy import copy_logits
from pipeline.scoring.proxy import as_proxy, packs_exactly
from tests.scoring.plain import assert_close, plain_scores
from tests.scoring.test_proxy import random_documents

VOCABULARY = 70
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 5, "head_dim": 8},
    "gpt_neox": {"tie_word_embeddings": False},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "bloom": {"n_layer": 2, "n_head": 4},
    "phi": {"num_key_value_heads": 4},
    "phi3": {"sliding_window": 5},
    "olmo2": {},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 5, "final_logit_softcapping": 3.0},
    "gemma3_text": {"head_dim": 8, "sliding_window": 5, "final_logit_softcapping": 30.0},
    "granite": {"logits_scaling": 7.0, "embedding_multiplier": 3.0},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25, "sliding_window": 5},
    "starcoder2": {"sliding_window": 5},
    "stablelm": {},
    "deepseek_v3": {
        "num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
        "v_head_dim": 8,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16,
    },
    "mamba": {"state_size": 4},
}  # fmt: skip
MASKED = {"mistral", "phi3", "gemma2", "gemma3_text", "cohere2", "starcoder2", "gptj", "stablelm"}
"""Their layers need a mask, or an attention of their own, so on CPUs they are not packed."""
NOT_PACKED = {"bloom", "mamba"}
"""Their attention does not read positions, or a state goes from one document to the next."""


def small(family: str, **changes: Any) -> PreTrainedModel:
    """A random model of a family, predictions far from uniform."""
    torch.manual_seed(0)
    config: PreTrainedConfig = CONFIG_MAPPING[family](**SHAPE | FAMILIES[family] | changes)
    model = AutoModelForCausalLM.from_config(config).eval()
    output = model.get_output_embeddings()
    if output.bias is not None:
        torch.nn.init.normal_(output.bias)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_models_own_logits(family: str) -> None:
    """Windows of 40 tokens, and what a family does to its logits after the output matrix."""
    model = small(family)
    proxy = as_proxy(model, None)
    assert proxy.write_logits is not copy_logits, "tiles of the vocabulary suffice"
    documents = random_documents(3, [30, 17, 40, 5], VOCABULARY)
    config = ScoreConfig(window=40, overlap=8, min_context_tokens=1, batch_tokens=100, store_top=True)
    for ids, found in zip(documents, score_documents(proxy, documents, list("abcd"), config), strict=True):
        with torch.no_grad():
            logits_TV = model(input_ids=torch.from_numpy(ids).long()[None]).logits[0, :-1]
        expected = plain_scores(logits_TV, torch.from_numpy(ids[1:]).long(), config.top_k)
        assert expected.nll.std() > 0.2, "predictions differ"
        assert_close(found, expected)
        torch.testing.assert_close(found.top_logprobs, expected.top_logprobs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["qwen2", "phi", "gemma2", "granite", "cohere"])
def test_in_16_bits_the_models_own_logits_are_summed_in_32(family: str) -> None:
    """Scale, cap and bias are rounded where the model rounds them; nothing after is."""
    model = small(family).to(torch.bfloat16)
    proxy, ids = as_proxy(model, None), random_documents(3, [33], VOCABULARY)[0]
    found = score_documents(proxy, [ids], ["a"], ScoreConfig(min_context_tokens=1, store_top=True))[0]
    with torch.no_grad():
        logits_TV = model(input_ids=torch.from_numpy(ids[:-1]).long()[None]).logits[0]
    assert logits_TV.dtype == torch.bfloat16
    expected = plain_scores(logits_TV.float(), torch.from_numpy(ids[1:]).long(), 16)
    assert proxy.write_logits is not copy_logits
    assert_close(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_do_not_see_each_other(family: str) -> None:
    """Without a mask where layers are only causal; else with block masks."""
    proxy = as_proxy(small(family), None)
    assert proxy.packs == (family not in MASKED | NOT_PACKED)
    assert packs_exactly(proxy, torch.arange(20)[None]) == (family not in NOT_PACKED)


def test_attention_that_is_more_than_causal_is_kept() -> None:
    """A model that computes something else with the attention of packed windows keeps its own and is padded."""
    model = small("llama")
    forward = model.model.layers[0].self_attn.forward

    def shifted(*given: Any, **named: Any) -> Any:
        out, weights = forward(*given, **named)
        return out + float(model.config._attn_implementation == "sdpa"), weights

    model.model.layers[0].self_attn.forward = shifted
    assert not as_proxy(model, None).packs
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", ["gemma2", "granite"])
def test_what_follows_the_output_matrix_is_not_guessed(family: str) -> None:
    """A configuration that does not say all of it: the model's full logits are used."""
    model = small(family)
    forward = model.forward

    def scaled(**given: Any) -> Any:
        made = forward(**given)
        made.logits *= 1.01
        return made

    model.forward = scaled
    proxy = as_proxy(model, None)
    assert proxy.write_logits is copy_logits
    ids = random_documents(3, [30], VOCABULARY)[0]
    found = score_documents(proxy, [ids], ["a"], ScoreConfig())[0]
    with torch.no_grad():
        logits_TV = model(input_ids=torch.from_numpy(ids).long()[None]).logits[0, :-1]
    assert_close(found, plain_scores(logits_TV, torch.from_numpy(ids[1:]).long(), 16))


def test_a_model_that_sees_later_tokens_is_refused() -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    for model_type in ("bert", "roberta"):
        config = CONFIG_MAPPING[model_type](**shape, num_attention_heads=2, is_decoder=False, initializer_range=0.5)
        with pytest.raises(UserError, match="the model attends to later tokens"):
            as_proxy(AutoModelForCausalLM.from_config(config).eval(), None)


def test_longrope_is_fed_no_more_than_it_was_first_trained_with() -> None:
    """A longer row in a batch would turn the positions of all others otherwise."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4,
            "original_max_position_embeddings": 24}  # fmt: skip
    model = small("phi3", sliding_window=None, rope_parameters=rope, original_max_position_embeddings=24)
    proxy = as_proxy(model, None)
    documents = random_documents(3, [20, 50], VOCABULARY)
    config = ScoreConfig(window=40, overlap=8, min_context_tokens=1)
    together = score_documents(proxy, documents, ["a", "b"], config)[0]
    assert_close(together, score_documents(proxy, documents[:1], ["a"], config)[0])
