"""The kernels of a decoding step against plain PyTorch: on a GPU if there is one, else in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
decode = pytest.importorskip(
    "pipeline.grpo.decode_triton", reason="triton is not installed: the kernels for GPUs are not tested"
)
CLOSE = {
    torch.float32: {"atol": 1e-5, "rtol": 1e-5},
    torch.bfloat16: {"atol": 1e-2, "rtol": 2**-7},  # the interpreter cuts digits off, where a GPU rounds
}


@pytest.fixture(autouse=True, scope="module")
def products_of_bfloat16() -> Iterator[None]:
    """The interpreter has numbers in bf16 as their bits, and multiplies these; here they are made fp32 before."""
    from triton import language as tl
    from triton.runtime import interpreter

    plain = interpreter.InterpreterBuilder.create_dot

    def create_dot(builder: Any, a: Any, b: Any, *rest: Any) -> Any:
        wide = [builder.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b)]
        return plain(builder, *wide, *rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
        yield


def split_heads(rows: int, heads: int, kv_heads: int, dimension: int, dtype: torch.dtype) -> list[Tensor]:
    """Query, key and value [R, heads, D]: views of one product."""
    product = torch.randn(rows, (heads + 2 * kv_heads) * dimension).to(DEVICE, dtype)
    return list(product.unflatten(1, (-1, dimension)).split([heads, kv_heads, kv_heads], dim=1))


def plain_attention(query_HD: Tensor, keys_KTD: Tensor, values_KTD: Tensor, scaling: float) -> Tensor:
    """One row's, in fp64."""
    N = len(query_HD) // len(keys_KTD)
    keys, values = keys_KTD.double().repeat_interleave(N, 0), values_KTD.double().repeat_interleave(N, 0)
    weights_HT = (torch.einsum("hd,htd->ht", query_HD.double(), keys) * scaling).softmax(dim=-1)
    return torch.einsum("ht,htd->hd", weights_HT, values).flatten()


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    heads=st.sampled_from([(1, 1), (2, 1), (2, 2), (1, 6), (2, 7)]),
    dimension=st.sampled_from([16, 24, 64]),
    rows=st.lists(st.integers(0, 12), min_size=1, max_size=3).filter(any),
    spare_rows=st.integers(0, 3),
    width=st.sampled_from([1, 5, 64, 65, 127, 260, 400]),
    full=st.booleans(),
    column=st.sampled_from([0, 1, 4, 63, 64, 70]),
    spare_columns=st.integers(0, 3),
    sharp=st.sampled_from([0.3, 3.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_attention(
    seed: int, heads: tuple[int, int], dimension: int, rows: list[int], spare_rows: int, width: int, full: bool,
    column: int, spare_columns: int, sharp: float, dtype: torch.dtype,
) -> None:  # fmt: skip
    """As over the columns that are real, one after the other; the others hold what must not get in."""
    torch.manual_seed(seed)
    K, N = heads
    P, R, scaling = len(rows), sum(rows), sharp * dimension**-0.5
    query_RHD = split_heads(R, K * N, K, dimension, dtype)[0]
    context = torch.randn(2, P, K, width, dimension).to(DEVICE, dtype)
    own = torch.randn(2, R, K, column + 1 + spare_columns, dimension).to(DEVICE, dtype)
    first_P = torch.zeros(P, dtype=torch.int64) if full else torch.randint(width + 1, (P,))
    for p in range(P):
        context[:, p, :, : first_P[p]] = torch.nan
    own[..., column + 1 :, :] = torch.nan
    bounds_P1 = torch.tensor([0, *rows], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    found = decode.attend(
        query_RHD, *context, first_P.to(DEVICE), bounds_P1.to(DEVICE), max(rows) + spare_rows, *own,
        torch.tensor([column], device=DEVICE), scaling,
    )  # fmt: skip
    assert found.dtype == dtype
    context_R = torch.arange(P).repeat_interleave(torch.tensor(rows))
    for r, p in enumerate(context_R.tolist()):
        keys, values = torch.cat([context[:, p, :, first_P[p] :], own[:, r, :, : column + 1]], dim=2)
        expected = plain_attention(query_RHD[r], keys, values, scaling)
        torch.testing.assert_close(found[r].double(), expected, **CLOSE[dtype])


@given(st.integers(1, 3000), st.integers(1, 10**4), st.sampled_from([16, 32, 64]))
def test_splits_cover_the_width(programs: int, width: int, step: int) -> None:
    columns, splits = decode._splits(programs, width, step)
    assert (splits - 1) * columns < width <= splits * columns
    assert columns >= min(width, decode._SPLIT)
    assert columns % step == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kv_heads", "queries"), [(1, 1), (2, 2), (2, 7)])
@pytest.mark.parametrize("dimension", [16, 24, 64])
def test_rotary_embedding(dimension: int, kv_heads: int, queries: int, dtype: torch.dtype) -> None:
    """As transformers' in fp32; only the column of this token is written."""
    torch.manual_seed(0)
    query, key, value = split_heads(3, kv_heads * queries, kv_heads, dimension, dtype)
    angles_RD = 9 * torch.rand(3, dimension // 2, device=DEVICE).repeat(1, 2)
    cos_RD, sin_RD = angles_RD.cos().to(dtype), angles_RD.sin().to(dtype)
    buffers = torch.full((2, 3, kv_heads, 5, dimension), torch.nan, device=DEVICE, dtype=dtype)
    found = decode.rotate_and_store(query, key, value, cos_RD, sin_RD, *buffers, torch.tensor([3], device=DEVICE))
    expected, expected_key = apply_rotary_pos_emb(query.float(), key.float(), cos_RD.float(), sin_RD.float())
    assert found.is_contiguous() and found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, **CLOSE[dtype])
    torch.testing.assert_close(buffers[0, :, :, 3].float(), expected_key, **CLOSE[dtype])
    assert torch.equal(buffers[1, :, :, 3], value)
    assert buffers[..., [0, 1, 2, 4], :].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 48, 2500])
def test_swiglu(size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate_up = (3 * torch.randn(3, 2 * size + 5)).to(DEVICE, dtype)[:, : 2 * size]
    gate, up = gate_up.float().chunk(2, dim=1)
    found = decode.swiglu(gate_up)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), F.silu(gate) * up, **CLOSE[dtype])


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU, which records")
def test_a_recorded_step_follows_its_column() -> None:
    """Recorded with one column and replayed with the next, without the host."""
    torch.manual_seed(0)
    query, key, value = split_heads(6, 4, 2, 64, torch.bfloat16)
    context, own = torch.randn(2, 2, 2, 300, 64).to(query), torch.zeros(2, 6, 2, 9, 64).to(query)
    first, bounds = torch.tensor([7, 0], device=DEVICE), torch.tensor([0, 2, 6], device=DEVICE, dtype=torch.int32)
    turn, column = torch.ones(6, 64).to(query), torch.tensor([0], device=DEVICE)

    def step() -> Tensor:
        rotated = decode.rotate_and_store(query, key, value, turn, 0 * turn, *own, column)
        out: Tensor = decode.swiglu(decode.attend(rotated, *context, first, bounds, 4, *own, column, 0.1))
        return out

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = step()
    for next_column in (1, 2):
        column.fill_(next_column)
        graph.replay()
        torch.testing.assert_close(recorded, step(), rtol=0, atol=0)
    assert own[0, :, :, 3:].count_nonzero() == 0
    assert torch.equal(own[1, :, :, 2], value)
