"""Whether the pipeline runs on a GPU at all: scores, a step by each sampler, a resume. `make gpu` runs these first."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.config.manifest import ScoreConfig
from pipeline.core.hardware import torch_device
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.scoring.documents import score_documents
from pipeline.scoring.entropy import score_logits
from pipeline.scoring.proxy import load_proxy
from tests.grpo.colours import metrics_of

ROOT = Path(__file__).parent.parent.parent
PROXY = ROOT / "demo" / "proxy"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch_device() == "cpu", reason="no GPU that PyTorch can use"),
    pytest.mark.xdist_group("gpu"),
]


def rpt(*words: str, work: Path) -> str:
    """What a command says, in a process of its own; it must end well."""
    command = [sys.executable, "-m", "commands.cli", *words, "--work", str(work)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's shards."""
    folder = tmp_path_factory.mktemp("gpu")
    rpt("data", "demo", work=folder)
    return folder


def train(work: Path, run: Path, steps: int, sampler: str) -> str:
    settings = [
        "evaluate.progress_sites=8",
        "budget.save_every=1",
        f"budget.steps={steps}",
        f"rollout.sampler={sampler}",
    ]
    return rpt("train", "demo", "--run", str(run), *(w for s in settings for w in ("--set", s)), work=work)


def test_scores_are_those_of_the_cpu() -> None:
    tokens = CorpusTokenizer.load(PROXY)
    ids = tokens.encode("Problem: the counter reads 1 and is given A2, B5\nSolution: it reads 3, then 8")
    proxy = load_proxy(PROXY, tokens, "float32")
    (found,) = score_documents(proxy, [ids], ["a"], ScoreConfig(window=512, overlap=128))
    model = AutoModelForCausalLM.from_pretrained(PROXY, dtype=torch.float32).eval()
    front = [] if tokens.bos_id is None else [tokens.bos_id]
    ids_1T = torch.tensor([[*front, *ids.tolist()]])
    with torch.no_grad():
        logits_TV = model(ids_1T).logits[0, len(front) : -1]
    expected = score_logits(logits_TV, ids_1T[0, len(front) + 1 :], ScoreConfig().top_k)
    torch.testing.assert_close(found.entropy, expected.entropy, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.nll, expected.nll, rtol=0, atol=1e-3)


@pytest.mark.parametrize("sampler", ["built_in", "vllm"])
def test_a_step_by_each_sampler(sampler: str, work: Path, tmp_path: Path) -> None:
    if sampler == "vllm" and find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: pip install 'rpt[vllm]'")
    train(work, tmp_path / "run", 1, sampler)
    row = metrics_of(tmp_path / "run")[-1]
    assert row["step"] == 1 and row["tokens/trained"] > 0 and math.isfinite(row["loss"])
    assert row["sampler/logprob_gap"] < 0.05


def test_a_run_is_resumed(work: Path, tmp_path: Path) -> None:
    train(work, tmp_path / "run", 1, "built_in")
    assert "resumes after step 1" in train(work, tmp_path / "run", 2, "built_in")
    assert [row["step"] for row in metrics_of(tmp_path / "run")] == [0, 1, 2]
