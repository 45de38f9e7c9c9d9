"""Several ranks of one machine, as `rpt train --ranks 2` starts them: who can reach them, and how they are ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest

from pipeline.grpo.run.run_folder import latest_checkpoint, read_state
from tests.grpo.colours import make_policy, metrics_of, publish_shards, write_manifest, write_recipe

ROOT = Path(__file__).parent.parent.parent
LAUNCHER_WAITS = 30
"""Seconds after which torch's launcher kills the ranks, once it was told to end them."""


@dataclass
class Ended:
    listening: list[str]
    """Addresses at which any of the run's processes listened."""
    code: int
    output: str
    run: Path


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    """A run of two ranks whose process group was sent SIGTERM, in a step that took longer than the launcher waits."""
    folder = tmp_path_factory.mktemp("ranks")
    policy = make_policy(folder / "policy")
    publish_shards(folder / "work", policy)
    write_recipe(folder / "recipe.yaml", policy, data="manifest.yaml")
    write_manifest(folder / "manifest.yaml", policy)
    command = [sys.executable, "-m", "commands.cli", "train", "recipe.yaml", "--ranks", "2", "--run", "run"]
    process = subprocess.Popen(
        [*command, "--set", "budget.steps=10000", "--set", "budget.save_every=10000"],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    metrics = folder / "run" / "metrics.jsonl"
    while not (metrics.exists() and any(row["step"] >= 1 for row in metrics_of(metrics.parent))):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    sockets = [each for one in everyone for each in one.net_connections("inet") if each.status == psutil.CONN_LISTEN]
    ranks = [
        one for one in everyone if "stages.train" in one.cmdline() and "torch.distributed.run" not in one.cmdline()
    ]
    assert len(ranks) == 2
    for rank in ranks:
        rank.suspend()  # stands for a step that goes on and on
    os.killpg(process.pid, signal.SIGTERM)
    time.sleep(LAUNCHER_WAITS + 3)
    for rank in ranks:
        if rank.is_running():
            rank.resume()
    output, _ = process.communicate(timeout=300)
    yield Ended([each.laddr.ip for each in sockets], process.returncode, output, folder / "run")


@pytest.mark.slow
def test_a_group_that_is_asked_to_end_saves_after_its_step_however_long_that_takes(ended: Ended) -> None:
    assert ended.code == 0, ended.output
    assert "run the same command again" in ended.output
    checkpoint = latest_checkpoint(ended.run)
    assert checkpoint and read_state(checkpoint)["step"] == metrics_of(ended.run)[-1]["step"] >= 1


@pytest.mark.slow
def test_ranks_of_one_machine_listen_on_loopback_only(ended: Ended) -> None:
    assert ended.listening, "the ranks talk over sockets"
    assert {ip for ip in ended.listening if not ip_address(ip).is_loopback} == set()
