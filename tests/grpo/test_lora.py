"""Adapters: what cannot be done, and a run of them that is killed. What they compute is in test_engine.py."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipeline.core.config import LoraConfig
from pipeline.core.errors import UserError
from pipeline.grpo.lora import add_adapters, without_adapters
from tests.grpo.colours import make_policy, metrics_of, publish_shards, write_manifest, write_recipe
from tests.grpo.models import tiny

ROOT = Path(__file__).parent.parent.parent


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"peft is not installed") as found:
        add_adapters(tiny(), LoraConfig(rank=2, alpha=4))
    assert "pip install 'rpt[lora]'" in str(found.value)


def test_names_of_no_layer_are_refused() -> None:
    with pytest.raises(UserError, match=r"policy\.lora\.targets"):
        add_adapters(tiny(), LoraConfig(rank=2, alpha=4, targets=["query"]))


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
    publish_shards(tmp_path / "work", policy)
    write_recipe(tmp_path / "recipe.yaml", policy, objective={"kl": 0.05})
    write_manifest(tmp_path / "manifest.yaml", policy)

    def start(run: str) -> subprocess.Popen[str]:
        arguments = ["recipe.yaml", "--manifest", "manifest.yaml", "--work", "work", "--run", run]
        arguments += ["--set", "policy.lora={rank: 4, alpha: 8}"]
        return subprocess.Popen(
            [sys.executable, "-m", "stages.train", *arguments],
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
    AutoModelForCausalLM.from_pretrained(tmp_path / "killed" / "policy")
