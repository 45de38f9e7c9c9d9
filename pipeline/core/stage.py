"""The stage runner: turns a plan into published shards and a record, whatever the stage computes."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.config.base import Config
from pipeline.config.errors import UserError, disk_is_full
from pipeline.core.artifact import (
    Counters,
    InputFile,
    Record,
    Shard,
    check_sizes,
    fingerprint,
    publish,
    read_record,
    scratch_folder,
    set_current,
    write_record,
)
from pipeline.core.completion import Completion, read_completion
from pipeline.core.executor import Executor
from pipeline.core.marks import BEGUN, mark_begun
from pipeline.core.parts import FOLDER, remove_parts, share_done
from pipeline.core.progress import Throughput, counted, log, progress_bar
from pipeline.core.sealed import exclusive


@dataclass(frozen=True)
class Stage:
    """A stage: a name, a code version (raised whenever the output changes), and a pure function of one shard."""

    name: str
    version: int
    run: Callable[[Any, Shard, Path], Counters]
    """(config, shard, out) → counters. Writes its tables into the folder `out`. A top-level function, so that any
    executor can call it. The counter named `unit` gives the rate that is shown."""
    unit: str = "documents"
    accelerated: bool = False
    """Whether it computes on an accelerator if there is one; each worker then gets one of its own."""
    flops: float | None = None
    """Floating-point operations per unit, for the MFU."""


def shards_of(
    tables: Mapping[str, Record], details: Mapping[str, Any], shared: Mapping[str, InputFile] = MappingProxyType({})
) -> list[Shard]:
    """Return the shards of outputs that have the same ones: each with its file of every table, and the shared files.

    `tables` has the output of each table; where a shard has no file of a table, it is left out.
    """
    *_, last = tables.values()
    shards = []
    for shard in last.shards:
        files = {name: file for name, record in tables.items() if (file := record.file(name, shard))}
        shards.append(Shard(shard, files | dict(shared), details))
    return shards


def run_stage(
    stage: Stage, config: Config, shards: Sequence[Shard], inputs: Mapping[str, str], work: Path, executor: Executor
) -> Record:
    """Bring a stage's output up to date and return its record. Published shards are not computed again.

    Args:
        stage: what to run.
        config: the stage's own configuration; its `identity()` enters the fingerprint.
        shards: the plan; must be a pure function of config and inputs.
        inputs: content hashes of the shards' inputs (records' `content`, model and tokenizer digests).
        work: the manifest's folder; output goes to `work/<stage>/<fingerprint>/`.
        executor: calls `stage.run`.
    """
    directory = output_folder(stage, config, inputs, work)
    record = read_record(directory)
    if record is None:
        directory.mkdir(parents=True, exist_ok=True)
        with exclusive(directory) as alone:
            record = read_record(directory)  # the process that held the lock may have made it
            if record is None:
                if alone:  # without a lock another process may be using it
                    shutil.rmtree(directory / "tmp", ignore_errors=True)
                return _make(stage, config, shards, inputs, directory, executor)
    check_sizes(record)
    log(f"{stage.name:<12} up to date  {directory}")
    set_current(directory)
    return record


def output_folder(stage: Stage, config: Config, inputs: Mapping[str, str], work: Path) -> Path:
    """Return the folder of a stage's output, whether there is one or not."""
    return work / stage.name / fingerprint(stage.name, stage.version, config.identity(), inputs)


def _make(
    stage: Stage,
    config: Config,
    shards: Sequence[Shard],
    inputs: Mapping[str, str],
    directory: Path,
    executor: Executor,
) -> Record:
    """Compute the missing shards, and seal the output."""
    start = time.monotonic()
    mark_begun(directory, inputs)
    missing = [shard for shard in shards if read_completion(directory, shard.index) is None]
    if len(missing) < len(shards):
        left = len(shards) - len(missing)
        log(f"{stage.name:<12} {len(missing)} of {len(shards)} shards to do, {left} already done")
    for index in {shard.index for shard in shards} - {shard.index for shard in missing}:
        remove_parts(directory, index)  # of a worker that was killed after it had published
    meter = Throughput(len(missing), stage.unit, stage.flops, within=lambda: share_done(directory))
    with progress_bar(stage.name, meter, lambda: executor.devices) as advance:
        work_on = partial(_work, stage, config, directory)
        for done in executor.map(work_on, missing, accelerated=stage.accelerated, planned=len(shards)):
            advance(1, done.counters.get(stage.unit, 0))
    settings = config.execution_settings()
    record = write_record(directory, stage.name, stage.version, config.identity(), inputs, shards, settings)
    (directory / BEGUN).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty: another process works here without a lock
        (directory / "tmp").rmdir()
        (directory / FOLDER).rmdir()
    work_done = f"{record.counters.get(stage.unit, 0):,} {stage.unit}, {counted(len(shards), 'shard')}"
    log(f"{stage.name:<12} done in {time.monotonic() - start:.1f} s: {work_done}")
    set_current(directory)
    return record


def _work(stage: Stage, config: Config, directory: Path, shard: Shard) -> Completion:
    """Compute and publish one shard, in the process that the executor chose."""
    start = time.monotonic()
    try:
        with scratch_folder(directory, shard.index) as out:
            counters = stage.run(config, shard, out)
            done = publish(directory, shard.index, out, counters, time.monotonic() - start)
        remove_parts(directory, shard.index)
        return done
    except Exception as error:
        if disk_is_full(error):
            raise UserError(
                "the disk is full", where=directory, hint="free some space and run again: published shards stay"
            ) from error
        raise
