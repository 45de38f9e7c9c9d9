"""Executors: run a stage's function on each shard, in local processes or on a Ray cluster."""

from __future__ import annotations

import concurrent.futures as futures
import contextlib
import multiprocessing as mp
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, TypeVar

from pipeline.config.errors import UserError
from pipeline.core.hardware import cores, gpus

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Executor(Protocol):
    """Anything that calls a picklable function on every item and yields results as they come, in any order."""

    @property
    def devices(self) -> Sequence[str]:
        """Return the device of each running worker: an accelerator's name, or "CPU"."""
        ...

    def map(
        self,
        function: Callable[[ItemT], ResultT],
        items: Sequence[ItemT],
        *,
        accelerated: bool = False,
        planned: int | None = None,
    ) -> Iterator[ResultT]:
        """Yield the function's results.

        Args:
            function: what to call.
            items: its arguments.
            accelerated: True to give workers an accelerator where there are some.
            planned: the number of items of the whole plan, if `items` are what is left of it. There are never more
                workers than that, and cores are divided among the workers.
        """
        ...


class LocalExecutor:
    """Processes on this machine: one per core, or one per GPU for functions that compute there.

    There are at most as many workers as planned shards, and every worker computes with `cores // workers` threads, so
    that a single shard has all cores. Fewer shards *left* than workers change nothing: the number of threads changes
    floating-point sums, and the bytes of the shards must not depend on how a run was interrupted.
    """

    def __init__(self, workers: int | None = None) -> None:
        self._workers = workers
        self.devices: Sequence[str] = ()

    def map(
        self,
        function: Callable[[ItemT], ResultT],
        items: Sequence[ItemT],
        *,
        accelerated: bool = False,
        planned: int | None = None,
    ) -> Iterator[ResultT]:
        """Run `function` on `items` in spawned processes.

        Raises:
            UserError: a worker died (most often: out of memory). Published shards stay.
        """
        if not items:
            return
        found = gpus() if accelerated else ()
        workers = min(self._workers or len(found) or cores(), planned or len(items))
        settings = thread_settings(max(1, cores() // workers))
        workers = min(workers, len(items))
        mine = [found[n % len(found)] for n in range(workers)] if found else []
        self.devices = [gpu.name for gpu in mine] or ["CPU"] * workers
        spawn = mp.get_context("spawn")
        identities = spawn.SimpleQueue()
        for gpu in mine:
            identities.put(gpu.identity)
        pool = futures.ProcessPoolExecutor(
            workers, mp_context=spawn, initializer=_begin, initargs=(identities if mine else None,)
        )
        try:
            # Workers start while items are submitted. They ignore Ctrl-C until `_begin` installs their handler.
            with ignore_interrupts(), environment(settings):
                running = [pool.submit(_call, function, item) for item in items]
            for done in futures.as_completed(running):
                yield done.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, most often for lack of memory",
                hint="run the same command again to resume, with fewer --workers",
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def thread_settings(threads: int) -> dict[str, str]:
    """Return environment variables that limit numerical libraries to `threads`; set them before the libraries load."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS")
    return dict.fromkeys(names, str(threads)) | {"TOKENIZERS_PARALLELISM": "false"}


@contextlib.contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for processes that are started meanwhile; afterwards all are as before."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ |= settings
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def ignore_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C in this process and in processes that are started meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_interrupted = threading.Event()


def _interrupt(*_: object) -> None:
    """Handle Ctrl-C in a worker: abandon the current shard, remove its scratch folder and take no other."""
    _interrupted.set()
    raise SystemExit(130)


def _call(function: Callable[[ItemT], ResultT], item: ItemT) -> ResultT:
    if _interrupted.is_set():
        raise SystemExit(130)
    return function(item)


def _begin(identities: Any) -> None:
    """Initialise a worker: take a GPU of its own, if there are some, and exit when the parent does.

    Output of libraries goes to standard error, because standard output is for the command's results.
    """
    signal.signal(signal.SIGINT, _interrupt)
    os.dup2(2, 1)
    if identities is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = identities.get()
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns when `transformers` imports it
    _die_with_parent()


def _die_with_parent() -> None:
    """Exit when the parent is gone, even if it was killed, so that no orphan goes on working."""
    parent = mp.parent_process()
    assert parent is not None

    def watch() -> None:
        mp.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
