"""What benchmarks do on a GPU only: their sides, and what they hold a GPU's figures against."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from benchmarks import score
from benchmarks.gpu_bounds import Work, work_of
from tests.gpu.simulated import SimulatedGpu
from tests.grpo.models import saved


def test_a_steps_work_by_hand(tmp_path: Path) -> None:
    """The tiny policy: 15,360 weights in layers and 1,952 in the head; 256 bytes of keys and values a token."""
    sites, group, context, new = 2, 3, 5, 3
    decoding = 2 * (4 * 17_312 + sites * context * 256) + sites * group * 256 * (1 + 2)
    contexts = 3 * (2 * 15_360 * 4 + 4 * 64 * (1 + 2 + 3 + 4))
    responses = 3 * (2 * 17_312 * 3 + 4 * 64 * (5 + 6 + 7))
    found = work_of(saved(tmp_path), torch.float32, sites, group, context, new)
    assert found == Work(decoding, sites * (contexts + group * responses))


@pytest.mark.parametrize("side", [score.rpt, score.forward, score.usual])
def test_scoring_is_measured_there(
    side: object, tmp_path: Path, gpu: SimulatedGpu | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "VOCABULARY", 300)
    monkeypatch.setitem(
        score.SHAPES, "0.5B",
        {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1},
    )  # fmt: skip
    arguments = argparse.Namespace(
        device="cuda", shape="0.5B", dtype="bfloat16", tokens=200, batch_tokens=128, layers=2, threads=1,
        documents=None, folder=tmp_path,
    )  # fmt: skip
    score.save_model(tmp_path / "model", arguments)
    documents = json.loads(json.dumps(score.token_ids(arguments)))
    side(arguments)(documents)  # type: ignore[operator]
    assert score.device_name(arguments) and score.clock(arguments) > 0 and score.peak_memory(arguments) >= 0
