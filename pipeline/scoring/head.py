"""The output head: how a model computes logits from hidden states, and whether it can do so tile by tile.

Shape names: B rows, T tokens, C positions of a chunk, H hidden size, V rows of the output matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pipeline.scoring.entropy import WriteLogits

Finish = Callable[[Tensor], Tensor]
"""An elementwise in-place function that an architecture applies to the product with its output matrix."""


def tiled_head(model: Any, hidden: Callable[[Tensor], Tensor], probe_BT: Tensor) -> WriteLogits | None:
    """Return the function that computes a model's logits tile by tile; None if they are no known function of `hidden`.

    The model runs once on a short input with a hook on its output matrix. The hook checks that the input of the matrix
    is `hidden`, and replaces its output with known numbers, which show how the model transforms them afterwards.

    Args:
        model: a `transformers` causal LM.
        hidden: the hidden states [B, T, H] of ids [B, T].
        probe_BT: the short input.
    """
    output = model.get_output_embeddings()
    if type(output) is not torch.nn.Linear:
        return None
    given: list[Tensor] = []
    spread_V = torch.linspace(-100, 100, output.out_features, device=output.weight.device).to(output.weight.dtype)

    def replace_output(_: Any, inputs: tuple[Tensor, ...], product: Tensor) -> Tensor:
        given.append(inputs[0])
        return spread_V.expand_as(product).clone()

    hook = output.register_forward_hook(replace_output)
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
    """Yield the candidates for the function after the product, from the model's configuration; the identity last."""
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        yield lambda logits: logits.div_(cap).tanh_().mul_(cap)
    if factor := getattr(config, "logit_scale", None):  # Cohere
        yield lambda logits: logits.mul_(factor)
    if divisor := getattr(config, "logits_scaling", None):  # Granite
        yield lambda logits: logits.div_(divisor)
    yield _identity


def _identity(logits: Tensor) -> Tensor:
    return logits


def output_matrix(weight_VH: Tensor, bias_V: Tensor | None, finish: Finish = _identity) -> WriteLogits:
    """Return the function that writes logits as a product with the output matrix, computed in the matrix's dtype."""

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
    """Return whether two tensors differ by rounding only: by 1e-5 of their norm in fp32, by `rounding` in 16 bits.

    NaN counts as equal here: scoring finds it and names its document.
    """
    if a.shape != b.shape:
        return False
    allowed = 1e-5 if a.dtype == torch.float32 else rounding
    return not (a.float() - b.float()).norm() > allowed * a.float().norm()
