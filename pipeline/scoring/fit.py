"""Fits a proxy on the corpus itself: per fold a small LM that has not seen the fold's documents.

Shape names: B rows of a batch, T tokens of a row, H hidden size, V vocabulary.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config.manifest import ScoreConfig, TrainProxyConfig
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.scoring.baselines import zlib_bits_per_byte
from pipeline.scoring.documents import score_documents
from pipeline.scoring.muon import Muon
from pipeline.scoring.own_tokenizer import write_tokenizer
from pipeline.scoring.proxy import as_proxy
from pipeline.scoring.sample import Texts

CHECKS = 16
"""How often the loss on the checked documents is measured, over all steps; never, if there are fewer steps."""
PATIENCE = 3
"""Training ends after so many measurements without a lower loss."""
CHECKED_TOKENS = 10_000
"""Most tokens that are checked."""
SMALL_TOKENS = 200_000
"""Fewer training tokens than these get the smaller model."""


def sized(config: TrainProxyConfig, tokens: int) -> TrainProxyConfig:
    """Return the settings with the size that fits so many training tokens, where they leave it open."""
    hidden, layers = (64, 2) if tokens < SMALL_TOKENS else (128, 3)
    return config.model_copy(update={"hidden_size": config.hidden_size or hidden, "layers": config.layers or layers})


def new_model(vocab_size: int, bos_id: int, config: TrainProxyConfig) -> Any:
    """Return an untrained Qwen2-shaped LM, initialised from `config.seed`; its blocks start as the identity."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    assert config.hidden_size is not None and config.layers is not None
    shape = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=3 * config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=config.context,
        tie_word_embeddings=True,
        bos_token_id=bos_id,
        eos_token_id=bos_id,
    )
    torch.manual_seed(config.seed)
    model = Qwen2ForCausalLM(shape).float()
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def packed_batches(
    documents: Sequence[NDArray[np.int64]], config: TrainProxyConfig
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield inputs and targets [B, T] forever: each epoch takes the documents in another order, end to end, as rows.

    A row may start inside a document and hold several; the document token marks where one begins.
    """
    total = sum(map(len, documents))
    T = min(config.context, max(1, total - 1))
    B = max(1, min(config.batch_tokens, total - 1) // T)
    epoch, rest = 0, np.empty(0, np.int64)
    while True:
        order = np.random.default_rng((config.seed, epoch)).permutation(len(documents))
        stream = np.concatenate([rest, *(documents[i] for i in order)])
        count = (len(stream) - 1) // (B * T)
        for batch in range(count):
            piece = torch.from_numpy(stream[batch * B * T : (batch + 1) * B * T + 1])
            yield piece[:-1].view(B, T), piece[1:].view(B, T)
        rest, epoch = stream[count * B * T :], epoch + 1


def steps_for(tokens: int, config: TrainProxyConfig) -> int:
    """Return the number of training steps: `epochs` passes over the tokens, at most `max_steps`."""
    return max(1, min(config.max_steps, round(config.epochs * tokens / config.batch_tokens)))


def split_off(documents: Sequence[NDArray[np.int64]]) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Return the documents to train on, and every twentieth, up to `CHECKED_TOKENS`, to check the training by.

    With fewer than twenty documents, none is checked.
    """
    total, checked = 0, set[int]()
    for n in range(19, len(documents), 20):
        if total < CHECKED_TOKENS:
            checked.add(n)
            total += len(documents[n])
    return [ids for n, ids in enumerate(documents) if n not in checked], [documents[n] for n in sorted(checked)]


@torch.inference_mode()
def mean_loss(model: Any, documents: Sequence[NDArray[np.int64]], config: TrainProxyConfig) -> float:
    """Return the loss in nats a token on documents, each of which begins with the document token."""
    model.eval()
    total, count = 0.0, 0
    for ids in documents:
        for begin in range(0, len(ids) - 1, config.context):
            piece = torch.from_numpy(ids[begin : begin + config.context + 1])[None]
            logits_TV = model(input_ids=piece[:, :-1], use_cache=False).logits[0]
            total += torch.nn.functional.cross_entropy(logits_TV, piece[0, 1:], reduction="sum").item()
            count += piece.shape[1] - 1
    model.train()
    return total / max(count, 1)


@dataclass
class Best:
    """The weights with the least loss on the checked documents so far."""

    loss: float = math.inf
    step: int = 0
    weights: dict[str, Any] = field(default_factory=dict)
    worse: int = 0
    """Measurements since then."""

    def measured(self, model: Any, loss: float, step: int) -> bool:
        """Note a measurement and return whether training goes on."""
        if loss < self.loss:
            weights = {name: value.clone() for name, value in model.state_dict().items()}
            self.loss, self.step, self.weights, self.worse = loss, step, weights, 0
        else:
            self.worse += 1
        return self.worse < PATIENCE


def train(
    model: Any,
    documents: Sequence[NDArray[np.int64]],
    checked: Sequence[NDArray[np.int64]],
    config: TrainProxyConfig,
    say: Callable[[str], None],
) -> int:
    """Train `model` in place on documents' ids, each with the document token in front. Returns the steps it keeps.

    Muon updates the blocks' matrices (see `muon.py`), AdamW the rest. Both learning rates warm up for a twentieth of
    the steps and decay to zero along a cosine. Training ends early when the loss on the checked documents no longer
    falls, and the model gets back the weights that had the least.
    """
    best = Best()
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and ".layers." in name)]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=config.muon_lr),
        torch.optim.AdamW(others, lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    steps = steps_for(sum(map(len, documents)), config)
    warmup = max(1, steps // 20)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda s: min((s + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * s / steps))
        )
        for optimizer in optimizers
    ]
    output_VH = model.get_output_embeddings().weight
    model.train()
    last = 0
    for step, (ids_BT, targets_BT) in zip(range(1, steps + 1), packed_batches(documents, config), strict=False):
        hidden_BTH = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
        logits = hidden_BTH.flatten(0, 1) @ output_VH.T  # [B·T, V]
        loss = torch.nn.functional.cross_entropy(logits, targets_BT.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        last = step
        if step % max(1, steps // 8) == 0:
            say(f"step {step} of {steps}, loss {loss.item():.2f} nats/token")
        due = checked and steps >= CHECKS and (step % (steps // CHECKS) == 0 or step == steps)
        if due and not best.measured(model, mean_loss(model, checked, config), step):
            say(f"step {step} of {steps}, stops: the least loss on other documents was at step {best.step}")
            break
    if best.weights:
        model.load_state_dict(best.weights)
        last = best.step
    model.eval()
    return last


# --------------------------------------------------------------------------------------------------- report


def bits_per_byte(model: Any, tokenizer: CorpusTokenizer, texts: Sequence[str]) -> float:
    """Return the bits per byte that the model needs for the texts' tokens (all but each text's first)."""
    ids = tokenizer.encode_batch(texts)
    config = ScoreConfig(min_context_tokens=1)
    scores = score_documents(as_proxy(model, tokenizer.bos_id), ids, ["held-out"] * len(ids), config)
    return sum(s.nll.double().sum().item() for s in scores) / math.log(2) / sum(len(t.encode()) for t in texts)


def unigram_bits_per_byte(tokenizer: CorpusTokenizer, training: Sequence[str], texts: Sequence[str]) -> float:
    """Return the bits per byte of add-one unigram frequencies of the training texts, which a proxy must beat."""
    counts = Counter(i for ids in tokenizer.encode_batch(training) for i in ids.tolist())
    total = sum(counts.values()) + tokenizer.vocab_size
    nats = -sum(math.log((counts[i] + 1) / total) for ids in tokenizer.encode_batch(texts) for i in ids[1:].tolist())
    return nats / math.log(2) / sum(len(t.encode()) for t in texts)


# ------------------------------------------------------------------------------------------------------ fit


def fit_proxy(texts: Texts, config: TrainProxyConfig, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Fit a tokenizer and a model, and save both to `folder` in `transformers` format.

    Args:
        texts: the texts to fit and to measure on.
        config: sizes and training settings.
        folder: a folder that does not exist yet.
        say: called with each progress line.

    Returns:
        The content of `training.json` in the folder: steps, tokens, and bits per byte on held-out text beside two
        baselines.
    """
    tokenizer = write_tokenizer(texts.tokenizer, config.vocab_size, folder)
    assert tokenizer.bos_id is not None

    documents = [
        np.concatenate([[tokenizer.bos_id], i]).astype(np.int64) for i in tokenizer.encode_batch(texts.training)
    ]
    tokens = sum(map(len, documents))
    config = sized(config, tokens)
    model = new_model(tokenizer.vocab_size, tokenizer.bos_id, config)
    steps = train(model, *split_off(documents), config, say)
    model.save_pretrained(folder)

    measured = texts.held_out or texts.training[:100]
    report = {
        "documents": len(documents),
        "tokens": tokens,
        "steps": steps,
        "hidden_size": config.hidden_size,
        "layers": config.layers,
        "measured_on": "held-out documents" if texts.held_out else "training documents",
        "bits_per_byte": round(bits_per_byte(model, tokenizer, measured), 4),
        "unigram_bits_per_byte": round(unigram_bits_per_byte(tokenizer, texts.training, measured), 4),
        "zlib_bits_per_byte": round(zlib_bits_per_byte(measured), 4),
    }
    (folder / "training.json").write_text(json.dumps(report, indent=1))
    say(
        f"{report['bits_per_byte']} bits/byte on {report['measured_on']}; "
        f"unigram {report['unigram_bits_per_byte']}, zlib {report['zlib_bits_per_byte']}"
    )
    return report
