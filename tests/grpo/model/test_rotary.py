"""Rotary frequencies that `transformers` takes by the longest row of a batch: no neighbour decides a number here."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM as Auto
from transformers import LlamaConfig, Phi3Config, PhimoeConfig, PreTrainedConfig, PreTrainedModel

from pipeline.config.errors import UserError
from pipeline.grpo.model.batch import batch_of
from pipeline.grpo.model.logprobs import PolicyLogprobs
from pipeline.grpo.rollout.positions import positions_of
from pipeline.grpo.rollout.sampler import Sampler
from pipeline.grpo.types import SamplingRequest
from pipeline.scoring.proxy import as_proxy
from pipeline.scoring.rotary import fix_rotary
from tests.grpo.models import VOCAB, assert_same_draws, groups_of, plain_logprobs
from tests.grpo.rollout.test_sampler import TOKENIZER, seeds_of

SHORT, LONG = 24, 62
"""Where frequencies change, and the longest row."""
SIZES = {
    "vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "hidden_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
    "max_position_embeddings": 256,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": SHORT,
    "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 4.0, 8.0, 16.0],
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
KINDS: dict[str, PreTrainedConfig] = {
    "longrope": Phi3Config(**SIZES, original_max_position_embeddings=SHORT, rope_parameters=LONGROPE),
    "longrope, fused decoder": LlamaConfig(**SIZES, rope_parameters=LONGROPE),
    "dynamic": LlamaConfig(**SIZES | {"max_position_embeddings": SHORT}, rope_parameters=DYNAMIC),
    "longrope and scales of its own": PhimoeConfig(
        **SIZES, num_local_experts=4, rope_parameters=LONGROPE | {"short_mscale": 1.1, "long_mscale": 1.4}
    ),
}


def policy(kind: str) -> PreTrainedModel:
    """As `transformers` has it."""
    torch.manual_seed(0)
    model = Auto.from_config(copy.deepcopy(KINDS[kind])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)  # far from uniform
    return model


def plain(kind: str, prompt: tuple[int, ...], response: tuple[int, ...]) -> Tensor:
    """By `transformers` alone, of a row that is as long as any: what follows the response changes nothing else."""
    filler = (3,) * (LONG - len(prompt) - len(response))
    with torch.no_grad():
        return plain_logprobs(policy(kind), prompt, (*response, *filler), 1.0)[: len(response)]


@pytest.mark.parametrize("kind", KINDS)
def test_samples_do_not_depend_on_their_neighbours(kind: str, tmp_path: Path) -> None:
    policy(kind).save_pretrained(tmp_path)
    prompts = [[3 + (p * i) % 50 for i in range(length)] for p, length in enumerate((4, 40, 7, 17, 20, 38))]
    request, found = SamplingRequest(prompts, 2, 1.0, LONG - 40, seeds_of(prompts, 2)), []
    for rows in (2, 512):
        sampler = Sampler.load(tmp_path, TOKENIZER, batch_rows=rows, longest=LONG)
        found.append(sampler.sample(request))
    fixed = policy(kind)
    fix_rotary(fixed, LONG)
    assert_same_draws(fixed, request, *([response.ids for response in responses] for responses in found))
    for row, response in enumerate(found[1]):
        expected = plain(kind, tuple(prompts[row // 2]), response.ids)
        torch.testing.assert_close(torch.tensor(response.logprobs), expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_of_an_update_do_not_depend_on_their_neighbours(kind: str) -> None:
    model, groups = policy(kind), groups_of([(5, [4, 9]), (40, [20, 3]), (15, [12, 8])])
    assert fix_rotary(model, LONG)
    learner = PolicyLogprobs(model)
    for together in (groups, groups[:1]):  # with rows on both sides, and on one
        batch = batch_of(together)
        with torch.no_grad():
            logprobs_RT, _ = learner(batch, 1.0)
        rows = [(group.prompt, response.ids) for group in together for response in group.responses]
        for row, (prompt, response) in enumerate(rows):
            found = logprobs_RT[row][batch.mask_RT[row]]
            torch.testing.assert_close(found, plain(kind, prompt, response), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_stay_on_one_side_are_as_transformers_has_them(kind: str) -> None:
    model, ids = policy(kind), torch.arange(3, 3 + SHORT)[None]
    fix_rotary(model, SHORT)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, policy(kind)(ids).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_where_the_longest_row_is_not_known_they_are_refused_by_name(kind: str) -> None:
    model = policy(kind)
    with pytest.raises(UserError, match=f"longest row of a batch.*{type(model).__name__}"):
        fix_rotary(model, None)


@pytest.mark.parametrize("rope", [None, {"rope_type": "yarn", "factor": 4.0}, {"rope_type": "linear", "factor": 2.0}])
def test_others_are_left_alone(rope: dict[str, object] | None) -> None:
    config = LlamaConfig(**SIZES, rope_parameters=rope and rope | {"rope_theta": 10000.0})
    assert not fix_rotary(Auto.from_config(config), None)
    assert not fix_rotary(Auto.from_config(config), LONG)


def test_dynamic_frequencies_stretch_to_their_factor() -> None:
    assert [positions_of(config) for config in KINDS.values()] == [256, 256, 4 * SHORT, 256]


def test_a_row_beyond_the_longest_is_refused(tmp_path: Path) -> None:
    policy("longrope").save_pretrained(tmp_path)
    sampler = Sampler.load(tmp_path, TOKENIZER, longest=LONG)
    with pytest.raises(UserError, match=r"63 tokens, more than the 62 .*max_new_tokens"):
        sampler.sample(SamplingRequest([[3] * 43], 1, 1.0, 20, [1]))


def test_a_proxy_takes_no_row_that_changes_its_frequencies() -> None:
    assert [as_proxy(policy(kind), None).limit for kind in KINDS] == [SHORT] * len(KINDS)
