"""Checkpoints of a run: whole or not there, and resumed from only by the run they belong to.

checkpoints/step-000120/   what DeepSpeed writes, and state.json: whose it is
checkpoints/latest         name of the last whole one, written last
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.grpo import engine as ds
from pipeline.grpo import ranks
from pipeline.grpo.run import must_be_same, read_state


def save(
    engine: ds.Engine,
    run: Path,
    step: int,
    draws: int,
    own: Mapping[str, Any],
    layout: Mapping[str, Any],
    keep: int,
) -> None:
    """Write a checkpoint, then point `latest` at it, then delete all but the last `keep`. Every rank must call it.

    Args:
        engine: weights and optimizer.
        run: the run's folder.
        step: updates done.
        draws: of sites done, the place in the data.
        own: `identity` of the run.
        layout: how it is distributed; a checkpoint is read by as many ranks as wrote it.
        keep: whole checkpoints to keep.
    """
    folder = run / "checkpoints" / f"step-{step:06d}"
    if ranks.rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed while it wrote it
        folder.mkdir(parents=True)
    ranks.barrier()
    ds.save(engine, folder, {"torch_rng": torch.get_rng_state()})
    ranks.barrier()
    if ranks.rank() == 0:
        state = {"step": step, "draws": draws, "identity": dict(own), "layout": dict(layout)}
        (folder / "state.json").write_text(json.dumps(state, indent=1, ensure_ascii=False), encoding="utf-8")
        for file in folder.rglob("*"):
            _flush(file)
        temporary = folder.parent / ".latest"
        temporary.write_text(folder.name)
        _flush(temporary)
        os.replace(temporary, folder.parent / "latest")
        _flush(folder.parent)
        for old in sorted(folder.parent.glob("step-*"))[:-keep]:
            shutil.rmtree(old)
    ranks.barrier()


def resume(engine: ds.Engine, folder: Path, own: Mapping[str, Any], layout: Mapping[str, Any]) -> tuple[int, int]:
    """Load a checkpoint into the engine. Returns the updates and the draws done. Every rank must call it.

    Raises:
        UserError: it belongs to another run, or was written by another number of ranks.
    """
    state = read_state(folder)
    must_be_same(state["identity"] | state["layout"], {**own, **layout}, folder.parent.parent)
    torch.set_rng_state(ds.load(engine, folder)["torch_rng"])
    return state["step"], state["draws"]


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
