"""Token-by-token decoding of responses; finished rows leave the batch; contexts are stored once per group or per row.

Shape names: P contexts, G responses of each, R = P·G rows, L rows still in the batch, T tokens, W width of the
left-padded contexts, H key-value heads, D their dimension, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from pipeline.grpo.model.prefix_attention import PrefixCache, sharing
from pipeline.grpo.rollout.token_sampling import SamplingParams, sample_token

NONE = -1
"""Marker for no token, after the end of a response."""

ReadToken = Callable[[Tensor, Tensor, Sequence[DynamicLayer], PrefixCache], Tensor]
"""Signature of a decoding step.

ids [R] and positions [R] of one more token per row, the responses' keys and values by layer (the token's are appended),
their contexts → logits [R, V].
"""

Keyed = list[tuple[Tensor, Tensor]]
"""Keys and values [P, H, W, D] of contexts, by layer."""

Layers = Sequence[Keyed]
"""Keys and values of consecutive parts of the contexts."""

ReadContexts = Callable[[Sequence[Sequence[int]], int, Keyed | None], Tensor]
"""Signature of reading contexts.

Ids of P contexts, the width W to which kept keys and values are padded on the left, and a list to append these to, or
None → logits [P, V] after the contexts.
"""

Drawn = tuple[NDArray[np.int64], NDArray[np.float32]]
"""ids [R, T], and the log-probability of each. After a response's end there is `NONE` or meaningless tokens."""

_GROWTH = 64
"""Least number of columns by which a full buffer of keys and values grows."""


class _Stepwise(ABC):
    """Rows that are decoded one step at a time."""

    @abstractmethod
    def select(self, rows: Tensor) -> None:
        """Keep only these rows."""

    @abstractmethod
    def step(self, ids_R: Tensor, positions_R: Tensor) -> Tensor:
        """Return the logits [R, V] after one more token per row."""

    def decode(self, logits_RV: Tensor, positions_R: Tensor, params: SamplingParams) -> Drawn:
        """Decode responses, given the logits after their contexts and the positions of their first tokens."""
        device, rows = logits_RV.device, len(logits_RV)
        ids_RT = np.full((rows, params.max_new_tokens), NONE)
        logprobs_RT = np.zeros((rows, params.max_new_tokens), dtype=np.float32)
        finished_R, eos = np.zeros(rows, dtype=bool), np.array(sorted(params.eos_ids))
        # Rows still in the batch. Finished ones leave a quarter at a time, because removing rows copies the cache.
        live = np.arange(rows)
        noise_RT = params.noise()
        for t in range(params.max_new_tokens):
            noise_L = torch.from_numpy(noise_RT[live, t]).to(device)
            ids_L, logprobs_L = sample_token(logits_RV, params.temperature, noise_L)
            ids, going = ids_L.cpu().numpy(), ~finished_R[live]
            writing = live[going]
            ids_RT[writing, t], logprobs_RT[writing, t] = ids[going], logprobs_L.cpu().numpy()[going]
            finished_R[writing] = np.isin(ids[going], eos)
            going = ~finished_R[live]
            if t + 1 == params.max_new_tokens or not going.any():
                break
            if going.sum() <= 0.75 * len(live):
                keep = torch.from_numpy(np.flatnonzero(going)).to(device)
                self.select(keep)
                ids_L, positions_R, live = ids_L[keep], positions_R[keep], live[going]
            logits_RV = self.step(ids_L, positions_R + t)
        return ids_RT, logprobs_RT


class Repeated(_Stepwise):
    """Decodes with a copy of the context's keys and values for every row, which works with any attention."""

    def __init__(
        self, model: PreTrainedModel, layers: Layers, mask_PW: Tensor, group_size: int, max_new_tokens: int
    ) -> None:
        """`mask_PW` is True for the real tokens of the contexts; `max_new_tokens` is a response's maximum length."""
        buffers: list[Any] = [
            _BufferLayer(parts, group_size, min(max_new_tokens, _GROWTH)) for parts in zip(*layers, strict=True)
        ]
        self._model, self._cache, self._columns = model, Cache(layers=buffers), mask_PW.shape[1]
        mask_RW = mask_PW.repeat_interleave(group_size, dim=0)
        self._mask_RC = torch.cat([mask_RW, mask_RW.new_ones(len(mask_RW), max_new_tokens)], dim=1)

    def select(self, rows: Tensor) -> None:
        """Keep only these rows."""
        self._cache.batch_select_indices(rows)
        self._mask_RC = self._mask_RC[rows]

    def step(self, ids_R: Tensor, positions_R: Tensor) -> Tensor:
        """Return the logits [R, V] after one more token per row."""
        self._columns += 1
        return self._model(
            input_ids=ids_R[:, None],
            attention_mask=self._mask_RC[:, : self._columns],
            position_ids=positions_R[:, None],
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]


