"""The number format that `auto` means: by what PyTorch says of the machine, never by a name or a clock."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.config.manifest import ProxyConfig, TrainProxyConfig
from pipeline.core.hardware import gpus
from pipeline.core.precision import fastest_dtype, proxy_dtype


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": False, "avx512_bf16": True}, "bfloat16"),
        ({"amx_tile": True, "amx_int8": True, "avx512_f": True, "avx512_bf16": False}, "float32"),
        ({"neon": True}, "float32"),
    ],
)
def test_a_cpu_is_asked_for_instructions(
    capabilities: dict[str, bool], dtype: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if gpus():
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert proxy_dtype(ProxyConfig(model="m"), "score") == dtype
    assert f"score        computes in {dtype}: " in capsys.readouterr().err


def test_without_onednn_a_cpu_multiplies_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    if gpus():
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert fastest_dtype()[0] == "float32"


def test_a_manifest_that_says_which_is_obeyed(tmp_path: Path) -> None:
    assert proxy_dtype(ProxyConfig(model="m", dtype="bfloat16"), "score") == "bfloat16"
    assert proxy_dtype(ProxyConfig(train=TrainProxyConfig()), "score") == "float32"
    assert proxy_dtype(ProxyConfig(model="m"), "score") == fastest_dtype()[0]
