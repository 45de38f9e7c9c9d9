"""Low-rank adapters: a policy's matrices W stay as they are, and W + alpha / rank · B A is trained (arXiv 2106.09685).

`peft` puts them into the model; samplers and the exported policy get the sum. Dropout of adapters is not offered: the
policy that learns must be the one that sampled.
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

from pipeline.config.errors import UserError
from pipeline.config.recipe import LoraConfig

_NAME = "default"

_KINDS = ("Linear", "Embedding", "ParamWrapper")
"""Layers of `peft` whose sum with their adapter is known to be what they compute. The last is of matrices that are no
layers of their own: the experts of a mixture, and its router."""


def add_adapters(model: nn.Module, config: LoraConfig) -> None:
    """Freeze a model and put adapters beside its matrices. B is 0: nothing has changed yet.

    Raises:
        UserError: peft is not installed, a name is of no matrix, or of one with which an adapter cannot be merged.
    """
    try:
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise UserError("peft is not installed", where="policy.lora", hint="pip install 'rpt[lora]'") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # A is the same on every rank and in every run
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say of names is checked below
            try:
                inject_adapter_in_model(_peft(config), model, low_cpu_mem_usage=False)
            except ValueError as error:
                raise _refused(f"adapters cannot be put beside {config.targets}: {_first_line(error)}") from error
    _must_be_found(model, config)
    _must_be_mergeable(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def adapted(model: nn.Module) -> dict[str, Any]:
    """By the name of its weight in the plain model, every layer that has an adapter.

    Layers may stand in each other: each adapts one parameter of the innermost.
    """
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "base_layer")}
    return {plain_name(f"{name}.{_parameter_of(layer)}"): layer for name, layer in layers.items()}


def plain_name(name: str) -> str:
    """A parameter's name in the plain model."""
    return name.replace(".base_layer", "")


def adapter_parameters(layer: Any) -> list[nn.Parameter]:
    """A and B."""
    return [parameter for name, parameter in layer.named_parameters() if name.startswith("lora_")]


def merged(layer: Any) -> Tensor:
    """W + alpha / rank · B A, as `peft` shapes B A for this kind of layer."""
    weight: Tensor = getattr(layer.get_base_layer(), _parameter_of(layer)).data
    return weight + layer.get_delta_weight(_NAME).to(weight.dtype)


def _parameter_of(layer: Any) -> str:
    return getattr(layer, "parameter_name", "weight")


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Within, the model is the one that training started from. All its modules still run, as ZeRO-3 expects of them."""
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
    """A folder that `peft.PeftModel.from_pretrained` reads; `weights` by their names in the model."""
    peft = _peft(config)
    peft.base_model_name_or_path, peft.task_type, peft.inference_mode = base, "CAUSAL_LM", True
    peft.save_pretrained(str(folder))
    named = {f"base_model.model.{name.replace(f'.{_NAME}', '')}": tensor for name, tensor in weights}
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _must_be_found(model: nn.Module, config: LoraConfig) -> None:
    """
    Raises:
        UserError: no layer of one of the names has an adapter, though others have. (Where experts are stored as one
            matrix, `peft` knows more names for it: those of the experts' own matrices in the published weights.)
    """
    layers = adapted(model)
    fused = any(type(layer).__name__ == "ParamWrapper" for layer in layers.values())
    names = [plain_name(name) for name, _ in (*model.named_modules(), *model.named_parameters())]
    for target in [] if isinstance(config.targets, str) else config.targets:
        found = any(f".{name.removesuffix('.weight')}".endswith(f".{target}") for name in layers)
        known = any(f".{name}".endswith(f".{target}") for name in names)
        if not found and (known or not fused):
            raise _refused(f"no adapter can be put beside {target}")


def _must_be_mergeable(model: Any) -> None:
    """
    Raises:
        UserError: what samples could not be given the sum of some layer and its adapter.
    """
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for name, layer in adapted(model).items():
        if type(layer).__name__ not in _KINDS:
            raise _refused(f"an adapter of {name} ({type(layer).__name__}) cannot be merged")
        if layer.get_base_layer() is _plain(model.get_output_embeddings()):
            raise _refused(f"{name} is the output head, which has no adapter here")
        if uses[id(getattr(layer.get_base_layer(), _parameter_of(layer)))] > 1:
            raise _refused(f"{name} is tied to another weight, which its adapter would not change")


def _plain(module: Any) -> Any:
    return module.get_base_layer() if hasattr(module, "base_layer") else module


def _refused(what: str) -> UserError:
    return UserError(
        what, where="policy.lora.targets", hint="name linear layers of the policy, or experts, or `all-linear`"
    )


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def _peft(config: LoraConfig) -> Any:
    import peft

    options: dict[str, Any] = {"r": config.rank, "lora_alpha": config.alpha, "target_modules": config.targets}
    return peft.LoraConfig(**options)
