"""The number format that `dtype: auto` means on a machine. Imports torch only to ask it."""

from __future__ import annotations

from typing import Literal

from pipeline.config.manifest import ProxyConfig
from pipeline.core.hardware import GPU_UNUSED, gpus, torch_device
from pipeline.core.progress import log

Dtype = Literal["float32", "bfloat16"]
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")

CPU_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")
"""Instructions that multiply bfloat16 matrices, by their names in `torch.cpu.get_capabilities`."""


def fastest_dtype() -> tuple[Dtype, str]:
    """Return the number format in which this machine multiplies matrices fastest, and the reason.

    That is bfloat16 on a GPU or CPU with instructions for it, else float32. PyTorch is asked what the device can do;
    nothing is timed, so that the answer is always the same on a machine.
    """
    return _of_gpu() if torch_device() == "cuda" else _of_cpu()


def proxy_dtype(proxy: ProxyConfig, command: str) -> Dtype:
    """Return the number format of a proxy on this machine, and log the choice of `auto`.

    A proxy that is made from the corpus is too narrow to gain from bfloat16, or has no matrices.

    Args:
        proxy: the manifest's proxy.
        command: what the line of the log begins with.
    """
    if proxy.dtype != "auto":
        return proxy.dtype
    if proxy.made_here:
        return "float32"
    if gpus() and torch_device() == "cpu":
        log(f"{command:<12} {GPU_UNUSED}")
    dtype, reason = fastest_dtype()
    log(f"{command:<12} computes in {dtype}: {reason} (proxy.dtype: auto)")
    return dtype


def _of_gpu() -> tuple[Dtype, str]:
    import torch

    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bfloat16", "the GPU multiplies it"
    return "float32", "the GPU does not multiply bfloat16"


def _of_cpu() -> tuple[Dtype, str]:
    import torch

    # Products of bfloat16 go through oneDNN, which PyTorch can be built without.
    found = torch.cpu.get_capabilities() if torch.backends.mkldnn.is_available() else {}
    has = [name for name in CPU_INSTRUCTIONS if found.get(name)]
    return ("bfloat16", f"the CPU has {has[0]}") if has else ("float32", f"no GPU, no {' or '.join(CPU_INSTRUCTIONS)}")
