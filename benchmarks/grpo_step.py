"""One GRPO step, ours against TRL's `GRPOTrainer`: rollout, update, hand-over of weights.

Both sides train the same policy on the same prompts with the same group size, new tokens a response (exactly),
rewards, loss (token mean), optimizer and no KL. Each runs in a process of its own, is warmed up, and takes its steps in
turn with the other's: medians. TRL wants an environment of its own: `pip install trl==1.16.0 torch==2.13.0`.

By default every group has unequal rewards, the most work there can be; `--informative 0.5` is what a run of the demo
has: groups of equal rewards have no gradient, and ours leaves them out of the update. Each side starts as its users
start it: `rpt train` sets the C allocator to keep freed memory; `--same-allocator` sets it for TRL too.

    python -m benchmarks.grpo_step --trl-python /path/to/env/bin/python [--contexts 64 512] [--threads 2]

Last line: JSON with seconds of the step and of its parts, processor seconds of all threads (which others on the machine
disturb less), tokens/s, peak memory, ratios, bars and whether they hold. Without --trl-python the other side is not
measured, and no bar is judged.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BARS = {64: 5.0, 512: 12.0}
"""Seconds of TRL's step over ours, by tokens of context."""
LR = 1e-5
MICRO_BATCH_TOKENS = 3072
"""Of ours: about the memory of TRL's default of 32 rows, at a tenth more time than one large micro-batch."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--policy", type=Path, default=ROOT / "demo" / "policy")
    parser.add_argument("--sites", type=int, default=32)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--new", type=int, default=48, help="tokens of a response")
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--steps", type=int, default=3, help="measured on each side, after one that warms up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trl-python", help="interpreter of an environment with TRL")
    parser.add_argument("--informative", type=float, default=1.0, help="share of groups whose rewards are unequal")
    parser.add_argument("--same-allocator", action="store_true", help="TRL with the allocator's settings of ours")
    parser.add_argument("--trl-rows", type=int, default=32, help="rows of TRL's micro-batches")
    parser.add_argument("--worker", choices=["ours", "trl"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        {"ours": ours, "trl": trl}[arguments.worker](arguments)
        return
    tokens, results, holds = arguments.sites * arguments.group * arguments.new, {}, []
    for context in arguments.contexts:
        sides = {"ours": Side("ours", sys.executable, arguments, context)}
        if arguments.trl_python:
            sides["trl"] = Side("trl", arguments.trl_python, arguments, context)
        for _ in range(arguments.steps + 1):
            for side in sides.values():
                side.step()
        found = {name: side.finish(tokens) for name, side in sides.items()}
        if "trl" in found:
            found["ratio"] = round(found["trl"]["seconds"] / found["ours"]["seconds"], 2)
            found["processor_ratio"] = round(found["trl"]["processor_seconds"] / found["ours"]["processor_seconds"], 2)
            found["memory_ratio"] = round(found["trl"]["peak_mib"] / found["ours"]["peak_mib"], 2)
            if context in BARS:
                holds.append(found["ratio"] >= BARS[context] and found["memory_ratio"] > 1)
        results[str(context)] = found
        print(f"context {context}: {json.dumps(found)}", flush=True)
    names = ("sites", "group", "new", "informative", "same_allocator", "threads", "steps", "trl_rows")
    work = {name: getattr(arguments, name) for name in names}
    if "trl" not in sides:
        print("TRL was not measured: give --trl-python")
    print(json.dumps({"work": work, "contexts": results, "bars": BARS, "holds": all(holds) if holds else None}))


class Side:
    """A worker process that takes a step whenever it is told to, and reports its parts."""

    def __init__(self, name: str, python: str, arguments: argparse.Namespace, context: int) -> None:
        command = [python, "-m", "benchmarks.grpo_step", "--worker", name, "--contexts", str(context)]
        for key in ("policy", "sites", "group", "new", "steps", "threads", "trl_rows", "informative"):
            command += [f"--{key.replace('_', '-')}", str(getattr(arguments, key))]
        environment = os.environ | {
            "OMP_NUM_THREADS": str(arguments.threads),
            "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": "",
        }
        if name == "ours" or arguments.same_allocator:  # as `rpt train` sets them
            environment |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            env=environment,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._reports: list[dict[str, float]] = []

    def step(self) -> None:
        """Let the worker take one step."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            sys.exit(f"the worker ended:\n{self._errors.read()[-4000:]}")
        self._reports.append(json.loads(line))

    def finish(self, tokens: int) -> dict[str, Any]:
        """Medians over the steps after the first; seconds by part."""
        self._process.communicate("")
        measured = self._reports[1:]
        median = {key: round(statistics.median(report[key] for report in measured), 4) for key in measured[0]}
        seconds, processor, peak = (median.pop(key) for key in ("step", "processor", "peak_mib"))
        speed = round(tokens / seconds)
        return {
            "seconds": seconds,
            "processor_seconds": processor,
            "parts": median,
            "tokens/s": speed,
            "peak_mib": round(peak),
        }


