"""The jobs of a study: commands with one output folder each, run in order of their dependencies, a few at a time.

A job is finished when its folder contains `part.json`, and is not run again. The name of the folder ends in a
fingerprint of everything that decides the output, so changed settings give new folders and keep the old ones.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pipeline.config.errors import UserError
from pipeline.core.artifact import fingerprint
from pipeline.core.progress import log
from pipeline.core.sealed import write_json

VERSION = 1
RPT = (sys.executable, "-m", "commands.cli")
"""How a job's command is started."""


@dataclass(frozen=True)
class Job:
    """One command of a study."""

    name: str
    command: tuple[str, ...]
    """Words after `rpt`; `{out}` stands for the job's folder, `{name}` for the folder of the needed job `name`."""
    needs: tuple[Job, ...] = ()
    decides: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Contents besides the command that decide the output: configurations, data, models."""
    places: tuple[str, ...] = ()
    """Words after the command that only locate files; they are not part of the fingerprint."""

    @property
    def fingerprint(self) -> str:
        """Hash of the command, the needed jobs and everything else that decides the output."""
        inputs = {job.name: job.fingerprint for job in self.needs} | dict(self.decides)
        return fingerprint("study", VERSION, {"command": list(self.command)}, inputs)

    def folder(self, out: Path) -> Path:
        """Return the output folder."""
        return out / f"{self.name}.{self.fingerprint[:8]}"

    def words(self, out: Path) -> list[str]:
        """Return the command with placeholders replaced by folders."""
        places = {"out": self.folder(out)} | {job.name: job.folder(out) for job in self.needs}
        words = [*self.command, *self.places]
        for name, place in places.items():
            words = [word.replace(f"{{{name}}}", str(place)) for word in words]
        return words

    def is_done(self, out: Path) -> bool:
        """Return True if the job has finished successfully."""
        return (self.folder(out) / "part.json").exists()


def default_workers() -> int:
    """Return one command per core, at most 4: toy models use one core better than two."""
    return min(4, os.cpu_count() or 1)


def run_jobs(jobs: Sequence[Job], out: Path, *, workers: int) -> None:
    """Run the unfinished jobs, `workers` at a time, each with its share of the cores.

    A job that fails does not stop the jobs that do not need it; the error is raised at the end. SIGTERM stops all
    commands; those that save what they have go on from there the next time.

    Raises:
        UserError: A job failed; the message names its log.
        SystemExit: SIGTERM came.
    """
    waiting = [job for job in jobs if not job.is_done(out)]
    total, failed = len(waiting), []
    log(f"study        {total} of {len(jobs)} jobs to run  {out}")
    running: dict[Future[int], Job] = {}
    with Commands() as commands, ThreadPoolExecutor(workers) as pool:
        while waiting or running:
            startable = [] if commands.stopped else waiting
            ready = [job for job in startable if all(need.is_done(out) for need in job.needs)]
            for job in ready[: workers - len(running)]:
                waiting.remove(job)
                running[pool.submit(_run, commands, job, out, workers)] = job
            if not running:
                break  # every remaining job needs one that failed, or SIGTERM came
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                code = future.result()
                if commands.stopped:
                    log(f"study        {job.name} stopped")
                elif code:
                    failed.append(job)
                    log(f"study        {job.name} failed with exit code {code}: {job.folder(out) / 'log.txt'}")
                else:
                    log(f"study        {total - len(waiting) - len(running)}/{total} {job.name}")
    if failed:
        log_file = failed[0].folder(out) / "log.txt"
        last = (log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]
        raise UserError(
            f"{len(failed)} jobs failed, the first is {failed[0].name}: {last}",
            where=log_file,
            hint="fix the cause and run the same command again; finished jobs are kept",
        )


class Commands:
    """The commands that run now.

    SIGTERM is sent on to all of them: otherwise they would go on alone, and hold their folders. Once they have ended,
    the context is left with SystemExit.
    """

    def __init__(self) -> None:
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def __enter__(self) -> Commands:
        self.main = threading.current_thread() is threading.main_thread()
        if self.main:  # other threads cannot set handlers
            self.before = signal.signal(signal.SIGTERM, self.stop)
        return self

    def __exit__(self, *error: object) -> None:
        if self.main:
            signal.signal(signal.SIGTERM, self.before)
        if self.stopped:
            raise SystemExit(128 + signal.SIGTERM)

    def stop(self, *_: object) -> None:
        """End the commands. A training saves a checkpoint first."""
        self.stopped = True
        for process in list(self.running):
            process.terminate()

    def run(self, command: list[str], log_file: BinaryIO | None, environment: dict[str, str]) -> int:
        """Run a command, and return its exit code. Its output goes to the file; None: where ours goes."""
        errors = None if log_file is None else subprocess.STDOUT
        process = subprocess.Popen(command, stdout=log_file, stderr=errors, env=environment)
        self.running.add(process)
        if self.stopped:  # between the start and its being known
            process.terminate()
        code = process.wait()
        self.running.discard(process)
        return code


def _run(commands: Commands, job: Job, out: Path, workers: int) -> int:
    """Run one command, append its output to `log.txt`, and write `part.json` if it succeeds; return the exit code."""
    folder, words, begin = job.folder(out), job.words(out), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    with (folder / "log.txt").open("ab") as log_file:
        code = commands.run([*RPT, *words], log_file, environment)
    if code == 0 and not commands.stopped:  # a training that was stopped has saved, and ends with 0
        write_json(folder / "part.json", {"command": words, "seconds": round(time.monotonic() - begin, 1)})
    return code
