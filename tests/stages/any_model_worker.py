"""Trains tiny random policies of any family in one process: a step, a resumed step, the export, and what it reloads as.

Usage: python -m tests.stages.any_model_worker FOLDER FAMILY:FORM … ; prints a JSON object per policy.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from pipeline.config.recipe import Recipe
from pipeline.config.task import TaskConfig
from pipeline.core.artifact import current_record
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.policy import distributed

distributed.prepare_environment()

from pipeline.grpo.policy import engine as ds  # noqa: E402
from pipeline.grpo.policy.agreement import verify  # noqa: E402
from pipeline.grpo.policy.deepspeed_config import choose_config  # noqa: E402
from pipeline.grpo.rollout.prompt import kept_prompt  # noqa: E402
from pipeline.grpo.rollout.response_ends import response_ends  # noqa: E402
from pipeline.grpo.run.run_folder import latest_checkpoint  # noqa: E402
from stages.train import train  # noqa: E402
from tests.grpo import colours  # noqa: E402
from tests.grpo.colours import COLOURS, context, publish_shards  # noqa: E402
from tests.scoring.test_architectures import small  # noqa: E402
from tests.toys import byte_level_tokenizer  # noqa: E402

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPLITS = CHAT.replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] }}{# after <think> #}")
FORMS = {
    # name: chat template, whether the marks are tokens
    "instruct": (CHAT, False),
    "instruct-marks": (CHAT, True),
    "instruct-marks-in-template": (SPLITS, False),
    "base": (None, False),
    "base-marks": (None, True),
}


def with_tokenizer(folder: Path, chat: str | None, marks: bool) -> Path:
    byte_level_tokenizer(folder, [context(i) + c for i in range(60) for c in COLOURS], 330, marks=marks)
    if chat:
        (folder / "chat_template.jinja").write_text(chat, encoding="utf-8")
    return folder


AT_ONCE = TaskConfig.model_validate({"template": "brief", "thinking": "none", "prefill": "\\boxed{"})


def make_policy(folder: Path, family: str, form: str) -> Path:
    """A random model, or with the family `colours` one that half knows the answers."""
    if family == "colours":
        return colours.make_policy(folder, AT_ONCE)
    with_tokenizer(folder, *FORMS[form])
    tokens = CorpusTokenizer.load(folder)
    ends = {"eos_token_id": tokens.id_of("<|end|>"), "bos_token_id": None, "pad_token_id": None}
    sizes = {"n_positions": 512, "max_position_embeddings": 512, "sliding_window": 16, "final_logit_softcapping": None}
    small(family, vocab_size=tokens.vocab_size, **sizes, **ends).save_pretrained(folder)
    return folder


def recipe_of(policy: Path, family: str, steps: int) -> Recipe:
    """The gain of a thought is a reward that differs between any two responses of a random model."""
    task: dict[str, Any] = {"template": "v4", "reward": "information_gain"}
    rollout = {"sites_per_step": 2, "group_size": 2, "max_new_tokens": 6}
    if family == "colours":
        task, rollout = AT_ONCE.model_dump(), {"sites_per_step": 8, "group_size": 8, "max_new_tokens": 16}
    return Recipe.model_validate(
        {
            "name": "any",
            "policy": {"model": str(policy), "dtype": "float32"},
            "task": task,
            "rollout": rollout | {"temperature": 1.0},
            "optimizer": {"lr": 1.0e-2, "clip_norm": 1.0},
            "budget": {"steps": steps, "evaluate_every": 9, "save_every": 1, "save_rollouts_every": 1},
            "evaluate": {"progress_sites": 2},
        }
    )


def logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits


def begin(folder: Path, family: str, form: str) -> dict[str, Any]:
    """Make a policy and its shards, and take the first step."""
    policy = make_policy(folder / "policy", family, form)
    train(
        recipe_of(policy, family, 1),
        None,
        publish_shards(folder / "work", policy, sites=12, held_out=2),
        run=folder / "run",
    )
    return {}


def resume(folder: Path, family: str, form: str) -> dict[str, Any]:
    """Take the second step."""
    shards = current_record(folder / "work" / "colours", "materialize")
    train(recipe_of(folder / "policy", family, 2), None, shards, run=folder / "run")
    return {}


def compare(folder: Path, family: str, form: str) -> dict[str, Any]:
    """Compare the export with the last checkpoint."""
    policy, run, recipe = folder / "policy", folder / "run", recipe_of(folder / "policy", family, 2)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    exported = AutoModelForCausalLM.from_pretrained(run / "policy").eval()
    trained = AutoModelForCausalLM.from_pretrained(policy).eval()
    ids = AutoTokenizer.from_pretrained(run / "policy").encode(context(1), add_special_tokens=False)
    ds.start()
    engine = ds.build(policy, recipe.policy, recipe.optimizer, choose_config(None, on_gpu=False))
    ds.load(engine, latest_checkpoint(run) or run)
    gap, untrained = verify(engine, ds.gathered_weights(engine), exported, ids, 1.0), logits(trained, ids)
    with torch.no_grad():
        for name, tensor in ds.gathered_weights(engine):
            trained.get_parameter(name).copy_(tensor)
    ds.close(engine)
    return {
        "steps": [row["step"] for row in metrics],
        "probed": json.loads((run / "probe.json").read_text())["metrics"]["probe/groups/sampled"],
        "trained": [row["tokens/trained"] for row in metrics if "tokens/trained" in row],
        "sampler_gap": max(row["sampler/logprob_gap"] for row in metrics if "sampler/logprob_gap" in row),
        "engine_gap": gap,
        "same_logits": torch.equal(logits(trained, ids), logits(exported, ids)),
        "moved": float((untrained - logits(exported, ids)).abs().max()),
        "rollouts": str(run / "rollouts" / "step-000000.parquet"),
        "thinking": yaml.safe_load((run / "recipe.yaml").read_text())["task"]["thinking"],
        "prompt_end": json.loads((run / "prompt.json").read_text())["after"],
    }


def apart(part: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
    """Run a part in a process of its own, as in life; what is imported here need not be imported there again."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found = part(*arguments)
        except BaseException as error:
            traceback.print_exc()
            found = {"error": f"{part.__name__}: {type(error).__name__}: {error}"}
        with os.fdopen(writer, "w") as file:
            file.write(json.dumps(found))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    os.waitpid(child, 0)
    return dict(json.loads(said or '{"error": "it died"}'))


def render_once(folder: Path) -> None:
    """Render the chat templates, which takes seconds; the processes forked later find the results in a cache."""
    for form, (chat, marks) in FORMS.items():
        if chat:
            policy = with_tokenizer(folder / form, chat, marks)
            tokens = CorpusTokenizer.load(policy)
            kept_prompt(folder, policy, tokens, recipe_of(policy, "any", 1).task)
            response_ends(policy, tokens)


def main() -> None:
    """Train and compare the policies that the arguments name."""
    folder, *cases = sys.argv[1:]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads do not survive a fork
    render_once(Path(folder) / "rendered")
    for case in cases:
        found: dict[str, Any] = {}
        for part in (begin, resume, compare):
            if "error" not in found:
                found = apart(part, Path(folder) / case.replace(":", "-"), *case.split(":"))
        print(json.dumps({"case": case} | found), flush=True)


if __name__ == "__main__":
    main()
