"""DeepSpeed configurations, which set parallelism and memory but nothing that changes results. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.config.errors import UserError
from pipeline.config.resources import ROOT

RECIPE_KEYS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "managed_gradient_accumulation",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "fp16",
    "bf16",
    "bfloat16",
)
"""Keys that a DeepSpeed configuration must not set, because the recipe alone decides results."""

CONFIGS = ROOT / "deepspeed_configs"


def choose_config(path: Path | None, *, on_gpu: bool) -> dict[str, Any]:
    """Read the configuration at `path`; by default that of ZeRO-3 for GPUs or for CPUs."""
    return read_config(path or CONFIGS / ("zero3.json" if on_gpu else "zero3_cpu.json"))


def read_config(path: Path) -> dict[str, Any]:
    """Read a DeepSpeed JSON file.

    Raises:
        UserError: it is missing, is not a JSON object, or sets a key that the recipe decides.
    """
    if not path.is_file():
        known = ", ".join(sorted(p.name for p in path.parent.glob("*.json"))) or "none"
        raise UserError("DeepSpeed configuration not found", where=path, hint=f"JSON files there: {known}")
    try:
        topology = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError("not valid JSON", where=path, hint=str(error)) from error
    if not isinstance(topology, dict):
        raise UserError("expected a JSON object", where=path)
    if clash := [key for key in RECIPE_KEYS if key in topology]:
        raise UserError(
            f"the DeepSpeed configuration sets {', '.join(clash)}",
            where=path,
            hint="remove them: batch sizes, clipping, optimizer and precision come from the recipe",
        )
    return topology


def zero_stage(topology: dict[str, Any]) -> int:
    """Return the ZeRO stage, 0 to 3: what is partitioned over the ranks."""
    return int(topology.get("zero_optimization", {}).get("stage", 0))
