"""The jobs of a study: commands with one output folder each, run in order of their dependencies, a few at a time.

A job is finished when its folder contains `part.json`, and is not run again. The name of the folder ends in a
fingerprint of everything that decides the output, so changed settings give new folders and keep the old ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config.errors import UserError
from pipeline.core.artifact import fingerprint
from pipeline.core.progress import log
from pipeline.core.sealed import write_json

VERSION = 1


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

    A job that fails does not stop the jobs that do not need it; the error is raised at the end.

    Raises:
        UserError: A job failed; the message names its log.
    """
    waiting = [job for job in jobs if not job.is_done(out)]
    total, failed = len(waiting), []
    log(f"study        {total} of {len(jobs)} jobs to run  {out}")
    running: dict[Future[int], Job] = {}
    with ThreadPoolExecutor(workers) as pool:
        while waiting or running:
            ready = [job for job in waiting if all(need.is_done(out) for need in job.needs)]
            for job in ready[: workers - len(running)]:
                waiting.remove(job)
                running[pool.submit(_run, job, out, workers)] = job
            if not running:
                break  # every remaining job needs one that failed
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                if code := future.result():
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


def _run(job: Job, out: Path, workers: int) -> int:
    """Run one command, append its output to `log.txt`, and write `part.json` if it succeeds; return the exit code."""
    folder, words, begin = job.folder(out), job.words(out), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    with (folder / "log.txt").open("ab") as log_file:
        command = [sys.executable, "-m", "commands.cli", *words]
        code = subprocess.run(command, stdout=log_file, stderr=subprocess.STDOUT, env=environment).returncode
    if code == 0:
        write_json(folder / "part.json", {"command": words, "seconds": round(time.monotonic() - begin, 1)})
    return code
