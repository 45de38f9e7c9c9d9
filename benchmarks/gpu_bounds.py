"""What a GRPO step takes at the least, and how much of a GPU's bandwidth and arithmetic it therefore uses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.hardware import peak_flops

if TYPE_CHECKING:
    import torch

DECODING, UPDATING = "decoding, share of the bandwidth's bound", "update, MFU"
BANDWIDTH = {"H200": 4.8e12, "H100": 3.35e12, "A100": 2.04e12}
"""Of a GPU's memory, bytes/s, by a part of the device's name (the vendor's data sheets: SXM, A100 of 80 GB)."""


@dataclass(frozen=True)
class Work:
    """Of a step, at the least."""

    decoding_bytes: int
    """Read while decoding: every weight a token, contexts' keys and values once a group, the responses' own."""
    update_flops: int
    """Of contexts and responses, forward and backward. Contexts need nothing of the output head."""

    def shares(self, decoding: float, updating: float, device: str) -> dict[str, float]:
        """Of a device's bandwidth and arithmetic, in so many seconds each; nothing where its data sheet is not known.

        Example:
            >>> Work(48 * 10**11, 989 * 10**12).shares(2.0, 4.0, "NVIDIA H200")
            {"decoding, share of the bandwidth's bound": 0.5, 'update, MFU': 0.25}
        """
        bandwidth = next((value for name, value in BANDWIDTH.items() if name in device), None)
        peak = peak_flops([device])
        return {
            **({DECODING: self.decoding_bytes / bandwidth / decoding} if bandwidth else {}),
            **({UPDATING: self.update_flops / peak / updating} if peak else {}),
        }


def work_of(folder: Path, dtype: torch.dtype, sites: int, group: int, context: int, new: int) -> Work:
    """The work of a step in which every group has a gradient.

    Args:
        folder: the policy's.
        dtype: of weights, keys and values while decoding.
        sites: contexts.
        group: responses to each.
        context: tokens of a context.
        new: tokens of a response. The first is drawn from what reading the contexts gave.
    """
    from transformers import AutoConfig

    from pipeline.grpo.compute import ModelSize
    from pipeline.grpo.memory import cache_bytes

    config, size = AutoConfig.from_pretrained(folder), ModelSize.of(folder)
    held = cache_bytes(config, dtype.itemsize)
    own = sites * group * held * new * (new - 1) // 2
    decoding = (new - 1) * (size.weights * dtype.itemsize + sites * context * held) + own
    body = replace(size, weights=size.weights - config.vocab_size * config.hidden_size)
    # A prompt's last token is the first input of its responses.
    update = sites * (body.learning(context - 1) + group * size.learning(new, context - 1))
    return Work(decoding, update)
