"""Adapters: what cannot be done, and a run of them that is killed. What they compute is in test_engine.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM as Auto
from transformers import PreTrainedModel, Qwen3MoeConfig

from pipeline.config.errors import UserError
from pipeline.config.loading import load
from pipeline.config.recipe import LoraConfig, Recipe
from pipeline.config.selection import BandsConfig
from pipeline.grpo.model.adapters import (
    adapted,
    adapter_parameters,
    add_adapters,
    merged,
    save_adapter,
    without_adapters,
)
from pipeline.grpo.run.spec import write_spec
from stages.train import TrainSpec
from tests.grpo.colours import make_policy, metrics_of, publish_shards, write_recipe
from tests.grpo.models import VOCAB, tiny

ROOT = Path(__file__).parent.parent.parent.parent


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"peft is not installed") as found:
        add_adapters(tiny(), LoraConfig(rank=2, alpha=4))
    assert "pip install 'rpt[lora]'" in str(found.value)


def test_names_of_no_layer_are_refused() -> None:
    with pytest.raises(UserError, match=r"policy\.lora\.targets"):
        add_adapters(tiny(), LoraConfig(rank=2, alpha=4, targets=["query"]))


def moe(**options: Any) -> PreTrainedModel:
    """A random mixture of experts, of two layers."""
    torch.manual_seed(0)
    model = Auto.from_config(
        Qwen3MoeConfig(
            vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            head_dim=8, intermediate_size=48, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2,
            tie_word_embeddings=False, **options,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)  # far from uniform
    return model


POLICIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: tiny("llama", tied=False),
    "experts": moe,
    "gpt2": lambda: tiny("gpt2"),
}
TARGETS = [
    ("experts", "all-linear"),  # attention, router, and both matrices of every expert
    ("experts", ["down_proj"]),
    ("experts", ["gate_proj", "up_proj", "down_proj"]),
    ("experts", ["gate"]),
    ("llama", "all-linear"),
    ("llama", ["embed_tokens"]),
    ("llama", ["embed_tokens", "q_proj"]),
    ("gpt2", "all-linear"),  # its matrices are held transposed
]


def adapted_policy(kind: str, targets: str | list[str]) -> tuple[PreTrainedModel, LoraConfig]:
    """With adapters that have learned something."""
    model, config = POLICIES[kind](), LoraConfig(rank=2, alpha=4, targets=targets)
    add_adapters(model, config)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=random))
    return model, config


@pytest.mark.parametrize(("kind", "targets"), TARGETS, ids=str)
def test_merged_weights_make_the_adapted_policy(kind: str, targets: str | list[str], tmp_path: Path) -> None:
    base, ids = POLICIES[kind](), torch.arange(3, 40)[None]
    model, config = adapted_policy(kind, targets)
    with torch.no_grad():
        expected = model(ids).logits
        assert (base(ids).logits - expected).abs().max() > 0.1

        plain = POLICIES[kind]()
        own, layers = dict(plain.named_parameters()), adapted(model)
        assert layers.keys() <= own.keys()
        for name, layer in layers.items():
            own[name].copy_(merged(layer))
        torch.testing.assert_close(plain(ids).logits, expected, rtol=1e-4, atol=1e-4)
        with without_adapters(model):
            torch.testing.assert_close(model(ids).logits, base(ids).logits, rtol=1e-5, atol=1e-5)

        base.save_pretrained(tmp_path / "base")
        weights = [(name, tensor) for name, tensor in model.named_parameters() if tensor.requires_grad]
        assert {id(tensor) for _, tensor in weights} == {
            id(tensor) for layer in layers.values() for tensor in adapter_parameters(layer)
        }
        save_adapter(weights, config, str(tmp_path / "base"), tmp_path / "adapter")
        read = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
        torch.testing.assert_close(read(ids).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "targets", "why"),
    [
        ("gpt2", ["wte"], r"wte\.weight is tied to another weight"),
        ("llama", ["lm_head"], r"lm_head\.weight is the output head"),
        ("llama", ["input_layernorm"], r"input_layernorm"),
        ("llama", ["q_proj", "nothing"], r"nothing"),
        ("experts", ["gate_up_proj", "down_proj"], r"gate_up_proj"),
    ],
)
def test_what_cannot_be_merged_or_is_not_there_is_refused_by_name(kind: str, targets: list[str], why: str) -> None:
    with pytest.raises(UserError, match=why) as found:
        add_adapters(POLICIES[kind](), LoraConfig(rank=2, alpha=4, targets=targets))
    assert "policy.lora.targets" in str(found.value)


def test_without_adapters_the_policy_is_the_base() -> None:
    model, base, ids = tiny(), tiny(), torch.arange(3, 20)[None]
    add_adapters(model, LoraConfig(rank=2, alpha=4))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
        assert (model(ids).logits - base(ids).logits).abs().max() > 0.1
        with without_adapters(model):
            assert torch.equal(model(ids).logits, base(ids).logits)
        assert (model(ids).logits - base(ids).logits).abs().max() > 0.1


def test_a_killed_run_of_adapters_takes_the_same_steps(tmp_path: Path) -> None:
    policy = make_policy(tmp_path / "policy")
    shards = publish_shards(tmp_path / "work", policy)
    write_recipe(tmp_path / "recipe.yaml", policy, objective={"kl": 0.05})

    recipe = load(Recipe, tmp_path / "recipe.yaml", ["policy.lora={rank: 4, alpha: 8}"])

    def start(run: str) -> subprocess.Popen[str]:
        spec = TrainSpec(recipe=recipe, run=tmp_path / run, shards=shards.directory, bands=BandsConfig())
        write_spec(spec, tmp_path / f"{run}.json")
        return subprocess.Popen(
            [sys.executable, "-m", "stages.train", f"{run}.json"],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    undisturbed, killed = start("undisturbed"), start("killed")
    metrics = tmp_path / "killed" / "metrics.jsonl"
    while not (metrics.exists() and any(row["step"] == 3 for row in metrics_of(metrics.parent))):
        assert killed.poll() is None, killed.communicate()[0]
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    output, _ = start("killed").communicate()
    assert "resumes after step 2" in output, output
    output, _ = undisturbed.communicate()
    assert undisturbed.returncode == 0, output

    assert metrics_of(tmp_path / "undisturbed") == metrics_of(tmp_path / "killed"), "bit for bit"
    for file in ("policy/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "undisturbed" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes()
    before, after = (load_file(folder / "model.safetensors") for folder in (policy, tmp_path / "killed" / "policy"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.endswith("_proj.weight")}, "every linear layer"
    Auto.from_pretrained(tmp_path / "killed" / "policy")


def test_experts_that_learn_under_zero3_are_those_that_sample(tmp_path: Path) -> None:
    """Every weight partitioned, also those that `peft` reads outside of their layers."""
    moe(bos_token_id=1, eos_token_id=2).save_pretrained(tmp_path / "policy")
    topology = json.loads((ROOT / "deepspeed_configs" / "zero3_cpu.json").read_text())
    topology["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (tmp_path / "zero3.json").write_text(json.dumps(topology))
    arguments = [str(tmp_path / name) for name in ("policy", "zero3.json")]
    subprocess.run(
        [sys.executable, "-m", "tests.grpo.policy.engine_worker", *arguments, str(tmp_path), "lora"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=True,
    )
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert max(seen["gap"], seen["gap_after"]) < 1e-5
    learned = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert any("experts" in name and "lora_B" in name and tensor.any() for name, tensor in learned.items())
