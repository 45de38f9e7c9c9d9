"""What a decoding step does between its matrix products, on NVIDIA GPUs: few kernels, for such a step is short of them.

Attention is split as in `shared_attention`: a context's keys and values are read once for all rows that share it, and
what they give is joined with what a row sees of its own tokens. Contexts are cut into splits, so that programs fill a
GPU however few contexts there are. Nothing is asked of the host: a CUDA graph can record all of it.

They give what plain PyTorch gives in Triton's interpreter, and compile for GPUs from Ampere on (tests, without a GPU).
How fast they are has not been measured.

Shape names: P contexts, R rows, K key-value heads, N query heads of each, H = K·N, S splits, W width of the left-padded
contexts, B columns of the rows' own keys and values, D head dimension, F intermediate size. In kernels: M queries of
a program, C columns of a step.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

_PROGRAMS = 3 * 132
"""Programs that a context's part is cut into, if it is wide enough: three for every multiprocessor of an H200."""

_SPLIT = 128
"""Columns that a split has at least."""

_QUERIES = 64
"""Queries of a context that one program holds at most, in fp32 half as many."""

_SWIGLU = 1024
"""Elements of a row that one program of `swiglu` makes."""


def rotate_and_store(
    query_RHD: Tensor,
    key_RKD: Tensor,
    value_RKD: Tensor,
    cos_RD: Tensor,
    sin_RD: Tensor,
    keys_RKBD: Tensor,
    values_RKBD: Tensor,
    column_1: Tensor,
) -> Tensor:
    """Rotary embedding of queries and keys; the key and the value go into column `column_1` of the row's own.

    As transformers' `apply_rotary_pos_emb` of Llama's family, in fp32. Of all but `column_1` the last dimension is
    contiguous.

    Returns:
        the rotated queries [R, H, D]
    """
    R, H, D = query_RHD.shape
    K = key_RKD.shape[1]
    out_RHD = query_RHD.new_empty(R, H, D)
    _rotate_and_store[(R, K)](
        query_RHD, key_RKD, value_RKD, cos_RD, sin_RD, keys_RKBD, values_RKBD, column_1, out_RHD,
        *query_RHD.stride()[:2], *key_RKD.stride()[:2], *value_RKD.stride()[:2], cos_RD.stride(0), sin_RD.stride(0),
        *keys_RKBD.stride()[:3], *values_RKBD.stride()[:3], **rotate_sizes(H, K, D),
    )  # fmt: skip
    return out_RHD


