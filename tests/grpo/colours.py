"""A task that a tiny policy half knows: after any context it boxes one of four colours, each as likely.

It is the smallest thing on which every part of training has work to do: rewards differ within groups from step one.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
import yaml
from transformers import Qwen2Config, Qwen2ForCausalLM

from pipeline.config.base import Config
from pipeline.config.task import TaskConfig
from pipeline.core.artifact import Counters, Record, Shard
from pipeline.core.parquet import write_rows
from pipeline.core.stage import Stage, run_stage
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.shards.schema import SHARDS
from pipeline.task.templates import TEMPLATES
from pipeline.task.thinking import written_response
from tests.grpo.prompts import prompts_for
from tests.stages.published import InProcess
from tests.toys import byte_level_tokenizer

COLOURS = (" red", " blue", " green", " pink")
BRIEF = TaskConfig(template="brief")


def context(index: int) -> str:
    return f"Document {index}, whose colour is"


def make_policy(folder: Path, task: TaskConfig = BRIEF, steps: int = 80) -> Path:
    """Fit a small decoder to answer with a random colour, in the form that the task asks for, in a few seconds.

    In no steps it stays as drawn.
    """
    texts = [context(i) + c for i in range(60) for c in COLOURS] + ["</think>\\boxed{}", TEMPLATES["brief"].text] * 9
    byte_level_tokenizer(folder, texts, vocab_size=330)
    tokens = CorpusTokenizer.load(folder)
    prompts = prompts_for(folder, task)
    end, closed = tokens.id_of("<|end|>"), tokens.id_of("</think>")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=tokens.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        eos_token_id=end,
        bos_token_id=None,
        pad_token_id=None,
    )
    model, rng = Qwen2ForCausalLM(config), random.Random(0)
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        rows = []
        for _ in range(16):
            written = written_response(prompts.thinking, "", rng.choice(COLOURS).encode()).decode()
            _, thought, box = written.rpartition("</think>")
            answer = [*([closed] if thought else []), *tokens.encode(box).tolist(), end]
            rows.append((prompts.ids(context(rng.randrange(60)).encode()), answer))
        width = max(len(prompt) + len(answer) for prompt, answer in rows)
        ids = torch.tensor(
            [[*prompt, *answer, *[end] * (width - len(prompt) - len(answer))] for prompt, answer in rows]
        )
        labels = torch.full_like(ids, -100)
        for row, (prompt, answer) in enumerate(rows):
            labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
        model(ids, labels=labels).loss.backward()
        adam.step()
        adam.zero_grad()
    model.save_pretrained(folder)
    return folder


class ShardsConfig(Config):
    """What training asks of the settings of `materialize`."""

    max_context_tokens: int = 64


def publish_shards(
    work: Path, policy: Path, sites: int = 30, held_out: int = 12, *, name: str = "colours", **inputs: str
) -> Record:
    """Shards of `work/<name>` as `materialize` leaves them: the colour of a document is its number's."""
    tokens = CorpusTokenizer.load(policy)

    def row(index: int, split: str) -> dict[str, object]:
        target = COLOURS[index % len(COLOURS)]
        return {
            "site_id": f"{index:032x}-5",
            "doc_id": f"{index:032x}",
            "position": 5,
            "byte_offset": len(context(index)),
            "field": "text",
            "entropy": 1.0 + index % 3,
            "token_class": "word_start",
            "nll": 1.0,
            "rank": 1,
            "band": ("easy", "hard", "hard")[index % 3],
            "split": split,
            "context": context(index).encode(),
            "target": target.encode(),
            "continuation": (target + ".").encode(),
            "token_lengths": [len(tokens.token_bytes[i]) for i in tokens.encode(target + ".")],
            "context_truncated": False,
        }

    def run(config: ShardsConfig, shard: Shard, out: Path) -> Counters:
        write_rows(out / "train.parquet", SHARDS, (row(i, "train") for i in range(sites)))
        write_rows(out / "validation.parquet", SHARDS, (row(100 + i, "validation") for i in range(held_out)))
        return {"sites": sites + held_out}

    inputs = {"sites": str(sites), "policy_tokenizer": tokens.digest} | inputs
    return run_stage(Stage("materialize", 1, run), ShardsConfig(), [Shard(0, {}, {})], inputs, work / name, InProcess())


def write_recipe(path: Path, policy: Path, **changes: object) -> Path:
    """A recipe of six steps with two phases, dynamic sampling from the third step on, and a checkpoint every second."""
    recipe = {
        "name": "colours",
        "policy": {"model": str(policy), "dtype": "float32"},
        "task": {"template": "brief"},
        "curriculum": [{"until_step": 2, "where": "band = 'hard'"}],
        "rollout": {"sites_per_step": 8, "group_size": 4, "temperature": 1.0, "max_new_tokens": 16, "batch_rows": 20},
        "objective": {"dynamic_sampling_from": 2, "dynamic_sampling_rounds": 3},
        "optimizer": {"lr": 3.0e-3, "clip_norm": 1.0, "micro_batch_tokens": 256, "warmup_steps": 2},
        "budget": {"steps": 6, "evaluate_every": 2, "save_every": 2, "save_rollouts_every": 2},
        "evaluate": {"progress_sites": 10},
    }
    path.write_text(yaml.safe_dump(recipe | changes), encoding="utf-8")
    return path


def write_manifest(path: Path, policy: Path) -> Path:
    """The manifest whose shards `publish_shards` made."""
    manifest = {
        "name": "colours",
        "corpus": {"source": "none.jsonl"},
        "proxy": {"model": str(policy)},
        "materialize": {"policy_tokenizer": str(policy)},
    }
    path.write_text(yaml.safe_dump(manifest), encoding="utf-8")
    return path


def metrics_of(run: Path) -> list[dict[str, float]]:
    """Lines of `metrics.jsonl`, without what depends on the machine's speed and memory."""
    speed = ("seconds/", "tokens/per_second", "compute/seconds", "memory/")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().split("\n")[:-1]]
    return [{k: v for k, v in row.items() if not k.startswith(speed)} for row in rows]
