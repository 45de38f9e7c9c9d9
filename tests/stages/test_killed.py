"""`rpt data` killed in the passes over the whole corpus, and its bytes however these are cut up and spread.

Everything that these passes hold in memory at once is made tiny (`small_parts`), so that each works in many parts.
RPT_KILLS=50 kills fifty times in each of the four cases; by default there are a few kills.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from tests.stages.all_passes import (
    DEDUPLICATION,
    ORDINARY,
    ROOT,
    SELECTION,
    SMALL,
    command,
    data,
    published,
    tables,
    write_manifest,
)

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("RPT_KILLS", "2"))


class Calm(NamedTuple):
    """An undisturbed run with one worker."""

    manifest: Path
    work: Path
    log: str


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Calm:
    folder = tmp_path_factory.mktemp("calm")
    manifest = write_manifest(folder)
    return Calm(manifest, folder / "work", data(SMALL, manifest, folder / "work", "--workers", "1"))


def without(calm: Calm, stages: tuple[str, ...], work: Path) -> Path:
    """A copy of the work folder of which some stages never ran."""
    shutil.copytree(calm.work, work)
    for stage in stages:
        shutil.rmtree(work / "passes" / stage)
    return work


def test_every_rule_and_reason_is_at_work(calm: Calm) -> None:
    found = published(calm.work)
    for counter in (
        "dropped.duplicate",
        "dropped.near_duplicate",
        "dropped.near_duplicate_of_validation",
        "dropped.contaminated",
        "dropped.top_fraction",
        "dropped.strata",
        "dropped.mixture",  # which leaves no more than `max_sites`
    ):
        counts = [int(n) for text in found.values() for n in re.findall(rf'"{re.escape(counter)}": (\d+)', text)]
        assert sum(counts) > 0, counter


# ------------------------------------------------------------------------------------------------------- kills


@pytest.mark.timeout(120 * KILLS + 600)
@pytest.mark.parametrize("workers", ["1", "4"])
@pytest.mark.parametrize("stages", [DEDUPLICATION, SELECTION], ids=["deduplication", "selection"])
def test_killed_at_random_moments_it_publishes_the_same_bytes(
    calm: Calm, stages: tuple[str, ...], workers: str, tmp_path: Path
) -> None:
    expected, lasts = published(calm.work), seconds_of(calm.log)
    draws, killed = random.Random(f"{stages} {workers} {KILLS}"), Counter[str]()
    for attempt in range(10 * KILLS):
        number, victim = attempt % len(stages), draws.choice(VICTIMS)
        aim, work = stages[number], without(calm, stages[number:], tmp_path / "work")
        start = command(SMALL, calm.manifest, work, "--workers", workers)
        kill(start, work / "passes" / aim, draws.uniform(0, lasts[aim]), victim)
        begun = [stage for stage in stages if unfinished(work / "passes" / stage)]
        killed.update(begun)
        before = completions(work)
        log = data(SMALL, calm.manifest, work, "--workers", workers)
        lasts |= seconds_of(log)  # at the present load
        assert published(work) == expected, f"killed {victim} in {begun}: {log}"
        assert before.items() <= completions(work).items(), "what was published was done again"
        assert not list((work / "passes").glob("*/*/tmp")), "scratch of the killed process is left"
        shutil.rmtree(work)
        print(
            f"{killed.total()} kills, with {workers} workers, by stage: {dict(killed)}; the last one: {victim}",
            flush=True,
        )
        if killed.total() >= KILLS:
            break
    assert killed.total() >= KILLS


VICTIMS = ("all processes", "the driver", "a worker")


def seconds_of(log: str) -> dict[str, float]:
    """What each stage took, by the log."""
    return {stage: float(seconds) for stage, seconds in re.findall(r"^(\w+) +done in ([\d.]+) s", log, re.MULTILINE)}


def completions(work: Path) -> dict[Path, int]:
    """Completions of shards, with the time at which each was published."""
    return {path: path.stat().st_mtime_ns for path in work.glob("passes/*/*/done/*.json")}


def unfinished(stage: Path) -> bool:
    return any(not (folder / "record.json").exists() for folder in stage.glob("[!.]*/"))


def kill(start: list[str], stage: Path, after: float, victim: str) -> None:
    """Start a program, and kill a process of it so many seconds after a stage's folder has appeared."""
    quiet = subprocess.DEVNULL
    with subprocess.Popen(start, cwd=ROOT, stdout=quiet, stderr=quiet, start_new_session=True) as process:
        try:
            while process.poll() is None and not stage.exists():
                time.sleep(0.001)
            moment = time.monotonic() + after
            while process.poll() is None and time.monotonic() < moment:
                time.sleep(0.001)
            for number in processes(process.pid, victim):
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            process.wait(timeout=600)  # the driver that has lost a worker ends; workers end without their driver
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise


def processes(driver: int, victim: str) -> list[int]:
    """The processes to kill: of the driver and all that it started, or one of them."""
    with suppress(psutil.NoSuchProcess):
        others = [other.pid for other in psutil.Process(driver).children(recursive=True)]
        if victim == "a worker" and others:
            return others[-1:]
        return [driver, *others] if victim == "all processes" else [driver]
    return []


# ---------------------------------------------------------------------------------------------- however it is cut


def test_four_workers_publish_the_bytes_of_one(calm: Calm, tmp_path: Path) -> None:
    work = without(calm, DEDUPLICATION + SELECTION, tmp_path / "work")
    data(SMALL, calm.manifest, work, "--workers", "4")
    assert published(work) == published(calm.work)


def test_parts_of_ordinary_size_publish_the_same_tables(calm: Calm, tmp_path: Path) -> None:
    """Here all is one slice, one part and one run, and the documents are in other shards before they are assigned."""
    data(ORDINARY, calm.manifest, tmp_path / "work", "--workers", "1")
    after = ("ingest", "select", "materialize")
    assert tables(tmp_path / "work", after) == tables(calm.work, after)
    assert len(tables(calm.work, ("read",))) > len(tables(tmp_path / "work", ("read",)))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one core each."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.mark.xdist_group("ray")
def test_two_nodes_of_ray_publish_the_bytes_of_this_machine(calm: Calm, cluster: Any, tmp_path: Path) -> None:
    work = without(calm, DEDUPLICATION + SELECTION, tmp_path / "work")
    data(SMALL, calm.manifest, work, "--executor", "ray", "--address", cluster.address)
    assert published(work) == published(calm.work)
