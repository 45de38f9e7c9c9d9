"""The engine against a plain twin: real DeepSpeed, real ranks, in processes of their own."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from pipeline.config.recipe import PolicyConfig, Recipe
from pipeline.grpo.model.adapters import adapted, add_adapters, merged
from pipeline.grpo.model.batch import batch_of
from pipeline.grpo.policy.deepspeed_config import read_config
from pipeline.grpo.policy.memory import adapter_sizes, layout_parts, parameter_sizes
from pipeline.grpo.types import SamplingRequest
from tests.grpo.algorithm.test_loss import TWINS
from tests.grpo.models import TEMPERATURE, assert_same_draws, plain_gradients, plain_logprobs, saved, some_groups, tiny
from tests.grpo.policy.engine_worker import BETAS, CLIP, LORA, LR, PROMPTS, TEXTS
from tests.grpo.rollout.test_sampler import sampler_of

ROOT = Path(__file__).parent.parent.parent.parent

CASES = {
    # name: topology, ranks, tied output head, further arguments
    "zero3": ("zero3_cpu", 1, True, ()),
    "zero3 untied, checkpointing": ("zero3_cpu", 1, False, ("checkpointing",)),
    "zero3 two ranks": ("zero3_cpu", 2, True, ()),
    "zero3 four ranks": ("zero3_cpu", 4, True, ()),
    "zero3 offload": ("zero3_offload", 1, True, ()),
    "zero0 two ranks": ("zero0", 2, True, ()),
}
ADAPTERS = {
    "zero3 adapters": ("zero3_cpu", 1, True, ("lora",)),
    "zero3 adapters two ranks": ("zero3_cpu", 2, False, ("lora", "checkpointing")),
}


@dataclass
class Outcome:
    tied: bool
    ranks: int
    seen: dict[str, Any]
    tensors: dict[str, Any]
    policy: Path


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """All cases, started together."""
    folder = tmp_path_factory.mktemp("engine")
    models = {tied: saved(folder / f"tied-{tied}", tied=tied) for tied in (True, False)}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    running, outcomes = {}, {}
    for name, (topology, ranks, tied, more) in (CASES | ADAPTERS).items():
        out = folder / name.replace(" ", "-")
        out.mkdir()
        config = ROOT / "deepspeed_configs" / f"{topology}.json"
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "--module", "--"]
        command = [sys.executable, "-m", *(launcher if ranks > 1 else ()), "tests.grpo.policy.engine_worker"]
        running[name] = subprocess.Popen(
            [*command, str(models[tied]), str(config), str(out), *more],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    for name, process in running.items():
        output, _ = process.communicate(timeout=500)
        assert process.returncode == 0, f"{name}:\n{output}"
        _, ranks, tied, _ = (CASES | ADAPTERS)[name]
        out = folder / name.replace(" ", "-")
        tensors = torch.load(out / "tensors.pt")
        outcomes[name] = Outcome(tied, ranks, json.loads((out / "seen.json").read_text()), tensors, out / "policy")
    return outcomes


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_plain_computation(outcomes: dict[str, Outcome], name: str) -> None:
    outcome = outcomes[name]
    loss, expected = plain_gradients(tiny(tied=outcome.tied), some_groups(5, 3), TEMPERATURE)
    assert outcome.seen["updates"][0]["loss"] == pytest.approx(loss, abs=1e-6)
    assert outcome.tensors["gradients"].keys() == expected.keys()
    for parameter, gradient in outcome.tensors["gradients"].items():
        torch.testing.assert_close(gradient, expected[parameter], rtol=1e-4, atol=1e-5, msg=parameter)
    if "grad_norm" in outcome.seen["updates"][0]:
        norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm().item()
        assert outcome.seen["updates"][0]["grad_norm"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_weights_after_two_updates_are_those_of_plain_adamw(outcomes: dict[str, Outcome], name: str) -> None:
    outcome = outcomes[name]
    model = tiny(tied=outcome.tied)
    adamw = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, weight_decay=0.0)
    for seed in (0, 1):
        plain_gradients(model, some_groups(5, 3, seed), TEMPERATURE)
        adamw.step()
    before, moved = dict(tiny(tied=outcome.tied).named_parameters()), 0.0
    for parameter, weight in model.named_parameters():
        torch.testing.assert_close(outcome.tensors["weights"][parameter], weight.detach(), rtol=0, atol=3e-4)
        moved = max(moved, float((weight - before[parameter]).detach().abs().max()))
    assert moved > LR, "the test would see it if nothing had been learned"


@pytest.mark.parametrize("name", CASES)
def test_sampling_between_updates_uses_the_new_weights(outcomes: dict[str, Outcome], name: str) -> None:
    outcome = outcomes[name]
    first, second, third = outcome.seen["responses"]
    assert first != second != third
    exported = AutoModelForCausalLM.from_pretrained(outcome.policy)
    request = SamplingRequest(PROMPTS, 2, 1.0, 8, [1, 2, 3, 4])
    assert_same_draws(exported, request, third, [response.ids for response in sampler_of(exported).sample(request)])
    assert outcome.seen["gap"] < 1e-5 and outcome.seen["gap_after"] < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_the_exported_policy_has_the_logits_of_training(outcomes: dict[str, Outcome], name: str) -> None:
    outcome = outcomes[name]
    exported = AutoModelForCausalLM.from_pretrained(outcome.policy).eval()
    assert exported.config.tie_word_embeddings == outcome.tied
    groups = some_groups(5, 3)
    batch, rows = batch_of(groups), [(group.prompt, r.ids) for group in groups for r in group.responses]
    with torch.no_grad():
        for row, (prompt, response) in enumerate(rows):
            expected = plain_logprobs(exported, prompt, response, TEMPERATURE)
            trained = outcome.tensors["logprobs"][row][batch.mask_RT[row]]
            torch.testing.assert_close(trained, expected, rtol=1e-4, atol=1e-4)


def test_rank_count_and_zero_change_no_gradient(outcomes: dict[str, Outcome]) -> None:
    reference = outcomes["zero3"].tensors["gradients"]
    for name in ("zero3 two ranks", "zero3 four ranks", "zero0 two ranks"):
        for parameter, gradient in outcomes[name].tensors["gradients"].items():
            torch.testing.assert_close(gradient, reference[parameter], rtol=0, atol=1e-5, msg=f"{name}: {parameter}")


@pytest.mark.parametrize("name", CASES)
def test_everything_an_objective_can_add_equals_the_plain_computation(outcomes: dict[str, Outcome], name: str) -> None:
    outcome = outcomes[name]
    policy, reference = AutoModelForCausalLM.from_pretrained(outcome.policy).eval(), tiny(tied=outcome.tied)
    rows = [
        (group.prompt, r.ids, a)
        for group in some_groups(5, 3)
        for r, a in zip(group.responses, group.advantages, strict=True)
    ]
    loss, kl, entropy = 0.0, [], []
    with torch.no_grad():
        for prompt, response, advantage in rows:
            own_T, other_T = (plain_logprobs(model, prompt, response, TEMPERATURE) for model in (policy, reference))
            logits_TV = policy(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
            kl.append((other_T - own_T).exp() - (other_T - own_T) - 1)
            entropy.append(torch.distributions.Categorical(logits=logits_TV).entropy())
            loss += float(-advantage + 0.3 * kl[-1].mean() - 0.1 * entropy[-1].mean()) / len(rows)
        text = torch.cat([plain_logprobs(policy, ids[:2], ids[2:], 1.0) for ids in TEXTS])
    loss += 0.2 * float(-text.mean())
    seen = outcome.seen["everything"]
    assert seen["loss"] == pytest.approx(loss, abs=1e-4)
    assert seen["loss/kl"] == pytest.approx(float(torch.cat(kl).mean()), rel=1e-3) and seen["loss/kl"] > 1e-3
    assert seen["loss/entropy"] == pytest.approx(float(torch.cat(entropy).mean()), rel=1e-3)
    assert seen["loss/next_token"] == pytest.approx(float(-text.mean()), rel=1e-3)
    tokens = len(torch.cat(entropy))
    assert seen["tokens/trained"] == tokens
    assert outcome.seen["uncertain"]["tokens/trained"] == math.ceil(0.3 * tokens)
    most = torch.cat(entropy).topk(math.ceil(0.3 * tokens)).values.mean()
    assert outcome.seen["uncertain"]["loss/entropy"] == pytest.approx(float(most), rel=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_the_memory_of_weights_and_optimizer_is_what_was_planned(outcomes: dict[str, Outcome], name: str) -> None:
    outcome = outcomes[name]
    recipe = Recipe(name="a", policy=PolicyConfig(model="tiny", dtype="float32"))
    topology = read_config(ROOT / "deepspeed_configs" / f"{CASES[name][0]}.json")
    numbers = parameter_sizes(tiny(tied=outcome.tied).config)
    planned = {part.name: part.bytes for part in layout_parts(numbers, recipe, topology, outcome.ranks)}
    for part, measured in outcome.seen["bytes"].items():
        assert planned[part] == pytest.approx(measured, rel=0.05), part


def test_ranks_have_different_numbers_of_micro_batches(outcomes: dict[str, Outcome]) -> None:
    # Of 24 tokens: three of five groups are cut into two responses (three batches) and one (two batches, for the
    # contexts are of 7, 8 and 10 tokens); the other two groups need one each.
    assert outcomes["zero3"].seen["micro_batches"] == [7]
    assert len(set(outcomes["zero3 two ranks"].seen["micro_batches"])) == 2


@pytest.mark.parametrize("loss", TWINS)
@pytest.mark.parametrize("name", ["zero3", "zero3 two ranks", "zero0 two ranks"])
def test_a_second_update_weighs_by_the_ratio_to_the_policy_that_sampled(
    outcomes: dict[str, Outcome], name: str, loss: str
) -> None:
    outcome = outcomes[name]
    seen, tensors = outcome.seen["in_turn"][loss], outcome.tensors["in_turn"][loss]
    before, between = tiny(tied=outcome.tied), tiny(tied=outcome.tied)
    before.load_state_dict(tensors["before"], strict=False)
    between.load_state_dict(tensors["between"], strict=False)
    parts = some_groups(5, 3)[:3], some_groups(5, 3)[3:]
    losses: list[Tensor] = []
    ratios = []
    for model, groups in zip((before, between), parts, strict=True):
        rows = []
        for group in groups:
            for response, advantage in zip(group.responses, group.advantages, strict=True):
                new_T = plain_logprobs(model, group.prompt, response.ids, TEMPERATURE)
                old_T = plain_logprobs(before, group.prompt, response.ids, TEMPERATURE).detach()
                rows.append((new_T, old_T, torch.tensor(advantage)))
        losses.append(TWINS[loss](rows, *CLIP, room=8))
        ratios.append([((new_T - old_T).detach().exp(), float(a)) for new_T, old_T, a in rows])
    assert seen["loss"] == pytest.approx(float(torch.stack(losses).detach().mean()), abs=1e-5)
    between.zero_grad()
    losses[1].backward()
    for parameter, gradient in tensors["gradients"].items():
        torch.testing.assert_close(gradient, dict(between.named_parameters())[parameter].grad, rtol=1e-3, atol=2e-5)
    low, high, tokens = clipped_by_hand(loss, ratios[0] + ratios[1])
    assert seen["clip/low"] == pytest.approx(low / tokens) and seen["clip/high"] == pytest.approx(high / tokens)
    assert low and high, "both bounds act"


def clipped_by_hand(loss: str, rows: Sequence[tuple[Tensor, float]]) -> tuple[int, int, int]:
    """Tokens at which each bound acts, and all."""
    low = high = 0
    for ratio_T, advantage in rows:
        for own in ratio_T.tolist():
            ratio = float(ratio_T.log().mean().exp()) if loss == "gspo" else own
            low += ratio < 1 - CLIP[0] and (advantage < 0 or loss == "cispo")
            high += ratio > 1 + CLIP[1] and (advantage > 0 or loss == "cispo")
    return low, high, sum(len(ratio_T) for ratio_T, _ in rows)


@pytest.mark.parametrize("name", CASES)
def test_the_only_update_of_a_step_has_no_ratio(outcomes: dict[str, Outcome], name: str) -> None:
    for seen in outcomes[name].seen["updates"]:
        assert not [metric for metric in seen if metric.startswith("clip/")]


def adapted_twin(tied: bool) -> PreTrainedModel:
    """The policy with its adapters in plain torch."""
    model = tiny(tied=tied)
    add_adapters(model, LORA)
    return model


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_alone_are_trained_as_plain_adamw_would(outcomes: dict[str, Outcome], name: str) -> None:
    outcome = outcomes[name]
    model = adapted_twin(outcome.tied)
    adamw = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR, betas=BETAS, weight_decay=0.0)
    for seed in (0, 1):
        loss, expected = plain_gradients(model, some_groups(5, 3, seed), TEMPERATURE)
        assert outcome.seen["updates"][seed]["loss"] == pytest.approx(loss, abs=1e-5)
        if seed == 0:
            assert outcome.tensors["gradients"].keys() == expected.keys() and all(".lora_" in name for name in expected)
            for parameter, gradient in outcome.tensors["gradients"].items():
                torch.testing.assert_close(gradient, expected[parameter], rtol=1e-4, atol=1e-5, msg=parameter)
        adamw.step()
    layers, plain = adapted(model), dict(tiny(tied=outcome.tied).named_parameters())
    assert outcome.tensors["weights"].keys() == plain.keys()
    for parameter, weight in outcome.tensors["weights"].items():
        if parameter in layers:
            torch.testing.assert_close(weight, merged(layers[parameter]).detach(), rtol=0, atol=3e-4)
            assert not torch.equal(weight, plain[parameter])
        else:
            assert torch.equal(weight, plain[parameter]), parameter


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_exported_policy_is_what_peft_makes_of_the_adapter(outcomes: dict[str, Outcome], name: str) -> None:
    outcome = outcomes[name]
    exported = AutoModelForCausalLM.from_pretrained(outcome.policy).eval()
    base = tiny(tied=outcome.tied)
    with torch.no_grad():
        untrained = base(torch.arange(3, 20)[None]).logits
        logits = exported(torch.arange(3, 20)[None]).logits
        adapted_logits = (
            PeftModel.from_pretrained(base, outcome.policy.with_name("adapter"))
            .eval()(torch.arange(3, 20)[None])
            .logits
        )
    torch.testing.assert_close(logits, adapted_logits, rtol=1e-4, atol=1e-4)
    assert (logits - untrained).abs().max() > 0.1
    request = SamplingRequest(PROMPTS, 2, 1.0, 8, [1, 2, 3, 4])
    made = [response.ids for response in sampler_of(exported).sample(request)]
    assert_same_draws(exported, request, outcome.seen["responses"][-1], made)  # the sampler had the sum


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_reference_is_the_policy_without_its_adapters(outcomes: dict[str, Outcome], name: str) -> None:
    outcome = outcomes[name]
    trained, base = AutoModelForCausalLM.from_pretrained(outcome.policy).eval(), tiny(tied=outcome.tied)
    kl = []
    with torch.no_grad():
        for group in some_groups(5, 3):
            for response in group.responses:
                now, then = (plain_logprobs(m, group.prompt, response.ids, TEMPERATURE) for m in (trained, base))
                kl.append((then - now).exp() - (then - now) - 1)
    assert outcome.seen["everything"]["loss/kl"] == pytest.approx(float(torch.cat(kl).mean()), rel=1e-3)


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_memory_of_adapters_is_what_was_planned(outcomes: dict[str, Outcome], name: str) -> None:
    outcome, config = outcomes[name], tiny(tied=outcomes[name].tied).config
    recipe = Recipe(name="a", policy=PolicyConfig(model="tiny", dtype="float32", lora=LORA))
    topology, sizes = read_config(ROOT / "deepspeed_configs" / "zero3_cpu.json"), adapter_sizes(config, LORA)
    parts = layout_parts(parameter_sizes(config), recipe, topology, outcome.ranks, sizes)
    planned = {part.name: part.bytes for part in parts}
    for part, measured in outcome.seen["bytes"].items():
        assert planned[part] == pytest.approx(measured, rel=0.05), part


@pytest.mark.parametrize("name", CASES)
def test_a_loss_that_is_not_finite_stops_before_the_step(outcomes: dict[str, Outcome], name: str) -> None:
    assert "the loss is not finite" in outcomes[name].seen["refused"]