def serve(step: Callable[[], dict[str, float]]) -> None:
    """Take a step a line of standard input; report it as a line of JSON."""
    out = sys.stdout
    for _ in sys.stdin:
        with redirect_stdout(sys.stderr):
            begin, processor = time.perf_counter(), time.process_time()
            parts = step()
            report = {"step": time.perf_counter() - begin, "processor": time.process_time() - processor, **parts}
            report["peak_mib"] = peak_mib()
        print(json.dumps(report), file=out, flush=True)


def peak_mib() -> float:
    """Most memory this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def words(tokenizer: Any) -> list[str]:
    """Words with a space before them that are one token each, wherever they stand."""
    return sorted(
        text
        for text in (tokenizer.decode([i]) for i in range(len(tokenizer)))
        if text[:1] == " " and text[1:].isalpha() and len(tokenizer.encode(text, add_special_tokens=False)) == 1
    )


def prompts_of(tokenizer: Any, arguments: argparse.Namespace) -> list[str]:
    """As many texts as there are sites, of exactly so many tokens."""
    rng, vocabulary, context = random.Random(0), words(tokenizer), arguments.contexts[0]
    texts = ["".join(rng.choices(vocabulary, k=context)) for _ in range(arguments.sites)]
    assert all(len(tokenizer.encode(text, add_special_tokens=False)) == context for text in texts)
    return texts


def reward(index: int, arguments: argparse.Namespace) -> float:
    """Of a response, counted over groups in order: unequal in the first groups, 0 in the others."""
    group, sample = divmod(index, arguments.group)
    return float(sample % 4 == 0 and group < arguments.informative * arguments.sites)


# ------------------------------------------------------------------------------------------------------- ours


def ours(arguments: argparse.Namespace) -> None:
    """The step of `stages/train.py`, with DeepSpeed ZeRO-3 as it is the default there."""
    from pipeline.grpo import ranks

    ranks.prepare_environment()
    import numpy as np
    import torch
    from transformers import AutoTokenizer

    from pipeline.core.config import ObjectiveConfig, OptimizerConfig, PolicyConfig, Recipe, RolloutConfig
    from pipeline.grpo import engine as ds
    from pipeline.grpo.advantage import group_std
    from pipeline.grpo.batch import micro_batches
    from pipeline.grpo.metrics import Stopwatch
    from pipeline.grpo.objective import Objective
    from pipeline.grpo.sampler import Sampler
    from pipeline.grpo.topology import read_topology
    from pipeline.grpo.types import Group
    from pipeline.scoring.tokens import CorpusTokenizer

    torch.set_num_threads(arguments.threads)
    ds.start()
    recipe = Recipe(
        name="benchmark",
        policy=PolicyConfig(model=str(arguments.policy), dtype="float32"),
        rollout=RolloutConfig(temperature=1.0, max_new_tokens=arguments.new, group_size=arguments.group),
        objective=ObjectiveConfig(loss="dapo"),
        optimizer=OptimizerConfig(lr=LR, clip_norm=1.0, micro_batch_tokens=MICRO_BATCH_TOKENS),
    )
    engine = ds.build(
        arguments.policy, recipe.policy, recipe.optimizer, read_topology(ROOT / "deepspeed_configs" / "zero3_cpu.json")
    )
    tokenizer = AutoTokenizer.from_pretrained(arguments.policy)
    prompts = [tokenizer.encode(text, add_special_tokens=False) for text in prompts_of(tokenizer, arguments)]
    sampler = Sampler.load(arguments.policy, CorpusTokenizer.load(arguments.policy))
    sampler.eos_ids = frozenset()  # every response takes all its room: the work is the same
    rewards_R = [reward(i, arguments) for i in range(arguments.sites * arguments.group)]
    advantages_PG = group_std(np.array(rewards_R).reshape(arguments.sites, arguments.group)).tolist()
    rng, objective = random.Random(0), Objective.of(recipe)

    def step() -> dict[str, float]:
        clock = Stopwatch()
        with clock("rollout"):
            seeds = [rng.randrange(1 << 60) for _ in range(arguments.sites * arguments.group)]
            responses = sampler.sample(prompts, arguments.group, 1.0, arguments.new, seeds)
        assert all(len(response.ids) == arguments.new for response in responses)
        with clock("update"):
            groups = [
                Group(
                    tuple(prompt), tuple(responses[p * arguments.group : (p + 1) * arguments.group]), tuple(advantages)
                )
                for p, (prompt, advantages) in enumerate(zip(prompts, advantages_PG, strict=True))
                if any(advantages)
            ]
            ds.update(engine, micro_batches(groups, recipe.optimizer.micro_batch_tokens), objective, LR)
        with clock("sync"):
            sampler.load_weights(ds.gathered_weights(engine))
        return {name.removeprefix("seconds/"): seconds for name, seconds in clock.seconds().items()}

    serve(step)
    ds.close(engine)


# -------------------------------------------------------------------------------------------------------- TRL


def trl(arguments: argparse.Namespace) -> None:
    """`GRPOTrainer` with its built-in generation, on the CPU."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.policy)
    texts = prompts_of(tokenizer, arguments)
    model = AutoModelForCausalLM.from_pretrained(arguments.policy, dtype=torch.float32)
    rows = arguments.sites * arguments.group
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        learning_rate=LR,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        weight_decay=0.01,
        per_device_train_batch_size=arguments.trl_rows,
        gradient_accumulation_steps=rows // arguments.trl_rows,
        gradient_checkpointing=False,
        num_generations=arguments.group,
        max_completion_length=arguments.new,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        generation_kwargs={"min_new_tokens": arguments.new},
        beta=0.0,
        loss_type="dapo",
        max_steps=arguments.steps + 1,
        num_train_epochs=1,
        logging_steps=1000,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    spent: dict[str, float] = {}
    seen: list[int] = []

    def rewards(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        seen.extend(len(ids) for ids in completion_ids)
        return [reward(i, arguments) for i in range(len(completions))]

    class Turns(TrainerCallback):
        """Waits for its turn before a step and reports after it."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not sys.stdin.readline():
                os._exit(0)
            spent.clear()
            self.begin, self.processor = time.perf_counter(), time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            step = time.perf_counter() - self.begin
            assert seen[-rows:] == [arguments.new] * rows, "the same work"
            report = {
                "step": step,
                "processor": time.process_time() - self.processor,
                "rollout": spent["rollout"],
                "update": step - spent["rollout"],
                "peak_mib": peak_mib(),
            }
            print(json.dumps(report), file=out, flush=True)

    out = sys.stdout
    sys.stdout = sys.stderr
    trainer = GRPOTrainer(
        model=model,
        args=config,
        reward_funcs=rewards,
        train_dataset=Dataset.from_dict({"prompt": texts * (arguments.steps + 2)}),
        processing_class=tokenizer,
        callbacks=[Turns()],
    )
    generate = trainer._generate

    def timed(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        try:
            return generate(*args, **kwargs)
        finally:
            spent["rollout"] = spent.get("rollout", 0.0) + time.perf_counter() - begin

    trainer._generate = timed
    trainer.train()


if __name__ == "__main__":
    main()
