"""Executors: who calls a stage's function on each shard. They differ in nothing else."""

from __future__ import annotations

import concurrent.futures as futures
import multiprocessing as mp
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol, TypeVar

from pipeline.core.errors import UserError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Executor(Protocol):
    """Calls a picklable function on every item and yields results as they come, in any order."""

    def map(self, function: Callable[[ItemT], ResultT], items: Sequence[ItemT]) -> Iterator[ResultT]: ...


class LocalExecutor:
    """Processes on this machine. Every worker computes with the same number of threads, whatever is left to do:
    floating-point results, and so the bytes of the shards, do not depend on how a run was interrupted."""

    def __init__(self, workers: int | None = None) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.workers = workers or cores
        self.threads = max(1, cores // self.workers)

    def map(self, function: Callable[[ItemT], ResultT], items: Sequence[ItemT]) -> Iterator[ResultT]:
        """Run `function` on `items` in spawned processes.

        Raises:
            UserError: a worker died (most often: out of memory). What was published stays.
        """
        if not items:
            return
        _limit_threads(self.threads)  # inherited by the workers before they import a numerical library
        pool = futures.ProcessPoolExecutor(
            min(self.workers, len(items)), mp_context=mp.get_context("spawn"), initializer=_die_with_parent
        )
        try:
            for done in futures.as_completed([pool.submit(function, item) for item in items]):
                yield done.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, most often for lack of memory",
                mend="run the same command again to resume, with fewer --workers",
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _limit_threads(threads: int) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _die_with_parent() -> None:
    """Leave when the parent is gone, even if it was killed: no orphan goes on working."""
    parent = mp.parent_process()
    assert parent is not None

    def watch() -> None:
        mp.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
