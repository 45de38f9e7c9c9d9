"""Low-rank adapters: a policy's matrices W stay as they are, and W + alpha / rank · B A is trained (arXiv 2106.09685).

`peft` puts them into the model; samplers and the exported policy get the sum. Dropout of adapters is not offered: the
policy that learns must be the one that sampled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.core.config import LoraConfig
from pipeline.core.errors import UserError

_NAME = "default"


def add_adapters(model: nn.Module, config: LoraConfig) -> None:
    """Freeze a model and put adapters beside its matrices. B is 0: nothing has changed yet.

    Raises:
        UserError: peft is not installed, or no matrix has one of the names.
    """
    try:
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise UserError("peft is not installed", where="policy.lora", mend="pip install 'rpt[lora]'") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # A is the same on every rank and in every run
        try:
            inject_adapter_in_model(_peft(config), model, low_cpu_mem_usage=False)
        except ValueError as error:
            raise UserError(
                f"adapters cannot be put beside {config.targets}",
                where="policy.lora.targets",
                mend="name linear layers of the policy, or `all-linear`",
            ) from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def adapted(model: nn.Module) -> dict[str, Any]:
    """By the name of its weight in the plain model, every layer that has an adapter."""
    return {f"{name}.weight": layer for name, layer in model.named_modules() if hasattr(layer, "base_layer")}


def adapter_parameters(layer: Any) -> list[nn.Parameter]:
    """A and B."""
    return [layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight]


def merged(layer: Any) -> Tensor:
    """W + alpha / rank · B A."""
    weight: Tensor = layer.base_layer.weight.data
    return weight + layer.get_delta_weight(_NAME).to(weight.dtype)


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


def _peft(config: LoraConfig) -> Any:
    import peft

    options: dict[str, Any] = {"r": config.rank, "lora_alpha": config.alpha, "target_modules": config.targets}
    return peft.LoraConfig(**options)
