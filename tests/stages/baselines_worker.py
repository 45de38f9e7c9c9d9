"""Makes the runs of `baselines`, one after the other: `python -m tests.stages.baselines_worker FOLDER`.

Each is a fork of this process, which has loaded the heavy libraries once: DeepSpeed starts one group a process. This
process must start no thread, or its forks would wait for it for ever; so it imports neither polars nor the stages.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import torch

from pipeline.grpo.policy import distributed

distributed.prepare_environment()

import pipeline.grpo.policy.engine  # noqa: E402, F401

FOLDER = Path(sys.argv[1])


def start(what: str, *arguments: str) -> multiprocessing.process.BaseProcess:
    """A fork that makes a run and leaves."""

    def run() -> None:
        code = 1
        try:
            from tests.stages import baselines

            getattr(baselines, what)(FOLDER, *arguments)
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


def finish(child: multiprocessing.process.BaseProcess, code: int = 0) -> None:
    child.join()
    assert child.exitcode == code, child.exitcode


def wait_for_step(run: str, step: int) -> None:
    """A line of metrics for step 0, and one for every step."""
    metrics = FOLDER / run / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") <= step:
        time.sleep(0.01)


torch.set_num_threads(1)
finish(start("prepare"))
finish(start("learn_text", "ntp"))
stopped = start("learn_text", "disturbed")
wait_for_step("disturbed", 0)
os.kill(stopped.pid or 0, signal.SIGTERM)
finish(stopped)
killed = start("learn_text", "disturbed")
wait_for_step("disturbed", 5)
killed.kill()
finish(killed, -signal.SIGKILL)
finish(start("learn_text", "disturbed"))
finish(start("learn_text", "equal", "ntp"))
finish(start("learn", "form", "task.reward=format_only", "budget.stop.probe_sites=null"))  # nearly all have it
finish(start("learn", "shuffled", "task.targets=shuffled"))
finish(start("imitate", "sft", "form"))
finish(start("imitate", "sft-answers"))
finish(start("answer", "finetuned"))
