"""Packing of a batch's tokens into one row without padding, with the place of each context and response in it.

Shape names as in `types.py`; N packed tokens, S slots (P·C + R·T, padding included).
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from pipeline.grpo.types import Batch


class Packing:
    """A batch's tokens in one row: all contexts, one after the other, then all responses.

    `contexts` and `width` are P and C, `rows` and `response_width` R and T.
    """

    def __init__(self, batch: Batch) -> None:
        # Lengths are needed on the host: this is the only place where it waits for the device.
        contexts_PC, rows_RT = batch.context_mask_PC.cpu(), batch.mask_RT.cpu()
        (self.contexts, self.width), (self.rows, self.response_width) = contexts_PC.shape, rows_RT.shape
        self._length_P, self._length_R = contexts_PC.sum(dim=1), rows_RT.sum(dim=1)
        self._position_PC = contexts_PC.cumsum(dim=1) - 1
        position_RT = self._length_P.repeat_interleave(batch.group_size)[:, None] + torch.arange(self.response_width)
        positions = torch.cat([self._position_PC.flatten(), position_RT.flatten()])
        ids = torch.cat([batch.context_ids_PC.flatten(), batch.inputs_RT.flatten()])
        self._device = ids.device
        self._real_N = torch.cat([contexts_PC.flatten(), rows_RT.flatten()]).nonzero()[:, 0]
        self.ids_N = ids[self._real_N.to(self._device)]
        self.positions_N = positions[self._real_N].to(self._device)
        self.read = int(self._length_P.sum())
        """Number of tokens that belong to contexts; the responses' tokens follow."""

    @cached_property
    def slot_N(self) -> Tensor | None:
        """Return the slot [N] of each token; None if there is no padding, so that slots equal tokens.

        Slots are those of the contexts [P, C], padded on their *right*, then those of the responses [R, T].
        """
        # A batch pads contexts on their left. Here padding comes last, where causal attention never looks: contexts
        # then need no mask.
        split = self.contexts * self.width
        if len(self._real_N) == split + self.rows * self.response_width:
            return None
        slot_PC = torch.arange(self.contexts)[:, None] * self.width + self._position_PC
        slots = torch.cat([slot_PC.flatten(), split + torch.arange(self.rows * self.response_width)])
        return slots[self._real_N].to(self._device)

    @cached_property
    def real_PC(self) -> Tensor | None:
        """Return the mask [P, C] of context slots that hold a token; None if all do."""
        real_PC = torch.arange(self.width) < self._length_P[:, None]
        return None if real_PC.all() else real_PC.to(self._device)

    @cached_property
    def seen_RTS(self) -> Tensor:
        """Return the attention mask [R or 1, 1, T, C + T] of responses over their context and their own tokens."""
        time_T = torch.arange(self.response_width, device=self._device)
        own_TT, real_PC = time_T[:, None] >= time_T, self.real_PC
        if real_PC is None:  # without padding in contexts one mask serves all responses
            real_PC = own_TT.new_ones(1, self.width)
        else:
            real_PC = real_PC.repeat_interleave(self.rows // self.contexts, dim=0)
        shape = len(real_PC), self.response_width, -1
        return torch.cat([real_PC[:, None].expand(shape), own_TT.expand(shape)], dim=2)[:, None]
