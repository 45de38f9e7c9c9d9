"""In which precision a proxy computes."""

from __future__ import annotations

from pipeline.core.hardware import gpus


def resolve_dtype(dtype: str) -> str:
    """What `proxy.dtype: auto` means on this machine. torch is imported only where there is a GPU to ask about."""
    if dtype != "auto":
        return dtype
    if not gpus():
        return "float32"
    import torch

    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has_bf16 else "float32"
