"""The output head: how a model makes logits of its body's hidden states, and whether tiles of them can be made alone.

Shape names: B rows, T tokens, C positions of a chunk, H hidden size, V rows of the output matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pipeline.scoring.entropy import WriteLogits

Finish = Callable[[Tensor], Tensor]
"""What an architecture does to the product with its output matrix, in place and for each logit alone."""


def tiled_head(model: Any, hidden: Callable[[Tensor], Tensor], probe_BT: Tensor) -> WriteLogits | None:
    """How the model makes logits, for tiles of the vocabulary; None if it is not a known function of `hidden`.

    The output matrix is asked once, on a short input: what it is given must be `hidden`, and numbers that it is made to
    answer with show what is done to them afterwards.
    """
    output = model.get_output_embeddings()
    if type(output) is not torch.nn.Linear:
        return None
    given: list[Tensor] = []
    spread_V = torch.linspace(-100, 100, output.out_features, device=output.weight.device).to(output.weight.dtype)

    def answer(_: Any, inputs: tuple[Tensor, ...], product: Tensor) -> Tensor:
        given.append(inputs[0])
        return spread_V.expand_as(product).clone()

    hook = output.register_forward_hook(answer)
    try:
        made_BTV = model(input_ids=probe_BT, use_cache=False).logits
    finally:
        hook.remove()
    if len(given) != 1 or not equal_up_to_rounding(given[0], hidden(probe_BT)):
        return None
    for finish in _finishes(model.config.get_text_config()):
        if equal_up_to_rounding(made_BTV, finish(spread_V.expand_as(made_BTV).clone())):
            return output_matrix(output.weight, output.bias, finish)
    return None


def _finishes(config: Any) -> Iterator[Finish]:
    """What follows the product, as the architectures' configurations name it; most often nothing."""
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        yield lambda logits: logits.div_(cap).tanh_().mul_(cap)
    if factor := getattr(config, "logit_scale", None):  # Cohere
        yield lambda logits: logits.mul_(factor)
    if divisor := getattr(config, "logits_scaling", None):  # Granite
        yield lambda logits: logits.div_(divisor)
    yield _nothing


def _nothing(logits: Tensor) -> Tensor:
    return logits


def output_matrix(weight_VH: Tensor, bias_V: Tensor | None, finish: Finish = _nothing) -> WriteLogits:
    """Logits of hidden states by the output matrix, made in its own type."""

    def write(hidden_CH: Tensor, ids: slice, out: Tensor) -> None:
        logits = out if out.dtype == weight_VH.dtype else torch.empty_like(out, dtype=weight_VH.dtype)
        if bias_V is None:
            torch.mm(hidden_CH, weight_VH[ids].T, out=logits)
        else:
            torch.addmm(bias_V[ids], hidden_CH, weight_VH[ids].T, out=logits)
        finish(logits)
        if logits is not out:
            out.copy_(logits)

    return write


def equal_up_to_rounding(a: Tensor, b: Tensor, *, rounding: float = 1e-2) -> bool:
    """Whether two tensors differ by rounding only: by 1e-5 of their norm in fp32, by `rounding` in 16 bits. NaN is no
    difference: it is found where it is scored, and named with its document."""
    if a.shape != b.shape:
        return False
    allowed = 1e-5 if a.dtype == torch.float32 else rounding
    return not (a.float() - b.float()).norm() > allowed * a.float().norm()
