"""The probe before the first step, end to end: a policy that can learn, and one that cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from rich.cells import cell_len

from pipeline.config.errors import UserError
from tests.grpo.colours import make_policy, metrics_of, publish_shards, write_manifest, write_recipe

ROOT = Path(__file__).parent.parent.parent
STEP = ("budget.steps=1", "budget.save_rollouts_every=1")
HOPELESS = "rollout.max_new_tokens=3"
"""Too few for a box, so that every response is cut."""


@dataclass
class World:
    folder: Path

    def train(self, run: str, *settings: str, ranks: int = 1, code: int = 0) -> str:
        arguments = ["recipe.yaml", "--work", "work", "--run", run, *(w for s in settings for w in ("--set", s))]
        done = subprocess.run(
            [sys.executable, "-m", "commands.cli", "train", *arguments, "--ranks", str(ranks)],
            cwd=self.folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    policy = make_policy(folder / "policy")
    publish_shards(folder / "work", policy)
    write_recipe(folder / "recipe.yaml", policy, data="manifest.yaml")
    write_manifest(folder / "manifest.yaml", policy)
    return World(folder)


def test_a_policy_that_can_learn_is_probed_once_and_takes_the_same_steps(world: World) -> None:
    said = world.train("probed", *STEP)
    world.train("unprobed", *STEP, "budget.stop.probe_sites=null")
    probed, unprobed = metrics_of(world.folder / "probed"), metrics_of(world.folder / "unprobed")
    found = {name: value for name, value in probed[0].items() if name.startswith("probe/")}
    assert found["probe/groups/sampled"] == 20, "all sites of the first phase, which are fewer than 64"
    assert sum(found[f"probe/reward/{reason}"] for reason in ("match", "mismatch")) > 40, "it boxes colours"
    assert 0.1 < found["probe/groups/zero_variance"] < 0.6, "0.32 is expected"
    assert [row | found if row["step"] == 0 else row for row in unprobed] == probed, "bit for bit"
    rollouts = [pl.read_parquet(world.folder / run / "rollouts") for run in ("probed", "unprobed")]
    assert rollouts[0].equals(rollouts[1]), "its draws are not those of the steps"
    assert "groups of 4 have a gradient" in said and "warning" not in said
    stored = json.loads((world.folder / "probed" / "probe.json").read_text())
    assert stored["verdict"]["learns"] == "yes" and stored["metrics"].items() >= found.items()

    resumed = world.train("probed", "budget.steps=2")  # the probe does not change the run's identity
    assert "resumes after step 1" in resumed and "probe:" not in resumed


def test_a_policy_that_cannot_learn_stops_before_the_first_step_on_one_screen(world: World) -> None:
    said = world.train("hopeless", HOPELESS, code=UserError.exit_code)
    (row,) = metrics_of(world.folder / "hopeless")
    assert row["step"] == 0 and row["probe/reward/unfinished"] == 80 and row["probe/groups/zero_variance"] == 1
    assert json.loads((world.folder / "hopeless" / "probe.json").read_text())["verdict"]["learns"] == "no"
    assert not (world.folder / "hopeless" / "checkpoints").exists()
    screen = said[said.index("train        probe:") :].splitlines()
    assert sum(-(-cell_len(line) // 100) for line in screen) <= 24, said
    assert [line.split()[1] for line in screen].count("truth") == 3
    assert len(screen) == 2 + 3 * 3 + 1, "two lines of figures, three short responses, the error"
    error = screen[-1]
    assert error.startswith("error: nothing can be learned, because none of 20 groups has unequal rewards: ")
    assert "80 of 80 were cut at 3 tokens" in error and "raise `rollout.max_new_tokens`" in error

    two = world.train("two-ranks", HOPELESS, ranks=2, code=1)  # the launcher's own code
    assert "none of 20 groups has unequal rewards" in two
    assert metrics_of(world.folder / "two-ranks") == [row], "the ranks divide the probe and decide together"
    world.train("hopeless", HOPELESS, *STEP, "budget.stop.probe_sites=null")
    assert [row["step"] for row in metrics_of(world.folder / "hopeless")] == [0, 1], "who wants to, trains in vain"
