"""Low-rank adapters (LoRA, arXiv 2106.09685).

A policy's matrices W are frozen; A and B of W + alpha / rank · B A are trained. `peft` adds them to the model; samplers
and the exported policy get the merged weights. Adapter dropout is not offered, because the policy that is trained must
be the one that sampled.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.config.errors import UserError, first_line
from pipeline.config.recipe import LoraConfig

_NAME = "default"

_KINDS = ("Linear", "Embedding", "ParamWrapper")
"""Layer classes of `peft` whose merged weight is known to compute what layer and adapter compute.

`ParamWrapper` wraps matrices that are not layers of their own: the experts of a mixture, and its router.
"""


def add_adapters(model: nn.Module, config: LoraConfig) -> None:
    """Freeze a model and add adapters to its matrices. B starts at 0, so that the model's outputs do not change.

    Raises:
        UserError: peft is not installed, a target matches no matrix, or an adapter cannot be merged into a matrix.
    """
    try:
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise UserError("peft is not installed", where="policy.lora", hint="pip install 'rpt[lora]'") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # A is the same on every rank and in every run
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are about target names, which are checked below
            try:
                inject_adapter_in_model(_peft(config), model, low_cpu_mem_usage=False)
            except ValueError as error:
                raise _target_error(f"adapters cannot be added to {config.targets}: {first_line(error)}") from error
    _check_targets(model, config)
    _check_mergeable(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def adapted(model: nn.Module) -> dict[str, Any]:
    """Return every layer that has an adapter, by the name of its weight in the plain model.

    Adapter layers can be nested: each adapts one parameter of the innermost layer.
    """
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "base_layer")}
    return {plain_name(f"{name}.{_parameter_of(layer)}"): layer for name, layer in layers.items()}


def plain_name(name: str) -> str:
    """Return a parameter's name in the model without adapters."""
    return name.replace(".base_layer", "")


def adapter_parameters(layer: Any) -> list[nn.Parameter]:
    """Return the adapter's matrices A and B."""
    return [parameter for name, parameter in layer.named_parameters() if name.startswith("lora_")]


def merged(layer: Any) -> Tensor:
    """Return the merged weight W + alpha / rank · B A, with B A in the shape `peft` gives it for this kind of layer."""
    weight: Tensor = getattr(layer.get_base_layer(), _parameter_of(layer)).data
    return weight + layer.get_delta_weight(_NAME).to(weight.dtype)


def _parameter_of(layer: Any) -> str:
    return getattr(layer, "parameter_name", "weight")


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Disable the adapters within the context, so that the model is the one that training started from.

    The adapters are scaled by 0 rather than removed, because ZeRO-3 expects every module to run.
    """
    layers = list(adapted(model).values())
    scaling = [layer.scaling[_NAME] for layer in layers]
    try:
        for layer in layers:
            layer.scaling[_NAME] = 0.0
        yield
    finally:
        for layer, factor in zip(layers, scaling, strict=True):
            layer.scaling[_NAME] = factor


def save_adapter(weights: Sequence[tuple[str, Tensor]], config: LoraConfig, base: str, folder: Path) -> None:
    """Write a folder that `peft.PeftModel.from_pretrained` reads; `weights` are named as in the model."""
    peft = _peft(config)
    peft.base_model_name_or_path, peft.task_type, peft.inference_mode = base, "CAUSAL_LM", True
    peft.save_pretrained(str(folder))
    named = {f"base_model.model.{name.replace(f'.{_NAME}', '')}": tensor for name, tensor in weights}
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _check_targets(model: nn.Module, config: LoraConfig) -> None:
    """Check that each target name matched a layer.

    Where experts are stored as one matrix, `peft` also accepts the names of the experts' own matrices in the published
    weights; such names match no layer here and are not an error.

    Raises:
        UserError: a target matched no layer, although others did.
    """
    layers = adapted(model)
    fused = any(type(layer).__name__ == "ParamWrapper" for layer in layers.values())
    names = [plain_name(name) for name, _ in (*model.named_modules(), *model.named_parameters())]
    for target in [] if isinstance(config.targets, str) else config.targets:
        found = any(f".{name.removesuffix('.weight')}".endswith(f".{target}") for name in layers)
        known = any(f".{name}".endswith(f".{target}") for name in names)
        if not found and (known or not fused):
            raise _target_error(f"no adapter can be added to {target}")


def _check_mergeable(model: Any) -> None:
    """Check that every adapter can be merged, because samplers receive merged weights.

    Raises:
        UserError: an adapter cannot be merged.
    """
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for name, layer in adapted(model).items():
        if type(layer).__name__ not in _KINDS:
            raise _target_error(f"an adapter of {name} ({type(layer).__name__}) cannot be merged")
        if layer.get_base_layer() is _plain(model.get_output_embeddings()):
            raise _target_error(f"{name} is the output head, which cannot have an adapter here")
        if uses[id(getattr(layer.get_base_layer(), _parameter_of(layer)))] > 1:
            raise _target_error(f"{name} is tied to another weight, which its adapter would not change")


def _plain(module: Any) -> Any:
    return module.get_base_layer() if hasattr(module, "base_layer") else module


def _target_error(message: str) -> UserError:
    return UserError(
        message, where="policy.lora.targets", hint="name linear layers of the policy, or experts, or `all-linear`"
    )


def _peft(config: LoraConfig) -> Any:
    import peft

    options: dict[str, Any] = {"r": config.rank, "lora_alpha": config.alpha, "target_modules": config.targets}
    return peft.LoraConfig(**options)
