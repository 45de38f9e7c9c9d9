"""The run that a policy comes from: its command, base and cost. Starts without torch.

A run that starts from another run's policy names that run in its `run.json` (`policy_from`), so that a warm-up's part
of a result, and of the compute, can be told apart from that of RL.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.grpo.run.metrics import read_metrics


def origin_of(policy: Path) -> dict[str, Any] | None:
    """Return what is known of the run that trained a policy; None if none of ours did.

    Args:
        policy: the policy's folder, which in a run is called `policy`.

    Returns:
        `command`, `run` (its folder), `base` (as in its `run.json`) and what it took: `steps`, `examples` (if it was
        supervised), `tokens` learned from, `flops`, `seconds`.
    """
    run = policy.parent
    try:
        about = json.loads((run / "run.json").read_text(encoding="utf-8"))
        rows = read_metrics(run / "metrics.jsonl")
        examples = sum(row.get("examples", 0) for row in rows)
        return {
            "command": about["command"],
            "run": str(run),
            "base": about["base"],
            "steps": rows[-1]["step"],
            **({"examples": examples} if examples else {}),
            **{name: rows[-1][f"compute/{name}"] for name in ("tokens", "flops", "seconds")},
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None  # the policy lies elsewhere, or in a run of an older version


def described(origin: dict[str, Any]) -> str:
    """Return one line about the run that a policy comes from.

    Example:
        >>> described({"command": "warmup", "run": "runs/w", "examples": 1000, "tokens": 25000, "flops": 2.5e13})
        'rpt warmup: 1,000 examples, 25,000 tokens learned, 2.50e+13 FLOPs  runs/w'
    """
    examples = f"{origin['examples']:,} examples, " if "examples" in origin else ""
    return (
        f"rpt {origin['command']}: {examples}{origin['tokens']:,} tokens learned, {origin['flops']:.2e} FLOPs"
        f"  {origin['run']}"
    )
