"""The engine in the type that recipes have by default: what an update is, up to its rounding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.grpo.models import saved, some_groups


@pytest.mark.parametrize("topology", ["zero3"])
def test_an_update_in_bfloat16(topology: str, tmp_path: Path, repository: Path) -> None:
    saved(tmp_path / "policy")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    config = repository / "deepspeed_configs" / f"{topology}.json"
    command = [
        sys.executable,
        "-m",
        "tests.grpo.policy.bfloat16_worker",
        str(tmp_path / "policy"),
        str(config),
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["dtypes"] == ["torch.bfloat16"]
    assert max(seen["gaps"]) < 0.1, "sampler and trainer agree before and after the weights are handed over"
    assert seen["moved"] > 20 and seen["same"] and seen["state"] == {"own": 1}
    assert (
        seen["update"]["tokens/trained"] == sum(len(r.ids) for g in some_groups(5, 3) for r in g.responses)
        and seen["update"]["loss/kl"] == 0
    )
    assert 3 < seen["update"]["loss/entropy"] < 4.2 and seen["update"]["grad_norm"] > 0.1