def attend(
    query_RHD: Tensor,
    context_keys_PKWD: Tensor,
    context_values_PKWD: Tensor,
    first_P: Tensor,
    bounds_P1: Tensor,
    most_rows: int,
    own_keys_RKBD: Tensor,
    own_values_RKBD: Tensor,
    column_1: Tensor,
    scaling: float,
) -> Tensor:
    """What every row's one token sees of its context, from column `first_P`, and of its own up to column `column_1`.

    Args:
        bounds_P1: the rows of context p are bounds_P1[p] … bounds_P1[p + 1] − 1.
        most_rows: no context has more rows.
        scaling: factor of the scores.

    Returns:
        [R, H·D]
    """
    R, H, D = query_RHD.shape
    P, K, W, _ = context_keys_PKWD.shape
    context = context_sizes(H, K, D, most_rows, query_RHD.dtype)
    tiles = -(-most_rows * H // K // context["M"])
    width, S = _splits(P * K * tiles, W, context["C"])
    part_SRHD = query_RHD.new_empty(S, R, H, D, dtype=torch.float32)
    log_SRH = query_RHD.new_empty(S, R, H, dtype=torch.float32)
    _attend_context[(P * K, S, tiles)](
        query_RHD, context_keys_PKWD, context_values_PKWD, first_P, bounds_P1, part_SRHD, log_SRH,
        *query_RHD.stride()[:2], *context_keys_PKWD.stride()[:3], *context_values_PKWD.stride()[:3],
        R, W, width, scaling * math.log2(math.e), **context,
    )  # fmt: skip
    out_RF = query_RHD.new_empty(R, H * D)
    _attend_own[(R, K)](
        query_RHD, own_keys_RKBD, own_values_RKBD, column_1, part_SRHD, log_SRH, out_RF,
        *query_RHD.stride()[:2], *own_keys_RKBD.stride()[:3], *own_values_RKBD.stride()[:3],
        R, S, scaling * math.log2(math.e), **own_sizes(H, K, D, query_RHD.dtype),
    )  # fmt: skip
    return out_RF


def swiglu(gate_up_R2F: Tensor) -> Tensor:
    """silu(first half) · second half, in fp32.

    Returns:
        [R, F]
    """
    R, F = len(gate_up_R2F), gate_up_R2F.shape[1] // 2
    out_RF = gate_up_R2F.new_empty(R, F)
    _swiglu[(R, triton.cdiv(F, _SWIGLU))](gate_up_R2F, out_RF, gate_up_R2F.stride(0), F, **swiglu_sizes())
    return out_RF


def _splits(programs: int, W: int, step: int) -> tuple[int, int]:
    """Columns of a split, in whole steps, and the number of splits."""
    wanted = min(-(-_PROGRAMS // programs), max(1, W // _SPLIT))
    width = -(-W // (wanted * step)) * step
    return width, -(-W // width)


def rotate_sizes(H: int, K: int, D: int) -> dict[str, int]:
    """What `_rotate_and_store` is compiled with."""
    N = H // K
    return {"N": N, "D": D, "M": triton.next_power_of_2(N), "HALF": triton.next_power_of_2(D // 2), "num_warps": 2}


def context_sizes(H: int, K: int, D: int, most_rows: int, dtype: torch.dtype) -> dict[str, int]:
    """What `_attend_context` is compiled with; at the shapes of tests/gpu/compile_kernels.py nothing is spilled."""
    N, DIMS = H // K, max(16, triton.next_power_of_2(D))
    M = max(16, triton.next_power_of_2(most_rows * N))
    if dtype == torch.float32:  # multiplied without tensor cores
        tile = {"M": min(M, _QUERIES // 2), "C": 32, "num_warps": 8, "num_stages": 2}
    else:
        tile = {"M": min(M, _QUERIES), "C": 64 if DIMS <= 64 else 32, "num_warps": 4, "num_stages": 3}
    return {"K": K, "N": N, "D": D, "DIMS": DIMS} | tile


def own_sizes(H: int, K: int, D: int, dtype: torch.dtype) -> dict[str, int]:
    """What `_attend_own` is compiled with, likewise."""
    N, DIMS = H // K, max(16, triton.next_power_of_2(D))
    tile = {"C": 32, "num_warps": 8} if dtype == torch.float32 else {"C": 64, "num_warps": 4}
    return {"N": N, "D": D, "DIMS": DIMS, "M": max(16, triton.next_power_of_2(N)), "num_stages": 2} | tile


def swiglu_sizes() -> dict[str, int]:
    """What `_swiglu` is compiled with."""
    return {"BLOCK": _SWIGLU, "num_warps": 4}


@triton.jit
def _rotate_and_store(  # type: ignore[no-untyped-def]
    query, key, value, cos, sin, keys, values, column_1, out,
    query_r, query_h, key_r, key_k, value_r, value_k, cos_r, sin_r,
    keys_r, keys_k, keys_b, values_r, values_k, values_b,
    N: tl.constexpr, D: tl.constexpr, M: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """One program a row and key-value head."""
    r = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1)
    half: tl.constexpr = D // 2
    dims = tl.arange(0, HALF)
    there = dims < half
    cos_low = tl.load(cos + r * cos_r + dims, mask=there).to(tl.float32)
    cos_high = tl.load(cos + r * cos_r + half + dims, mask=there).to(tl.float32)
    sin_low = tl.load(sin + r * sin_r + dims, mask=there).to(tl.float32)
    sin_high = tl.load(sin + r * sin_r + half + dims, mask=there).to(tl.float32)

    heads = tl.arange(0, M)
    mask = (heads < N)[:, None] & there[None, :]
    at = query + r * query_r + (k * N + heads)[:, None] * query_h + dims[None, :]
    low = tl.load(at, mask=mask).to(tl.float32)
    high = tl.load(at + half, mask=mask).to(tl.float32)
    to = out + ((r * tl.num_programs(1) + k) * N + heads)[:, None] * D + dims[None, :]
    tl.store(to, low * cos_low[None, :] - high * sin_low[None, :], mask=mask)
    tl.store(to + half, high * cos_high[None, :] + low * sin_high[None, :], mask=mask)

    column = tl.load(column_1)
    at_key = key + r * key_r + k * key_k + dims
    low_key = tl.load(at_key, mask=there).to(tl.float32)
    high_key = tl.load(at_key + half, mask=there).to(tl.float32)
    to_key = keys + r * keys_r + k * keys_k + column * keys_b + dims
    tl.store(to_key, low_key * cos_low - high_key * sin_low, mask=there)
    tl.store(to_key + half, high_key * cos_high + low_key * sin_high, mask=there)
    at_value = value + r * value_r + k * value_k + dims
    to_value = values + r * values_r + k * values_k + column * values_b + dims
    tl.store(to_value, tl.load(at_value, mask=there), mask=there)
    tl.store(to_value + half, tl.load(at_value + half, mask=there), mask=there)


@triton.jit(do_not_specialize=["R", "W", "width"])
def _attend_context(  # type: ignore[no-untyped-def]
    query, keys, values, first_P, bounds_P1, part_SRHD, log_SRH,
    query_r, query_h, keys_p, keys_k, keys_w, values_p, values_k, values_w, R, W, width, factor,
    K: tl.constexpr, N: tl.constexpr, D: tl.constexpr, DIMS: tl.constexpr, M: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """One program a context and key-value head, split and M of its queries: o and log₂ Σ 2^s over these columns.

    Where none of them is real the logarithm is −∞, and o is not written.
    """
    p = (tl.program_id(0) // K).to(tl.int64)
    k = tl.program_id(0) % K
    s = tl.program_id(1)
    first_query = tl.program_id(2) * M
    begin = tl.load(bounds_P1 + p)
    end = tl.load(bounds_P1 + p + 1)
    if begin + first_query // N >= end:
        return
    queries = first_query + tl.arange(0, M)
    row = begin + queries // N
    head = k * N + queries % N
    there = row < end
    to = (s * R + row).to(tl.int64) * (K * N) + head
    low = tl.maximum(tl.load(first_P + p).to(tl.int32), s * width)
    high = tl.minimum(W, (s + 1) * width)
    if low >= high:
        tl.store(log_SRH + to, tl.full((M,), -float("inf"), tl.float32), mask=there)
        return
    dims = tl.arange(0, DIMS)
    mask_MD = there[:, None] & (dims < D)[None, :]
    at = query + row.to(tl.int64)[:, None] * query_r + head[:, None] * query_h + dims[None, :]
    query_MD = tl.load(at, mask=mask_MD, other=0.0)
    largest_M, total_M, out_MD = _read(
        query_MD, keys + p * keys_p + k * keys_k, values + p * values_p + k * values_k, keys_w, values_w,
        low, high, factor, D, C,
    )  # fmt: skip
    tl.store(log_SRH + to, largest_M + tl.log2(total_M), mask=there)
    tl.store(part_SRHD + to[:, None] * D + dims[None, :], out_MD / total_M[:, None], mask=mask_MD)


@triton.jit(do_not_specialize=["R", "S"])
def _attend_own(  # type: ignore[no-untyped-def]
    query, keys, values, column_1, part_SRHD, log_SRH, out_RF,
    query_r, query_h, keys_r, keys_k, keys_b, values_r, values_k, values_b, R, S, factor,
    N: tl.constexpr, D: tl.constexpr, DIMS: tl.constexpr, M: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """One program a row and key-value head: its own columns, joined with what the splits of its context gave."""
    r = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1)
    heads = tl.arange(0, M)
    dims = tl.arange(0, DIMS)
    there_M = heads < N
    mask_MD = there_M[:, None] & (dims < D)[None, :]
    at = query + r * query_r + (k * N + heads)[:, None] * query_h + dims[None, :]
    query_MD = tl.load(at, mask=mask_MD, other=0.0)
    columns = tl.load(column_1).to(tl.int32) + 1
    largest_M, total_M, out_MD = _read(
        query_MD, keys + r * keys_r + k * keys_k, values + r * values_r + k * values_k, keys_b, values_b,
        0, columns, factor, D, C,
    )  # fmt: skip
    H = tl.num_programs(1) * N
    for s in tl.range(0, S, loop_unroll_factor=4):
        of = (s * R + r) * H + k * N + heads
        log_M = tl.load(log_SRH + of, mask=there_M, other=-float("inf"))
        part_MD = tl.load(
            part_SRHD + of[:, None] * D + dims[None, :], mask=mask_MD & (log_M > -float("inf"))[:, None], other=0.0
        )
        larger_M = tl.maximum(largest_M, log_M)
        rescale_M, weight_M = tl.exp2(largest_M - larger_M), tl.exp2(log_M - larger_M)
        total_M = total_M * rescale_M + weight_M
        out_MD = out_MD * rescale_M[:, None] + part_MD * weight_M[:, None]
        largest_M = larger_M
    to = out_RF + (r * H + k * N + heads)[:, None] * D + dims[None, :]
    tl.store(to, out_MD / total_M[:, None], mask=mask_MD)


@triton.jit
def _read(  # type: ignore[no-untyped-def]
    query_MD, keys, values, keys_c, values_c, low, high, factor, D: tl.constexpr, C: tl.constexpr
):
    """Attention to columns low … high − 1: the largest score, Σ 2^(s − largest) and what is to be divided by it.

    Scores are in base 2. Nothing is read from other columns, and every step has one that is real.
    """
    largest_M = tl.full((query_MD.shape[0],), -float("inf"), tl.float32)
    total_M = tl.zeros((query_MD.shape[0],), tl.float32)
    out_MD = tl.zeros(query_MD.shape, tl.float32)
    dims = tl.arange(0, query_MD.shape[1])
    for start in range(low, high, C):
        columns = start + tl.arange(0, C)
        real = columns < high
        mask = real[:, None] & (dims < D)[None, :]
        keys_CD = tl.load(keys + columns[:, None] * keys_c + dims[None, :], mask=mask, other=0.0)
        scores_MC = tl.dot(query_MD, tl.trans(keys_CD), input_precision="ieee") * factor
        scores_MC = tl.where(real[None, :], scores_MC, -float("inf"))
        larger_M = tl.maximum(largest_M, tl.max(scores_MC, axis=1))
        rescale_M = tl.exp2(largest_M - larger_M)
        weights_MC = tl.exp2(scores_MC - larger_M[:, None])
        total_M = total_M * rescale_M + tl.sum(weights_MC, axis=1)
        values_CD = tl.load(values + columns[:, None] * values_c + dims[None, :], mask=mask, other=0.0)
        out_MD = tl.dot(weights_MC.to(values_CD.dtype), values_CD, out_MD * rescale_M[:, None], input_precision="ieee")
        largest_M = larger_M
    return largest_M, total_M, out_MD


@triton.jit
def _swiglu(gate_up, out, gate_up_r, F, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program a row and BLOCK elements of it."""
    r = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_up + r * gate_up_r + f, mask=f < F).to(tl.float32)
    up = tl.load(gate_up + r * gate_up_r + F + f, mask=f < F).to(tl.float32)
    tl.store(out + r * F + f, gate * tl.sigmoid(gate) * up, mask=f < F)
