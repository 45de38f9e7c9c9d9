"""Decoding on a GPU: a step is recorded once as a CUDA graph and then replayed, while the host only looks on.

A step of a small model is hundreds of kernels, each shorter than its launch. A graph launches them all at once, but it
is the same work on the same tensors every time: so a step knows no Python number that changes, writes what it makes
into tensors that stay where they are, and asks the host nothing. What does change, rows that end and keys and values
that grow, changes between segments, each of which has a graph of its own.

Shape names: P contexts, R rows, L rows in the batch, T tokens, B columns of a segment's keys and values, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from pipeline.grpo.decoding import NONE, Drawn, Layers, ReadToken, whole_layers
from pipeline.grpo.drawing import Drawing, fastest_draw
from pipeline.grpo.shared_attention import SharedContexts

SEGMENT = 64
"""Tokens that are decoded with the same rows and buffers."""
_LOOK = 8
"""Steps after which the host waits for the device, to see whether all responses have ended."""


def cuda_graph(step: Callable[[], None]) -> Callable[[], None]:
    """Record a step, which is not run by that. One that cannot be recorded is returned as it is, with a warning."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the device
            step()
    except RuntimeError as error:
        warnings.warn(f"decoding runs step by step, for it cannot be recorded as a CUDA graph: {error}", stacklevel=2)
        return step
    return graph.replay


class Recorded:
    """Decodes with its context's keys and values once a group, where `can_share`, by steps of fixed shape."""

    def __init__(self, read: ReadToken, layers: Layers, mask_PW: Tensor, group_size: int, room: int) -> None:
        """As `decoding.Shared`; buffers grow by segments, whatever the `room`."""
        self._read, self._draw = read, fastest_draw(mask_PW.device)
        whole = whole_layers(layers)
        self._contexts = SharedContexts(whole, mask_PW, group_size)
        rows = len(mask_PW) * group_size
        self._last = torch.full((1,), NONE, device=mask_PW.device)
        """The token drawn last: its number in the responses, and the column of its keys and values."""
        self._own = [FixedLayer(keys[:1, :, :0].expand(rows, -1, -1, -1), self._last) for keys, _ in whole]

    def decode(self, logits_RV: Tensor, positions_R: Tensor, drawing: Drawing) -> Drawn:
        """As `decoding.Shared.decode`."""
        device, rows, room = logits_RV.device, len(logits_RV), drawing.room
        self._noise_RT, self._temperature = torch.from_numpy(drawing.noise()).to(device), drawing.temperature
        self._eos = torch.tensor(sorted(drawing.eos_ids), device=device, dtype=torch.int64)
        self._ids_RT = torch.full((rows, room), NONE, device=device)
        self._logprobs_RT = torch.zeros(rows, room, device=device)
        self._row_L, self._position_L = torch.arange(rows, device=device), positions_R
        self._id_L, self._ended_L = torch.empty_like(positions_R), torch.zeros(rows, dtype=torch.bool, device=device)
        self._take(logits_RV)
        drawn = 1
        while drawn < room and not self._all_ended():
            steps = min(SEGMENT, room - drawn)
            self._begin_segment(drawn + steps - 1)
            self._step()  # the first also does what a graph must not: libraries start, kernels are chosen
            step = cuda_graph(self._step) if steps > 1 else self._step
            drawn += 1
            for _ in range(steps - 1):
                step()
                drawn += 1
                if drawn % _LOOK == 0 and self._all_ended():
                    break
        return self._ids_RT.cpu().numpy(), self._logprobs_RT.cpu().numpy()

    def _all_ended(self) -> bool:
        return bool(self._ended_L.all())

    def _begin_segment(self, columns: int) -> None:
        """Let rows that have ended go, and make room for so many keys and values."""
        kept = torch.arange(len(self._row_L), device=self._row_L.device)
        if self._ended_L.any():
            kept = torch.nonzero(~self._ended_L)[:, 0]
            self._contexts.select(kept)
            self._row_L, self._position_L, self._id_L = self._row_L[kept], self._position_L[kept], self._id_L[kept]
            self._ended_L = self._ended_L[kept]
        for layer in self._own:
            layer.fit(kept, columns)
        self._column_B = torch.arange(columns, device=kept.device)
        self._open_B = torch.zeros(columns, device=kept.device)

    def _step(self) -> None:
        """Read the tokens drawn last, draw the next."""
        open_B = self._open_B.masked_fill(self._column_B > self._last, -torch.inf)
        self._take(self._read(self._id_L, self._position_L + self._last, self._own, self._contexts, open_B))

    def _take(self, logits_LV: Tensor) -> None:
        """Draw every row's next token, and note it."""
        self._last += 1
        id_L, logprob_L = self._draw(logits_LV, self._temperature, self._noise_RT[self._row_L, self._last])
        self._id_L.copy_(id_L)
        self._ids_RT[self._row_L, self._last] = id_L
        self._logprobs_RT[self._row_L, self._last] = logprob_L
        self._ended_L |= (id_L[:, None] == self._eos).any(dim=1)


class FixedLayer(DynamicLayer):
    """One layer's keys and values [L, H, B, D] of responses: a step fills the column that a tensor names."""

    def __init__(self, empty: Tensor, column: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(empty, empty)
        self.keys: Tensor = empty
        self.values: Tensor = empty
        self.column = column

    def fit(self, rows: Tensor, columns: int) -> None:
        """Keep these rows, in buffers of so many columns. Those not yet filled are 0: a weight of 0 leaves nothing."""
        self.keys, self.values = (
            torch.cat([old[rows], old.new_zeros(len(rows), old.shape[1], columns - old.shape[2], old.shape[3])], dim=2)
            for old in (self.keys, self.values)
        )

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write one column [L, H, 1, D]; returns all, filled or not."""
        self.keys.index_copy_(2, self.column, key_states)
        self.values.index_copy_(2, self.column, value_states)
        return self.keys, self.values
