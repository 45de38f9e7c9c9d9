"""What stands beside the weights of a trained policy: its gate, how to apply it, and how to generate.

The files are written into the policy's own folder. They are not part of its digest, which is over configuration and
weights, so no evaluation becomes stale.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.loading import load
from pipeline.config.recipe import Recipe
from pipeline.core.files import replace_text
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.evaluation.report import hybrid_table
from pipeline.export.gate_files import APPLIES, GATE_FILE, gate_code
from pipeline.grpo.rollout.chat_template import ChatTemplate, read_json
from pipeline.grpo.rollout.prompt import PromptText, prompts_of
from pipeline.task.gate import Gate

GENERATION = "generation_config.json"
MARK = "<!-- written by rpt gate -->"
"""Line in a `README.md` that may be replaced; one without it is the user's."""

_CODE = '''
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

FOLDER = "."  # the folder of this file
sys.path.insert(0, FOLDER)
from rpt_gate import Known, gate_of

BARE = {bare!r}  # before a context that is continued at once
BEFORE, AFTER = {before!r}, {after!r}  # around a context that is thought about

gate = gate_of(open(f"{{FOLDER}}/gate.json", encoding="utf-8").read())
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
policy = AutoModelForCausalLM.from_pretrained(FOLDER)


def encode(text, is_context=False):
    """Return token ids; marks such as <think> are only read outside of the context."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=is_context).input_ids


@torch.inference_mode()
def complete(context):
    """Return whether the policy thinks about the next token, and its prediction or response."""
    bare = torch.tensor([encode(BARE) + encode(context, True)])
    logprobs = policy(bare).logits[0, -1].float().log_softmax(-1)
    first, second = logprobs.topk(2).values.tolist()
    entropy = float(torch.special.entr(logprobs.exp()).sum())
    guess = tokenizer.decode([int(logprobs.argmax())], clean_up_tokenization_spaces=False)
    if not gate.thinks(Known(entropy, first, first - second, bare.shape[1], guess.encode(), context[-1:])):
        return False, guess
    prompt = torch.tensor([encode(BEFORE) + encode(context, True) + encode(AFTER)])
    response = policy.generate(prompt, attention_mask=torch.ones_like(prompt))[0, prompt.shape[1] :]
    return True, tokenizer.decode(response, skip_special_tokens=False)
'''


def describe_policy(folder: Path, run: Path, gate: Gate, sets: Mapping[str, Any]) -> None:
    """Write gate, code, generation settings and card into the folder of a run's policy.

    Args:
        folder: the policy's folder.
        run: the run's folder, with its recipe and prompt.
        gate: the policy's gate.
        sets: for each set of sites, `where`, `bands` and `hybrid`.

    Raises:
        UserError: the run's recipe or the policy's tokenizer cannot be read.
    """
    recipe, tokens = load(Recipe, run / "recipe.yaml"), CorpusTokenizer.load(folder)
    prompt = prompts_of({"policy": folder}, recipe.task, run)["policy"]
    bare = "" if tokens.bos_id is None else tokens.token_bytes[tokens.bos_id].decode()
    beginning = "" if ChatTemplate.of(folder) else bare
    replace_text(folder / GATE_FILE, gate.text())
    replace_text(folder / APPLIES, gate_code())
    settings = read_json(folder / GENERATION) | generation(recipe)
    replace_text(folder / GENERATION, json.dumps(settings, indent=2) + "\n")
    card = folder / "README.md"
    if not card.exists() or MARK in card.read_text(encoding="utf-8", errors="replace"):
        replace_text(card, policy_card(recipe, prompt, bare, beginning + prompt.before, sets))


def generation(recipe: Recipe) -> dict[str, Any]:
    """Return the keys of a generation configuration with which the policy was evaluated."""
    temperature = recipe.evaluate.temperature
    sampled = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    return {"max_new_tokens": recipe.rollout.max_new_tokens, **sampled}


def policy_card(recipe: Recipe, prompt: PromptText, bare: str, before: str, sets: Mapping[str, Any]) -> str:
    """Return the `README.md` of a policy.

    Args:
        recipe: the run's recipe.
        prompt: the run's prompt.
        bare: text of the token that stands before a bare context; empty if there is none.
        before: the prompt's text before the context.
        sets: as for `describe_policy`.
    """
    code = _CODE.format(bare=bare, before=before, after=prompt.after).strip()
    ends = {
        "tags": f"The prediction is in the last `\\boxed{{…}}` after `{prompt.thinking.end}`.",
        "free": "The prediction is in the last `\\boxed{…}` of the response.",
        "none": "The prediction is in the last `\\boxed{…}` of the response.",
    }
    parts = [
        "---\nlibrary_name: transformers\ntags: [reinforcement-pre-training, next-token-reasoning]\n---",
        MARK,
        f"# Policy of the run {recipe.name}",
        "A policy trained by Reinforcement Pre-Training (arXiv 2506.08007). It predicts the next token of a text in "
        "two ways: at once, as any language model, and after a thought. A thought helps where the token is hard, and "
        "harms where it is easy. `gate.json` says when to think: coefficients of a logistic model over what is known "
        "before a thought. `rpt_gate.py` applies it, with Python's standard library only.",
        *(hybrid_table(summary).markdown() for summary in sets.values()),
        "Gates that judged these sites were fitted on other documents. *Oracle* is right where either answer is.",
        "## How to use",
        f"`generation_config.json` has the length and temperature of the evaluation. {ends[prompt.thinking.mode]}",
        f"```python\n{code}\n```",
    ]
    return "\n\n".join(parts) + "\n"
