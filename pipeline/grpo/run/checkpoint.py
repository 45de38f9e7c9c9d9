"""Checkpoints of a run: whole or not there, and resumed from only by the run they belong to.

checkpoints/step-000120/   what DeepSpeed writes, and state.json: whose it is, and the hash of every other file
checkpoints/latest         name of the last whole one, written last
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.config.base import differences
from pipeline.config.errors import UserError, disk_is_full
from pipeline.core.artifact import content_hash
from pipeline.core.files import flush, replace_text
from pipeline.core.progress import log
from pipeline.grpo.policy import distributed
from pipeline.grpo.policy import engine as ds
from pipeline.grpo.run.run_folder import (
    files_of,
    must_be_intact,
    must_be_same,
    name_of_step,
    read_state,
    write_state,
)


def save(
    engine: ds.Engine,
    run: Path,
    cursor: Mapping[str, Any],
    own: Mapping[str, Any],
    layout: Mapping[str, Any],
    keep: int,
    accuracy: float | None = None,
) -> None:
    """Write a checkpoint, then point `latest` at it, then delete all but the last `keep` and the best one.

    Every rank must call it.

    Args:
        engine: weights and optimizer.
        run: the run's folder.
        cursor: where the run is: `step`, updates done; `draws` of sites done; `watch`, what was seen of late.
        own: `identity` of the run.
        layout: how it is distributed and executed (`layout_of`); its `zero_stage` must stay the same.
        keep: whole checkpoints to keep, the last ones.
        accuracy: on held-out sites, if it was measured at this step: the checkpoint with the highest stays.
    """
    folder = run / "checkpoints" / name_of_step(cursor["step"])
    try:
        _write(engine, folder, {**cursor, "identity": dict(own), "layout": dict(layout), "accuracy": accuracy})
    except Exception as error:
        if not disk_is_full(error):
            raise
        shutil.rmtree(folder, ignore_errors=True)  # half a checkpoint only takes space
        hint = "free some space and run the same command again: earlier checkpoints stay"
        raise UserError("the disk is full, the checkpoint was not written", where=folder, hint=hint) from error
    if distributed.rank() == 0:
        for old in superfluous(sorted(folder.parent.glob("step-*")), folder, keep):
            shutil.rmtree(old)
    distributed.barrier()


def _write(engine: ds.Engine, folder: Path, state: Mapping[str, Any]) -> None:
    if distributed.rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed while it wrote it
        folder.mkdir(parents=True)
    distributed.barrier()
    ds.save(engine, folder, {"torch_rng": torch.get_rng_state()})
    distributed.barrier()
    hashes = distributed.all_gather(
        [(name, content_hash(folder / name)) for name in distributed.shard(files_of(folder))]
    )
    if distributed.rank() == 0:
        write_state(folder, {**state, "files": dict(hashes)})
        for file in folder.rglob("*"):
            flush(file)
        replace_text(folder.parent / "latest", folder.name)
    distributed.barrier()


def superfluous(folders: Sequence[Path], latest: Path, keep: int) -> list[Path]:
    """Return the checkpoint folders to delete, given all of them in the order of their steps.

    That is whole ones neither among the last `keep` up to `latest` nor the most accurate, and all that a killed run has
    left half written. What lies whole behind `latest` is not touched.
    """
    whole = [folder for folder in folders if (folder / "state.json").exists()]
    accuracies = {folder: read_state(folder).get("accuracy") for folder in whole}
    measured = {folder: accuracy for folder, accuracy in accuracies.items() if accuracy is not None}
    best = max(measured, key=measured.__getitem__, default=None)  # of equals the first
    done = [folder for folder in whole if folder <= latest]
    return [folder for folder in folders if folder not in whole or (folder in done[:-keep] and folder != best)]


def resume(engine: ds.Engine, folder: Path, own: Mapping[str, Any], layout: Mapping[str, Any]) -> dict[str, Any]:
    """Load a checkpoint, of any number of ranks, into the engine. Every rank must call it.

    Returns:
        its state, with the `cursor` it was saved at.

    Raises:
        IntegrityError: a file of it is not what was written.
        UserError: it belongs to another run, holds more than tensors and plain values, was partitioned by another ZeRO
            stage, or by ZeRO-1 or 2 over another number of ranks, which DeepSpeed's universal format cannot read here.
    """
    state = read_state(folder)
    was, now = state["layout"], dict(layout)
    stages = {"zero_stage": was["zero_stage"]}, {"zero_stage": now["zero_stage"]}
    must_be_same(state["identity"] | stages[0], {**own, **stages[1]}, folder.parent.parent)
    if distributed.rank() == 0 and (changed := differences(was, now)):
        log(f"resume       executed otherwise than before, towards the same results: {'; '.join(changed)}")
    same_ranks = was["ranks"] == now["ranks"]
    if not same_ranks and was["zero_stage"] in (1, 2):
        raise UserError(
            f"ZeRO-{was['zero_stage']} resumes on as many ranks as it saved on: {was['ranks']}, not {now['ranks']}",
            where=folder.parent.parent,
            hint=f"resume with --ranks {was['ranks']}; ZeRO-3 resumes on any number",
        )
    names = sorted(set(files_of(folder)) | set(state["files"]))
    must_be_intact(folder, distributed.shard(names), state["files"])
    distributed.barrier()  # no rank loads what another has found damaged
    saved = ds.load(engine, folder) if same_ranks else ds.load_redistributed(engine, folder)
    torch.set_rng_state(saved["torch_rng"])
    return state
