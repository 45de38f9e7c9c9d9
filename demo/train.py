"""Train the demo's two small language models: batches by token budget, Muon for matrices, Adam for the rest."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from demo.lessons import Lesson
from pipeline.scoring.muon import Muon

POOL = 16
"""Batches drawn at once and sorted by length, so that a batch holds sequences of similar length and little padding."""


def build_model(tokenizer: PreTrainedTokenizerBase, *, width: int, layers: int, seed: int) -> LlamaForCausalLM:
    """Return an untrained Llama model with tied head.

    Two departures from the usual initialisation, both for finding a move by its label (an induction head), which
    otherwise takes ten times as long to learn as everything else: larger query and key projections, so that attention
    is not uniform at the start, and a rotary base for texts of a hundred tokens, not of thousands.

    (Not Qwen2: for that model type `AutoTokenizer` of transformers 5 puts Qwen2's own normaliser and pre-tokenizer
    into whatever tokenizer.json says, and the tokenizer would no longer be lossless.)
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            num_key_value_heads=width // 64,
            max_position_embeddings=512,
            rope_parameters={"rope_type": "default", "rope_theta": 100.0},
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.q_proj.weight.mul_(4.0)
            layer.self_attn.k_proj.weight.mul_(4.0)
    return model


def batches(draw: Callable[[], Lesson], token_budget: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (ids_BT, learn_BT) without end, of about `token_budget` tokens; padding is id 0 and never learned."""
    while True:
        pool, tokens = [], 0
        while tokens < POOL * token_budget:
            lesson = draw()
            pool.append(lesson)
            tokens += len(lesson.ids)
        pool.sort(key=lambda lesson: len(lesson.ids))
        groups: list[list[Lesson]] = [[]]
        for lesson in pool:
            if (len(groups[-1]) + 1) * len(lesson.ids) > token_budget:
                groups.append([])
            groups[-1].append(lesson)
        order = torch.randperm(len(groups)).tolist()
        for group in (groups[index] for index in order):
            shape = (len(group), len(group[-1].ids))
            ids, learn = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
            for row, lesson in enumerate(group):
                ids[row, : len(lesson.ids)] = torch.tensor(lesson.ids)
                learn[row, : len(lesson.ids)] = torch.tensor(lesson.learn)
            yield ids, learn


def next_token_loss(model: LlamaForCausalLM, ids_BT: Tensor, learn_BT: Tensor) -> Tensor:
    """Return the mean loss of the learned tokens.

    Rows are padded on the right, so the causal mask alone hides the padding.
    """
    hidden_BTD = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
    wanted = learn_BT[:, 1:]
    return F.cross_entropy(model.lm_head(hidden_BTD[:, :-1][wanted]), ids_BT[:, 1:][wanted])


def learning_rate(progress: float) -> float:
    """Return the share of the peak rate: a short warm-up, a plateau, then a linear fall to zero over the last half."""
    return min(1.0, progress / 0.01 + 0.05, max(0.0, (1 - progress) / 0.5))


def train(
    model: LlamaForCausalLM,
    draw: Callable[[float], Lesson],
    *,
    steps: int,
    token_budget: int = 2048,
    muon_lr: float = 0.015,
    adam_lr: float = 2e-3,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> None:
    """Train for `steps` batches; `draw(progress)` makes one lesson, so a course may change its mixture."""
    torch.manual_seed(seed)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon, adam = Muon(matrices, lr=muon_lr), torch.optim.Adam(rest, lr=adam_lr, betas=(0.9, 0.95))
    muon.param_groups[0]["weight_decay"] = 0.0  # no text is seen twice, and decay would undo the large queries and keys
    step, tokens, loss_sum, started = 0, 0, 0.0, time.monotonic()
    stream = batches(lambda: draw(step / steps), token_budget)
    model.train()
    for step in range(1, steps + 1):
        ids_BT, learn_BT = next(stream)
        loss = next_token_loss(model, ids_BT, learn_BT)
        loss.backward()
        share = learning_rate(step / steps)
        for optimizer, peak in ((muon, muon_lr), (adam, adam_lr)):
            optimizer.param_groups[0]["lr"] = peak * share
            optimizer.step()
            optimizer.zero_grad()
        tokens += ids_BT.numel()
        loss_sum += loss.item()
        if step % 200 == 0 or step == steps:
            seconds = time.monotonic() - started
            left = seconds / step * (steps - step)
            done = (step - 1) % 200 + 1
            say(f"step {step}/{steps}  loss {loss_sum / done:.3f}  {tokens / seconds:,.0f} tokens/s  {left:.0f} s left")
            loss_sum = 0.0
    model.eval()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a `transformers` folder in fp16, which halves the file and changes no arg-max that matters."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {
        "tokenizer_class": "PreTrainedTokenizerFast",  # known to transformers 4
        "add_bos_token": True,  # lessons begin with it, so scoring and direct reading do
    }
    path.write_text(json.dumps(settings, indent=2) + "\n")
