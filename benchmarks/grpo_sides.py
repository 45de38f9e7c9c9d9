"""The two sides that `benchmarks.grpo_step` compares, each in a process that takes a step per line of its input.

TRL's runs in an environment of its own, without this repository's packages: imports are where they are used.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

LR = 1e-5


class Parts:
    """Measures the seconds of functions, by part of a step."""

    def __init__(self, device: str) -> None:
        self.seconds: dict[str, float] = {}
        self.device = device

    def clock(self) -> float:
        """Seconds; on a GPU, when it has done all it was asked for."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, counted for `part`; what it calls of another part is counted there as well."""

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            begin = self.clock()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] = self.seconds.get(part, 0.0) + self.clock() - begin

        return counted

    def of(self, step: float) -> dict[str, float]:
        """Return the parts of a step of so many seconds, and reset."""
        parts, self.seconds = self.seconds, {}
        return parts | {"rest": step - sum(parts.values())}


def serve(step: Callable[[], None], parts: Parts) -> None:
    """Take one step per line of standard input and report it as JSON."""
    out = sys.stdout
    for _ in sys.stdin:
        with redirect_stdout(sys.stderr):
            begin, processor = parts.clock(), time.process_time()
            step()
            seconds = parts.clock() - begin
            report = {"step": seconds, "processor": time.process_time() - processor, **parts.of(seconds)}
            report["peak_mib"] = peak_mib(parts)
        print(json.dumps(report), file=out, flush=True)


def peak_mib(parts: Parts) -> float:
    """Return the peak memory of this process, or of its tensors on a GPU."""
    if parts.device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def words(tokenizer: Any) -> list[str]:
    """Words with a space before them that are one token each, wherever they stand."""
    return sorted(
        text
        for text in (tokenizer.decode([i]) for i in range(len(tokenizer)))
        if text[:1] == " " and text[1:].isalpha() and len(tokenizer.encode(text, add_special_tokens=False)) == 1
    )


def prompts_of(tokenizer: Any, arguments: argparse.Namespace) -> list[str]:
    """Return one text per site, of exactly so many tokens."""
    rng, vocabulary, context = random.Random(0), words(tokenizer), arguments.contexts[0]
    texts = ["".join(rng.choices(vocabulary, k=context)) for _ in range(arguments.sites)]
    assert all(len(tokenizer.encode(text, add_special_tokens=False)) == context for text in texts)
    return texts


def reward(index: int, arguments: argparse.Namespace) -> float:
    """Return the reward of a response, counted over groups in order: unequal in the first groups, 0 in the others."""
    group, sample = divmod(index, arguments.group)
    return float(sample % 4 == 0 and group < arguments.informative * arguments.sites)


