"""The hardware of a machine: cores, accelerators, and their peak speed where it is known."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}
"""Dense bf16 FLOP/s by a part of the device's name (vendors' data sheets); the longest match counts."""

MIG = "part of an NVIDIA GPU"
"""Name shown for a MIG slice, because `nvidia-smi` only names whole GPUs."""

GPU_UNUSED = "PyTorch cannot use this machine's GPU, the processors compute: install a build that the GPU's driver runs"
"""Warning for a machine whose GPU is not used."""


class Gpu(NamedTuple):
    """A GPU: its `identity` in `CUDA_VISIBLE_DEVICES`, and its name."""

    identity: str
    name: str


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def torch_device() -> str:
    """Return the device for this process's tensors: `cuda` if PyTorch can use a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@lru_cache(maxsize=1)
def gpus() -> tuple[Gpu, ...]:
    """Return the NVIDIA GPUs that this process may use, by `nvidia-smi`: no CUDA context is opened here."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=index,uuid,name", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=30, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ()
    return visible_gpus(listed, os.environ)


def visible_gpus(listed: str, environment: Mapping[str, str]) -> tuple[Gpu, ...]:
    r"""Return the GPUs of `index, uuid, name` lines that `CUDA_VISIBLE_DEVICES` allows.

    Example:
        >>> visible_gpus("0, GPU-aa, NVIDIA L4\n1, GPU-bb, NVIDIA L4\n", {"CUDA_VISIBLE_DEVICES": "1"})
        (Gpu(identity='1', name='NVIDIA L4'),)
    """
    rows = [line.split(", ", 2) for line in listed.splitlines() if line.count(", ") >= 2]
    default = ",".join(index for index, _, _ in rows)
    found: list[Gpu] = []
    for identity in map(str.strip, environment.get("CUDA_VISIBLE_DEVICES", default).split(",")):
        names = [name for index, uuid, name in rows if identity == index or (identity and uuid.startswith(identity))]
        if rows and identity.startswith("MIG-"):
            names = [MIG]
        if not names:
            break  # CUDA ignores everything after an unknown device, too
        found.append(Gpu(identity, names[0]))
    return tuple(found)


def peak_flops(devices: Sequence[str]) -> float | None:
    """Return the summed dense bf16 peak (FLOP/s) of the devices, or None if one of them is not known.

    Example:
        >>> peak_flops(["NVIDIA H100 PCIe", "NVIDIA H200"]), peak_flops(["CPU"]), peak_flops([])
        (1745000000000000.0, None, None)
        >>> peak_flops(["NVIDIA A100-SXM4-80GB"]), peak_flops(["NVIDIA L40"]), peak_flops(["NVIDIA RTX A1000"])
        (312000000000000.0, None, None)
    """
    peaks = []
    for device in devices:
        parts = [part for part in PEAK_FLOPS if re.search(rf"\b{part}\b", device)]
        if not parts:
            return None
        peaks.append(PEAK_FLOPS[max(parts, key=len)])
    return sum(peaks) or None
