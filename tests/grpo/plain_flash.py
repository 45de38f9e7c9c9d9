"""PyTorch's variable-length flash attention in plain operations, so that what calls it can be computed on a CPU.

It has the calls, the layouts and the demands of the CUDA kernels (aten/src/ATen/native/transformers/cuda/flash_attn),
those included that they do not check themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def plain_flash() -> Iterator[None]:
    """Within, `torch.ops.aten._flash_attention_forward` and its backward take tensors of a CPU, in fp32 too."""
    library = torch.library.Library("aten", "IMPL")
    try:
        library.impl("_flash_attention_forward", forward, "CPU")
        library.impl("_flash_attention_backward", backward, "CPU")
        yield
    finally:
        library._destroy()


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float,
) -> tuple[Tensor, ...]:
    _demand(query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p)
    assert not return_debug_mask
    out, total_HN = torch.zeros_like(query), torch.full((query.shape[1], len(query)), torch.inf)
    for asking, asked in _runs(cum_seq_q, cum_seq_k):
        if asking.stop > asking.start and asked.stop > asked.start:
            scores_HTS = _scores(query[asking], key[asked], scale, is_causal)
            total_HN[:, asking] = scores_HTS.logsumexp(dim=-1)
            repeated = value[asked].repeat_interleave(query.shape[1] // value.shape[1], dim=1)
            out[asking] = torch.einsum("hts,shd->thd", scores_HTS.softmax(dim=-1), repeated.float()).to(out)
    nothing = query.new_empty(0)
    return out, total_HN, nothing, nothing.clone(), nothing.clone()


def backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    rng_state: Tensor,
    unused: Tensor,
    *,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    _demand(query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p)
    assert grad_out.shape == out.shape == query.shape
    assert logsumexp.shape == (query.shape[1], len(query))
    assert logsumexp.dtype == torch.float32
    assert logsumexp.is_contiguous(), "its rows are found by the number of queries, whatever its strides"
    queries = query.shape[1] // key.shape[1]
    grads = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    delta_HN = (grad_out * out).float().sum(dim=-1).t()
    for asking, asked in _runs(cum_seq_q, cum_seq_k):
        keys, values = (x[asked].repeat_interleave(queries, dim=1).float() for x in (key, value))
        weights_HTS = (_scores(query[asking], key[asked], scale, is_causal) - logsumexp[:, asking, None]).exp()
        gained_HTS = torch.einsum("thd,shd->hts", grad_out[asking].float(), values)
        scores_HTS = weights_HTS * (gained_HTS - delta_HN[:, asking, None]) * scale
        grads[0][asking] = torch.einsum("hts,shd->thd", scores_HTS, keys).to(query)
        for grad, weight, of in ((grads[1], scores_HTS, query), (grads[2], weights_HTS, grad_out)):
            whole = torch.einsum("hts,thd->shd", weight, of[asking].float())
            grad[asked] = whole.unflatten(1, (-1, queries)).sum(dim=2).to(grad)
    return grads


def _scores(query: Tensor, key: Tensor, scale: float, causal: bool) -> Tensor:
    keys = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores_HTS = torch.einsum("thd,shd->hts", query.float(), keys.float()) * scale
    if causal:
        assert len(query) == len(key)
        scores_HTS = scores_HTS.masked_fill(torch.ones(scores_HTS.shape[1:]).triu(1).bool(), -torch.inf)
    return scores_HTS


def _runs(cum_seq_q: Tensor, cum_seq_k: Tensor) -> Iterator[tuple[slice, slice]]:
    q, k = cum_seq_q.tolist(), cum_seq_k.tolist()
    for i in range(len(q) - 1):
        yield slice(q[i], q[i + 1]), slice(k[i], k[i + 1])


def _demand(query: Tensor, key: Tensor, value: Tensor, *settings: Any) -> None:
    """What the kernels check, and what they count on."""
    cum_seq_q, cum_seq_k, max_q, max_k, dropout_p = settings
    for states in (query, key, value):
        assert states.ndim == 3
        assert states.stride(-1) == 1
        assert states.shape[2] == query.shape[2]
        assert states.shape[2] % 8 == 0
        assert states.shape[2] <= 256
    assert key.shape == value.shape
    assert query.shape[1] % key.shape[1] == 0
    assert len(cum_seq_q) == len(cum_seq_k) > 1
    for bounds, longest, states in ((cum_seq_q, max_q, query), (cum_seq_k, max_k, key)):
        assert bounds.dtype == torch.int32
        assert bounds.is_contiguous()
        lengths = bounds.diff()
        assert bounds[0] == 0
        assert bounds[-1] == len(states) > 0
        assert lengths.min() >= 0
        assert lengths.max() <= longest
    assert max_q > 1, "of one query each, heads that share keys are laid out as queries"
    assert dropout_p == 0