def ours(arguments: argparse.Namespace) -> None:
    """The step of `stages/train.py`, with DeepSpeed ZeRO-3 as it is the default there."""
    from pipeline.grpo.policy import distributed

    distributed.prepare_environment()
    import numpy as np
    import torch
    from transformers import AutoTokenizer

    from pipeline.config.recipe import PolicyConfig, Recipe
    from pipeline.config.training import ObjectiveConfig, OptimizerConfig, RolloutConfig
    from pipeline.core.tokenizer import CorpusTokenizer
    from pipeline.grpo.algorithm.advantage import group_std
    from pipeline.grpo.algorithm.objective import Objective
    from pipeline.grpo.model.batch import micro_batches
    from pipeline.grpo.policy import engine as ds
    from pipeline.grpo.policy.deepspeed_config import choose_config
    from pipeline.grpo.policy.update import MiniBatch, update
    from pipeline.grpo.rollout.sampler import Sampler
    from pipeline.grpo.types import Group, SamplingRequest

    torch.set_num_threads(arguments.threads)
    ds.start()
    recipe = Recipe(
        name="benchmark",
        policy=PolicyConfig(model=str(arguments.policy), dtype=arguments.dtype),
        rollout=RolloutConfig(temperature=1.0, max_new_tokens=arguments.new, group_size=arguments.group),
        objective=ObjectiveConfig(loss="dapo"),
        optimizer=OptimizerConfig(lr=LR, clip_norm=1.0, micro_batch_tokens=arguments.micro_batch_tokens),
    )
    topology = choose_config(arguments.deepspeed_config, on_gpu=distributed.on_gpu())
    engine = ds.build(arguments.policy, recipe.policy, recipe.optimizer, topology)
    tokenizer = AutoTokenizer.from_pretrained(arguments.policy)
    prompts = [tokenizer.encode(text, add_special_tokens=False) for text in prompts_of(tokenizer, arguments)]
    tokens, dtype = CorpusTokenizer.load(arguments.policy), getattr(torch, arguments.dtype)
    sampler = Sampler.load(arguments.policy, tokens, dtype=dtype, device=engine.device)
    sampler.eos_ids = frozenset()  # every response takes all its room: the work is the same
    rewards_R = [reward(i, arguments) for i in range(arguments.sites * arguments.group)]
    advantages_PG = group_std(np.array(rewards_R).reshape(arguments.sites, arguments.group)).tolist()
    rng, objective = random.Random(0), Objective.of(recipe)

    parts = Parts(arguments.device)
    sample, hand_over = parts.timed("rollout", sampler.sample), parts.timed("hand-over", sampler.load_weights)
    for part, name in {"forward": "forward", "backward": "backward", "optimizer": "step"}.items():
        setattr(engine, name, parts.timed(part, getattr(engine, name)))

    def step() -> None:
        seeds = [rng.randrange(1 << 60) for _ in range(arguments.sites * arguments.group)]
        responses = sample(SamplingRequest(prompts, arguments.group, 1.0, arguments.new, seeds))
        assert all(len(response.ids) == arguments.new for response in responses)
        groups = [
            Group(tuple(prompt), tuple(responses[p * arguments.group : (p + 1) * arguments.group]), tuple(advantages))
            for p, (prompt, advantages) in enumerate(zip(prompts, advantages_PG, strict=True))
            if any(advantages)
        ]
        update(engine, [MiniBatch(micro_batches(groups, recipe.optimizer.micro_batch_tokens))], objective, LR)
        hand_over(ds.gathered_weights(engine))

    serve(step, parts)
    ds.close(engine)


def trl(arguments: argparse.Namespace) -> None:
    """`GRPOTrainer` with its built-in generation."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOTrainer

    torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.policy)
    texts = prompts_of(tokenizer, arguments)
    model = AutoModelForCausalLM.from_pretrained(arguments.policy, dtype=getattr(torch, arguments.dtype))
    parts, out = Parts(arguments.device), sys.stdout
    seen, rows = list[int](), arguments.sites * arguments.group

    def rewards(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        seen.extend(len(ids) for ids in completion_ids)
        return [reward(i, arguments) for i in range(len(completions))]

    class Turns(TrainerCallback):
        """Waits for its turn before a step and reports after it."""

        def on_train_begin(self, *_: Any, optimizer: Any, **__: Any) -> None:
            optimizer.step = parts.timed("optimizer", optimizer.step)

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not sys.stdin.readline():
                os._exit(0)
            parts.seconds.clear()
            self.begin, self.processor = parts.clock(), time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            step = parts.clock() - self.begin
            assert seen[-rows:] == [arguments.new] * rows, "the same work"
            report = {
                "step": step,
                "processor": time.process_time() - self.processor,
                **parts.of(step),
                "peak_mib": peak_mib(parts),
            }
            print(json.dumps(report), file=out, flush=True)

    sys.stdout = sys.stderr
    trainer = GRPOTrainer(
        model=model,
        args=trl_config(arguments),
        reward_funcs=rewards,
        train_dataset=Dataset.from_dict({"prompt": texts * (arguments.steps + 2)}),
        processing_class=tokenizer,
        callbacks=[Turns()],
    )
    trainer._generate = parts.timed("rollout", trainer._generate)
    trainer._compute_loss = parts.timed("forward", trainer._compute_loss)
    trainer.accelerator.backward = parts.timed("backward", trainer.accelerator.backward)
    trainer.train()


def trl_config(arguments: argparse.Namespace) -> Any:
    """The fastest settings of TRL that we know of, without those that `--trl-own` leaves at its defaults."""
    from trl import GRPOConfig

    rows = arguments.sites * arguments.group
    return GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=arguments.device == "cpu",
        bf16="bf16" in arguments.trl_own or arguments.dtype == "bfloat16",
        learning_rate=LR,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        weight_decay=0.01,
        per_device_train_batch_size=arguments.trl_rows,
        gradient_accumulation_steps=rows // arguments.trl_rows,
        gradient_checkpointing="checkpointing" in arguments.trl_own,
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
