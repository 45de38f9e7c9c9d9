"""DeepSpeed configurations: parallelism and memory, nothing that changes results. Starts without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.config.errors import UserError

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
"""What a topology must not set: results follow from the recipe, however it is distributed."""


CONFIGS = Path(__file__).parent.parent.parent.parent / "deepspeed_configs"


def choose_config(path: Path | None, *, on_gpu: bool) -> dict[str, Any]:
    """The one asked for; by default ZeRO-3 for the devices there are."""
    return read_config(path or CONFIGS / ("zero3.json" if on_gpu else "zero3_cpu.json"))


def read_config(path: Path) -> dict[str, Any]:
    """A DeepSpeed JSON.

    Raises:
        UserError: missing, no JSON, or it sets what the recipe decides.
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
    """0 to 3: what is partitioned over the ranks."""
    return int(topology.get("zero_optimization", {}).get("stage", 0))
