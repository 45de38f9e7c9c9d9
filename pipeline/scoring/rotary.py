"""Rotary frequencies that depend on the longest row of a batch (LongRoPE, dynamic NTK), made those of one length.

`transformers` takes other frequencies for a whole batch as soon as one of its rows is long, so that what a model makes
of a row depends on the rows beside it, and on how much of a response is there yet. Here all are those that it takes
for a row of the longest length, as vLLM's are those of `max_model_len`.

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
"""How `transformers` names frequencies: after it, or after a type of layers and it."""


def fix_rotary(model: PreTrainedModel, longest: int | None) -> bool:
    """Take a model's rotary frequencies for `longest` from now on, if they depend on the rows of a batch.

    Args:
        model: of `transformers`, with its weights.
        longest: most tokens of a row, response included; None if the caller knows none.

    Returns:
        whether they did depend. If so, no position may be `longest` or more.

    Raises:
        UserError: they depend, and `longest` is not known.
    """
    tried = longest or getattr(model.config.get_text_config(), "max_position_embeddings", 0) + 1
    fixed = False
    for name, module in model.named_modules():
        for own in _layer_types(module):
            if not _depends(module, own, tried):
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
    """A rotary module's `forward` by table: cos and sin [T, D] of every position, by type of layers."""

    def __init__(self) -> None:
        self.tables: dict[tuple[str, ...], list[Tensor]] = {}

    def __call__(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> tuple[Tensor, ...]:
        own = () if layer_type is None else (layer_type,)
        tables = self.tables[own] = [turn_TD.to(x.device) for turn_TD in self.tables[own]]
        return tuple(turn_TD[position_ids].to(x.dtype) for turn_TD in tables)


def _layer_types(module: nn.Module) -> list[tuple[str, ...]]:
    """For which a module has frequencies of their own; [()] if they are the same for all, [] if it has none."""
    names = [name.removesuffix(_BUFFER) for name, _ in module.named_buffers(recurse=False) if name.endswith(_BUFFER)]
    if not names or "position_ids" not in inspect.signature(type(module).forward).parameters:
        return []
    types = {name.removesuffix("original_").removesuffix("_") for name in names}
    return [(layer_type,) if layer_type else () for layer_type in sorted(types)]


def _depends(module: nn.Module, own: tuple[str, ...], longest: int) -> bool:
    """Whether the first positions are turned otherwise beside the last of a row of `longest` tokens."""
    first_T = torch.arange(min(2, longest))
    alone, beside = (_cos_sin(module, own, ids_T) for ids_T in (first_T, torch.tensor([*first_T, longest - 1])))
    return any(
        not torch.equal(one_TD, other_TD[: len(first_T)]) for one_TD, other_TD in zip(alone, beside, strict=True)
    )


@torch.no_grad()
def _cos_sin(module: nn.Module, own: tuple[str, ...], positions_T: Tensor) -> list[Tensor]:
    """cos and sin [T, D], in fp32."""
    device = next(module.buffers()).device
    forward: Any = type(module).forward
    made = forward(module, torch.zeros(1, 1, device=device), positions_T[None].to(device), *own)
    return [turn_1TD[0] for turn_1TD in made]
