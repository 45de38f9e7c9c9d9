"""Runs as forks of one process, which has loaded the heavy libraries once: DeepSpeed starts one group a process.

The process must start no thread, or its forks would wait for it for ever; so it imports neither polars nor the stages.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import torch

from pipeline.grpo.policy import distributed


class Forks:
    """Forks that call functions of a module, each with a folder as its first argument."""

    def __init__(self, module: str, folder: Path) -> None:
        self._module, self._folder = module, folder
        distributed.prepare_environment()
        importlib.import_module("pipeline.grpo.policy.engine")
        torch.set_num_threads(1)

    def run(self, what: str, *arguments: str) -> None:
        """Call the function `what` and wait until it is done."""
        _finish(self._start(what, *arguments))

    def disturb(self, what: str, run: str, *arguments: str, kill_after: int) -> None:
        """Make a run that is asked to stop in its first step, is then killed after another, and then made again."""
        stopped = self._start(what, run, *arguments)
        self._wait_for_step(run, 0)
        os.kill(stopped.pid or 0, signal.SIGTERM)
        _finish(stopped)
        killed = self._start(what, run, *arguments)
        self._wait_for_step(run, kill_after)
        killed.kill()
        _finish(killed, -signal.SIGKILL)
        self.run(what, run, *arguments)

    def _start(self, what: str, *arguments: str) -> multiprocessing.process.BaseProcess:
        def run() -> None:
            code = 1
            try:
                getattr(importlib.import_module(self._module), what)(self._folder, *arguments)
                code = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

        child = multiprocessing.get_context("fork").Process(target=run)
        child.start()
        return child

    def _wait_for_step(self, run: str, step: int) -> None:
        """A line of metrics for step 0, and one for every step."""
        metrics = self._folder / run / "metrics.jsonl"
        while not metrics.exists() or metrics.read_text().count("\n") <= step:
            time.sleep(0.01)


def _finish(child: multiprocessing.process.BaseProcess, code: int = 0) -> None:
    child.join()
    assert child.exitcode == code, child.exitcode
