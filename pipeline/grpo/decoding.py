"""Keys and values while responses are decoded, token by token: contexts once a group, or a copy for every row.

Shape names: P contexts, G responses of each, R = P·G rows, W width of the left-padded contexts, H key-value heads, D
their dimension, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from pipeline.grpo.shared_attention import SharedContexts, sharing

_ROOM = 64
"""Columns by which a full buffer of keys and values grows."""


class Repeated:
    """Decodes with a copy of its context's keys and values for every row: any attention."""

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[Sequence[tuple[Tensor, Tensor]]],
        mask_PW: Tensor,
        group_size: int,
        room: int,
    ) -> None:
        """`layers`: keys and values [P, H, W, D] of some of the contexts, by layer; then of the next ones."""
        buffers: list[Any] = [_BufferLayer(parts, group_size, min(room, _ROOM)) for parts in zip(*layers, strict=True)]
        self._model, self._cache, self._columns = model, Cache(layers=buffers), mask_PW.shape[1]
        mask_RW = mask_PW.repeat_interleave(group_size, dim=0)
        self._mask_RC = torch.cat([mask_RW, mask_RW.new_ones(len(mask_RW), room)], dim=1)

    def select(self, rows: Tensor) -> None:
        """Keep only these rows."""
        self._cache.batch_select_indices(rows)
        self._mask_RC = self._mask_RC[rows]

    def step(self, ids_R: Tensor, positions_R: Tensor) -> Tensor:
        """Logits [R, V] after one more token a row."""
        self._columns += 1
        return self._model(
            input_ids=ids_R[:, None],
            attention_mask=self._mask_RC[:, : self._columns],
            position_ids=positions_R[:, None],
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]


class Shared:
    """Decodes with its context's keys and values once a group, where `can_share`."""

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[Sequence[tuple[Tensor, Tensor]]],
        mask_PW: Tensor,
        group_size: int,
        room: int,
    ) -> None:
        """As `Repeated`."""
        whole = [
            (torch.cat([keys for keys, _ in parts]), torch.cat([values for _, values in parts]))
            for parts in zip(*layers, strict=True)
        ]
        empty = [(keys[:, :, :0], values[:, :, :0]) for keys, values in whole]
        buffers: list[Any] = [_BufferLayer([part], group_size, min(room, _ROOM)) for part in empty]
        self._model, self._cache = model, Cache(layers=buffers)
        self._contexts = SharedContexts(whole, mask_PW, group_size)

    def select(self, rows: Tensor) -> None:
        """Keep only these rows."""
        self._cache.batch_select_indices(rows)
        self._contexts.select(rows)

    def step(self, ids_R: Tensor, positions_R: Tensor) -> Tensor:
        """Logits [R, V] after one more token a row."""
        with sharing(self._model):
            return self._model(
                input_ids=ids_R[:, None],
                position_ids=positions_R[:, None],
                past_key_values=self._cache,
                use_cache=True,
                contexts=self._contexts,
            ).logits[:, -1]


class _BufferLayer(DynamicLayer):
    """One layer's keys and values [R, H, columns, D]: steps fill the buffer in place, nothing is concatenated."""

    def __init__(self, prefixes: Sequence[tuple[Tensor, Tensor]], group_size: int, room: int) -> None:
        """Keys and values [P, H, W, D] of contexts, each repeated `group_size` times, with `room` free columns."""
        super().__init__()
        self.lazy_initialization(*prefixes[0])
        self._filled = prefixes[0][0].shape[2]
        self._keys = _repeated([keys for keys, _ in prefixes], group_size, room)
        self._values = _repeated([values for _, values in prefixes], group_size, room)
        self._show()

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append columns [R, H, n, D]; returns all filled ones."""
        start, self._filled = self._filled, self._filled + key_states.shape[2]
        if self._filled > self._keys.shape[2]:
            more = max(_ROOM, self._filled // 2)
            self._keys, self._values = (
                torch.cat([old, old.new_empty(*old.shape[:2], more, old.shape[3])], dim=2)
                for old in (self._keys, self._values)
            )
        self._keys[:, :, start : self._filled] = key_states
        self._values[:, :, start : self._filled] = value_states
        return self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows."""
        self._keys, self._values = self._keys[indices], self._values[indices]
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        shown = self._keys[:, :, : self._filled], self._values[:, :, : self._filled]
        self.keys, self.values = shown
        return shown


def _repeated(parts: Sequence[Tensor], group_size: int, room: int) -> Tensor:
    """The rows of all parts [P, H, W, D], each `group_size` times, with `room` more columns: [R, H, W + room, D]."""
    _, heads, width, dimension = parts[0].shape
    buffer = parts[0].new_empty(sum(map(len, parts)), group_size, heads, width + room, dimension)
    start = 0
    for part in parts:
        buffer[start : start + len(part), :, :, :width] = part[:, None]
        start += len(part)
    return buffer.flatten(0, 1)
