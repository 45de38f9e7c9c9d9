"""Training end to end: real policy, shards and DeepSpeed, in processes that are interrupted in every way."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.config.errors import UserError
from pipeline.config.loading import load
from pipeline.config.recipe import Recipe
from pipeline.core.artifact import Record, current_record
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.rollout.rollouts import ROLLOUTS
from pipeline.grpo.rollout.sampler_choice import with_sampler
from pipeline.grpo.rollout.thinking_choice import with_thinking
from pipeline.grpo.run.run_folder import policy_tokenizer
from tests.grpo.colours import make_policy, metrics_of, publish_shards, write_manifest, write_recipe
from tests.toys import byte_level_tokenizer

ROOT = Path(__file__).parent.parent.parent


@dataclass
class World:
    folder: Path

    @property
    def shards(self) -> Record:
        return current_record(self.folder / "work" / "colours", "materialize")

    def start(self, run: str, *more: str, ranks: int = 1) -> subprocess.Popen[str]:
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "--module", "--"]
        return self._start(*(launcher if ranks > 1 else []), "stages.train", self.spec(run, *more))

    def start_command(self, run: str, ranks: int) -> subprocess.Popen[str]:
        return self._start(*self.command(run), "--ranks", str(ranks))

    def start_nodes(self, run: str, nodes: int, *more: str) -> list[subprocess.Popen[str]]:
        """As on several machines: a launcher on each, of one rank, that find one another by address."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        launcher = ["torch.distributed.run", f"--nnodes={nodes}", "--nproc-per-node=1", "--master-addr=127.0.0.1"]
        launcher += [f"--master-port={port}"]
        page = ["--module", "--", "stages.train", self.spec(run, *more)]
        return [self._start(*launcher, f"--node-rank={node}", *page) for node in range(nodes)]

    def command(self, run: str) -> list[str]:
        return ["commands.cli", "train", "recipe.yaml", "--work", "work", "--run", run]

    def spec(self, run: str, *more: str) -> str:
        """Writes the specification of a run and returns its file."""
        self.finish(self._start(*self.command(run), *more, "--write-spec", f"{run}.json"))
        return f"{run}.json"

    def _start(self, *module: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", *module],
            cwd=self.folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, process: subprocess.Popen[str], code: int = 0) -> str:
        output, _ = process.communicate(timeout=500)
        assert process.returncode == code, output
        return output

    def wait_for_step(self, process: subprocess.Popen[str], run: str, step: int) -> None:
        metrics = self.folder / run / "metrics.jsonl"
        while not (metrics.exists() and any(row["step"] >= step for row in metrics_of(metrics.parent))):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One run undisturbed; one on two ranks whose launcher was killed, which went on as three and, told to stop, as
    two nodes; one that was told to stop and killed twice."""
    folder = tmp_path_factory.mktemp("world")
    world, policy = World(folder), make_policy(folder / "policy")
    publish_shards(folder / "work", policy)
    optimizer = {"lr": 3.0e-3, "clip_norm": 1.0, "micro_batch_tokens": 256, "warmup_steps": 2, "updates_per_step": 2}
    write_recipe(folder / "recipe.yaml", policy, data="manifest.yaml", optimizer=optimizer)
    write_manifest(folder / "manifest.yaml", policy)

    undisturbed, two_ranks = world.start("undisturbed"), world.start("two-ranks", ranks=2)
    world.wait_for_step(two_ranks, "two-ranks", 3)
    ranks = psutil.Process(two_ranks.pid).children(recursive=True)
    two_ranks.kill()  # the launcher alone: its ranks must follow, or two runs would write into one folder
    psutil.wait_procs(ranks)
    metrics = world.folder / "two-ranks" / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns
    three_ranks = world.start_command("two-ranks", ranks=3)
    while metrics.stat().st_mtime_ns == before and three_ranks.poll() is None:
        time.sleep(0.02)  # until what the killed run wrote is no longer taken for the steps of this one
    world.wait_for_step(three_ranks, "two-ranks", 4)
    three_ranks.send_signal(signal.SIGTERM)  # to `rpt` alone, as a scheduler does
    assert "run the same command again" in world.finish(three_ranks)
    two_nodes = world.start_nodes(
        "two-ranks", 2, "--set", "rollout.batch_rows=5", "--set", "policy.gradient_checkpointing=true"
    )
    process = world.start("disturbed")
    world.wait_for_step(process, "disturbed", 0)
    process.send_signal(signal.SIGTERM)
    assert "run the same command again" in world.finish(process)
    for step in (3, 5):
        process = world.start("disturbed")
        world.wait_for_step(process, "disturbed", step)
        process.kill()
        world.finish(process, -signal.SIGKILL)
        half = folder / "disturbed" / "checkpoints" / f"step-{step + 1:06d}"
        half.mkdir(exist_ok=True)
        (half / "zero_pp_rank_0_mp_rank_00_model_states.pt").write_bytes(b"half of a checkpoint")
    assert "resumes after step 4" in world.finish(world.start("disturbed"))
    world.finish(undisturbed)
    said = " ".join("".join([world.finish(node) for node in two_nodes]).split())
    assert "resumes after step" in said
    assert (
        "execution.policy.gradient_checkpointing: False → True; execution.rollout.batch_rows: 20 → 5; ranks: 3 → 2"
        in said
    )
    return world


def test_a_run_that_was_stopped_and_killed_takes_the_same_steps(world: World) -> None:
    expected, found = metrics_of(world.folder / "undisturbed"), metrics_of(world.folder / "disturbed")
    assert [row["step"] for row in expected] == list(range(7))
    assert found == expected, "bit for bit"
    assert sum(row.get("tokens/trained", 0) for row in expected) > 300
    for file in sorted((world.folder / "undisturbed" / "rollouts").iterdir()):
        assert file.read_bytes() == (world.folder / "disturbed" / "rollouts" / file.name).read_bytes()
    trained = [world.folder / run / "policy" / "model.safetensors" for run in ("undisturbed", "disturbed")]
    assert trained[0].read_bytes() == trained[1].read_bytes()


def test_any_number_of_ranks_takes_the_steps_of_one(world: World) -> None:
    one, two = metrics_of(world.folder / "undisturbed"), metrics_of(world.folder / "two-ranks")
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-6), f"step {a['step']}: {name}"
    columns = ["site_id", "sample", "response", "reward"]
    for file in (world.folder / "undisturbed" / "rollouts").iterdir():
        other = world.folder / "two-ranks" / "rollouts" / file.name
        rows = [pl.read_parquet(f, columns=columns).sort("site_id", "sample") for f in (file, other)]
        assert rows[0].equals(rows[1]), "the same, in the order of the ranks that sampled them"


def test_the_recipe_was_followed(world: World) -> None:
    run, recipe = world.folder / "undisturbed", load(Recipe, world.folder / "recipe.yaml")
    rows = metrics_of(run)
    assert [row["lr"] for row in rows[1:]] == [0.0015, *[0.003] * 5], "warm-up"
    assert [row["groups/sampled"] for row in rows[1:3]] == [8, 8]
    assert all(row["groups/sampled"] in (8, 16, 24) for row in rows[3:]), "up to three rounds"
    assert any(row["groups/sampled"] > 8 for row in rows[3:]), (
        "dynamic sampling draws again"
    )  # all but 1 in 20 steps do
    assert ["eval/hard/reasoning" in row for row in rows] == [True, False, True, False, True, False, True]
    first, second, third = (pq.read_table(file) for file in sorted((run / "rollouts").iterdir()))
    band = {f"{i:032x}-5": ("easy", "hard", "hard")[i % 3] for i in range(30)}
    assert {band[site] for site in first["site_id"].to_pylist()} == {"hard"}, "first phase"
    assert {band[site] for site in second["site_id"].to_pylist()} == {"easy", "hard"}
    assert third.schema.equals(ROLLOUTS)
    assert all(band[row["site_id"]] == row["band"] for row in third.select(["site_id", "band"]).to_pylist())
    assert len(set(zip(second["site_id"].to_pylist(), second["sample"].to_pylist(), strict=True))) == second.num_rows
    policy = world.folder / "policy"
    resolved = with_thinking(with_sampler(recipe, None), policy, CorpusTokenizer.load(policy), "train")
    assert load(Recipe, run / "recipe.yaml") == resolved, "`auto` is recorded as what it became"
    assert (resolved.task.thinking, resolved.task.template) == ("tags", "brief")
    about = json.loads((run / "run.json").read_text())
    assert about["base"]["model"] == recipe.policy.model and about["shards"]["content"] == world.shards.content
    assert about["versions"]["deepspeed"]
    assert list(run.glob("events.out.tfevents.*"))
    kept = {int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*")}
    measured = {row["step"]: row["eval/easy/reasoning"] for row in rows[2::2]}
    assert kept == {4, 6, max(measured, key=measured.__getitem__)}, "the last two and the best"


def test_every_step_makes_two_updates_on_what_it_sampled(world: World) -> None:
    rows = metrics_of(world.folder / "undisturbed")[1:]
    assert all({"clip/low", "clip/high"} <= row.keys() for row in rows), "old log-probabilities were kept"
    assert any(row["clip/high"] for row in rows) or any(row["clip/low"] for row in rows), "ratios reached a bound"
    assert all(row["sampler/logprob_gap"] < 1e-4 for row in rows), "of the policy that sampled, not the updated one"


def test_a_step_trains_on_at_most_as_many_groups_as_asked_for(world: World) -> None:
    rollouts = pl.read_parquet(world.folder / "undisturbed" / "rollouts" / "step-000004.parquet")
    drawn = rollouts.with_columns(group=pl.int_range(pl.len()) // 4).group_by("group", maintain_order=True)
    groups = drawn.agg(pl.col("reward").n_unique() > 1, pl.col("length").sum())
    informative = groups.filter("reward")["length"].to_list()
    trained = metrics_of(world.folder / "undisturbed")[5]["tokens/trained"]
    assert trained == sum(informative[:8]) and len(informative) >= 8


def test_a_complete_run_says_so_and_does_nothing(world: World) -> None:
    before = (world.folder / "undisturbed" / "metrics.jsonl").stat().st_mtime_ns
    assert "up to date" in world.finish(world.start("undisturbed"))
    assert (world.folder / "undisturbed" / "metrics.jsonl").stat().st_mtime_ns == before


def test_a_resume_with_another_recipe_or_other_shards_is_refused(world: World) -> None:
    changed = world.start("undisturbed", "--set", "optimizer.lr=0.1", "--set", "rollout.group_size=8")
    output = world.finish(changed, UserError.exit_code)
    assert "recipe.optimizer.lr: 0.003 → 0.1; recipe.rollout.group_size: 4 → 8" in " ".join(output.split())
    original = world.shards.fingerprint
    publish_shards(world.folder / "work", world.folder / "policy", sites=31)
    output = world.finish(world.start("undisturbed"), UserError.exit_code)
    changed = output.partition("the configuration changed: ")[2]
    assert changed.startswith("shards: ") and "recipe" not in changed.partition("shards: ")[0]
    (world.folder / "work" / "colours" / "materialize" / "current").write_text(original)


def test_the_trained_policy_loads_as_it_is(world: World) -> None:
    folder = world.folder / "undisturbed" / "policy"
    before = AutoModelForCausalLM.from_pretrained(world.folder / "policy")
    after = AutoModelForCausalLM.from_pretrained(folder)
    changed = [not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert all(changed)
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<|end|>"
    assert after.generation_config.eos_token_id == before.generation_config.eos_token_id


def test_shards_of_another_tokenizer_are_refused(world: World, tmp_path: Path) -> None:
    other = byte_level_tokenizer(tmp_path / "other", ["something else"])
    with pytest.raises(UserError, match="another tokenizer"):
        policy_tokenizer(other, world.shards)
