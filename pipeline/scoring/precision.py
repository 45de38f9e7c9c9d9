"""In which precision a proxy computes."""

from __future__ import annotations

from pipeline.core.hardware import GPU_UNUSED, gpus, torch_device
from pipeline.core.progress import log


def resolve_dtype(dtype: str) -> str:
    """What `proxy.dtype: auto` means on this machine. torch is imported only where there is a GPU to ask about."""
    if dtype != "auto":
        return dtype
    if not gpus():
        return "float32"
    if torch_device() == "cpu":
        log(f"score        {GPU_UNUSED}")
        return "float32"
    import torch

    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