class Shared(_Stepwise):
    """Decodes with the context's keys and values stored once per group, for models that `can_share`."""

    def __init__(self, read: ReadToken, layers: Layers, mask_PW: Tensor, group_size: int, max_new_tokens: int) -> None:
        """`read` runs a decoding step; the other arguments are those of `Repeated`."""
        whole = _whole_layers(layers)
        empty = [(keys[:, :, :0], values[:, :, :0]) for keys, values in whole]
        self._own = [_BufferLayer([part], group_size, min(max_new_tokens, _GROWTH)) for part in empty]
        self._read, self._contexts = read, PrefixCache(whole, mask_PW, group_size)

    def select(self, rows: Tensor) -> None:
        """Keep only these rows."""
        self._contexts.select(rows)
        for layer in self._own:
            layer.batch_select_indices(rows)

    def step(self, ids_R: Tensor, positions_R: Tensor) -> Tensor:
        """Return the logits [R, V] after one more token per row."""
        return self._read(ids_R, positions_R, self._own, self._contexts)


def contexts_by_modules(
    model: PreTrainedModel, contexts: Sequence[Sequence[int]], width: int, kept: Keyed | None
) -> Tensor:
    """Read contexts with any model's own modules; with the model bound it is a `ReadContexts`."""
    ids_PW, mask_PW = pad_left(contexts, width, model.device)
    layers: list[Any] = [DynamicLayer() for _ in range(model.config.num_hidden_layers)]
    output = model(
        input_ids=ids_PW,
        attention_mask=mask_PW,
        position_ids=(mask_PW.cumsum(dim=1) - 1).clamp_(min=0),
        past_key_values=None if kept is None else Cache(layers=layers),
        use_cache=kept is not None,
        logits_to_keep=1,
    )
    if kept is not None:
        kept.extend((layer.keys, layer.values) for layer in layers)
    return output.logits[:, -1]


def pad_left(rows: Sequence[Sequence[int]], width: int, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask [P, W] of rows padded on the left. The mask, not the padding's id, marks the real tokens.

    Example:
        >>> pad_left([[5], [6, 7]], 2, "cpu")[1].tolist()
        [[False, True], [True, True]]
    """
    ids, mask = np.zeros((len(rows), width), dtype=np.int64), np.zeros((len(rows), width), dtype=bool)
    for ids_W, mask_W, row in zip(ids, mask, rows, strict=True):
        ids_W[width - len(row) :], mask_W[width - len(row) :] = row, True
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def token_by_modules(
    model: PreTrainedModel,
    ids_R: Tensor,
    positions_R: Tensor,
    own: Sequence[DynamicLayer],
    contexts: PrefixCache,
) -> Tensor:
    """Run a decoding step with the modules of a model that `can_share`; with the model bound it is a `ReadToken`."""
    with sharing(model):
        return model(
            input_ids=ids_R[:, None],
            position_ids=positions_R[:, None],
            past_key_values=Cache(layers=list[Any](own)),
            use_cache=True,
            contexts=contexts,
        ).logits[:, -1]


def _whole_layers(layers: Layers) -> Keyed:
    """Return the keys and values [P, H, W, D] of all contexts, by layer."""
    return [
        (torch.cat([keys for keys, _ in parts]), torch.cat([values for _, values in parts]))
        for parts in zip(*layers, strict=True)
    ]


class _BufferLayer(DynamicLayer):
    """One layer's keys and values [R, H, columns, D] in a buffer that steps fill in place, without concatenation."""

    def __init__(self, prefixes: Sequence[tuple[Tensor, Tensor]], group_size: int, spare: int) -> None:
        """`prefixes` are keys and values [P, H, W, D], repeated `group_size` times and given `spare` free columns."""
        super().__init__()
        self.lazy_initialization(*prefixes[0])
        self._filled = prefixes[0][0].shape[2]
        self._keys = _repeated([keys for keys, _ in prefixes], group_size, spare)
        self._values = _repeated([values for _, values in prefixes], group_size, spare)
        self._show()

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append columns [R, H, n, D] and return all filled ones."""
        start, self._filled = self._filled, self._filled + key_states.shape[2]
        if self._filled > self._keys.shape[2]:
            more = max(_GROWTH, self._filled // 2)
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


def _repeated(parts: Sequence[Tensor], group_size: int, spare: int) -> Tensor:
    """Return the rows of all parts [P, H, W, D], each `group_size` times, as a buffer [R, H, W + spare, D]."""
    _, heads, width, dimension = parts[0].shape
    buffer = parts[0].new_empty(sum(map(len, parts)), group_size, heads, width + spare, dimension)
    start = 0
    for part in parts:
        buffer[start : start + len(part), :, :, :width] = part[:, None]
        start += len(part)
    return buffer.flatten(0, 1)
