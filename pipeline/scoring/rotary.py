"""Fixes rotary frequencies that depend on the longest row of a batch (LongRoPE, dynamic NTK).

`transformers` switches to other frequencies for a whole batch as soon as one of its rows is long. A row's result then
depends on the other rows of its batch, and on how much of a response has been generated. Here every row gets the
frequencies of the longest possible row, as vLLM uses those of `max_model_len`.

Shape names: T positions, D rotated dimensions.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.config.errors import UserError

_BUFFER = "inv_freq"
"""The name of the buffer of frequencies in `transformers`, maybe after a layer type."""


def fix_rotary(model: PreTrainedModel, longest: int | None) -> bool:
    """Fix a model's rotary frequencies to those of `longest` tokens, if they depend on the rows of a batch.

    Args:
        model: a `transformers` model with its weights.
        longest: maximum tokens of a row, response included; None if unknown.

    Returns:
        Whether the frequencies depended on the rows. If so, every position must be below `longest`.

    Raises:
        UserError: they depend on the rows, and `longest` is None.
    """
    probe_length = longest or getattr(model.config.get_text_config(), "max_position_embeddings", 0) + 1
    fixed = False
    for name, module in model.named_modules():
        for own in _layer_types(module):
            if not _depends_on_length(module, own, probe_length):
                continue
            if longest is None:
                raise UserError(
                    "rotary frequencies depend on the longest row of a batch",
                    where=f"{type(model).__name__}, {name}",
                    hint="choose another policy, or set `rope_type: default` in its config.json",
                )
            if not isinstance(module.forward, _Table):
                module.forward = _Table()
            module.forward.tables[own] = _cos_sin(module, own, torch.arange(longest))
            fixed = True
    return fixed


class _Table:
    """Replacement of a rotary module's `forward`: looks up cos and sin [T, D] of every position, per layer type."""

    def __init__(self) -> None:
        self.tables: dict[tuple[str, ...], list[Tensor]] = {}

    def __call__(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> tuple[Tensor, ...]:
        own = () if layer_type is None else (layer_type,)
        # Keep the tables on the device of the last call: models are moved after they are fixed.
        tables = self.tables[own] = [table_TD.to(x.device) for table_TD in self.tables[own]]
        return tuple(table_TD[position_ids].to(x.dtype) for table_TD in tables)


def _layer_types(module: nn.Module) -> list[tuple[str, ...]]:
    """Return the layer types for which a module has frequencies: [()] if all layers share them, [] if it has none."""
    names = [name.removesuffix(_BUFFER) for name, _ in module.named_buffers(recurse=False) if name.endswith(_BUFFER)]
    if not names or "position_ids" not in inspect.signature(type(module).forward).parameters:
        return []
    types = {name.removesuffix("original_").removesuffix("_") for name in names}
    return [(layer_type,) if layer_type else () for layer_type in sorted(types)]


def _depends_on_length(module: nn.Module, own: tuple[str, ...], longest: int) -> bool:
    """Return whether the first positions get other angles if the row has `longest` tokens."""
    first_T = torch.arange(min(2, longest))
    short, long = (_cos_sin(module, own, ids_T) for ids_T in (first_T, torch.tensor([*first_T, longest - 1])))
    return any(
        not torch.equal(short_TD, long_TD[: len(first_T)]) for short_TD, long_TD in zip(short, long, strict=True)
    )


@torch.no_grad()
def _cos_sin(module: nn.Module, own: tuple[str, ...], positions_T: Tensor) -> list[Tensor]:
    """Return cos and sin [T, D] of positions, in fp32."""
    device = next(module.buffers()).device
    forward: Any = type(module).forward
    tables = forward(module, torch.zeros(1, 1, device=device), positions_T[None].to(device), *own)
    return [table_1TD[0] for table_1TD in tables]
