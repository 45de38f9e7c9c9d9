"""Chooses the dtype that a proxy computes in."""

from __future__ import annotations

from pipeline.core.hardware import GPU_UNUSED, gpus, torch_device
from pipeline.core.progress import log


def resolve_dtype(dtype: str) -> str:
    """Return the dtype that `proxy.dtype` means on this machine. Imports torch only if the machine has a GPU."""
    if dtype != "auto":
        return dtype
    if not gpus():
        return "float32"
    if torch_device() == "cpu":
        log(f"score        {GPU_UNUSED}")
        return "float32"
    import torch

    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
