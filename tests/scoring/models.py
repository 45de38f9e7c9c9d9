"""Small real models and tokenizers for the tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from pipeline.scoring.own_tokenizer import fit_tokenizer

TEXTS = [
    f"Problem {n}: the {animal} eats {n} apples and {n + 1} pears.\n\nSolution: {2 * n + 1} fruits, 苹果和梨 café."
    for n in range(40)
    for animal in ("cat", "dog", "horse")
]


def qwen(vocab_size: int, *, context: int = 64, seed: int = 0, std: float = 0.3) -> Qwen2ForCausalLM:
    """A random Qwen2 whose predictions are far from uniform."""
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocab_size,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            initializer_range=std,
        )
    ).eval()


def save(folder: Path, model: PreTrainedModel, *, vocab_size: int = 300) -> Path:
    """A model folder with a byte-level tokenizer of `vocab_size` tokens."""
    model.save_pretrained(folder)
    fit_tokenizer(TEXTS, vocab_size).save(str(folder / "tokenizer.json"))
    return folder


def rewrite_config(folder: Path, **changes: object) -> None:
    """Change keys of a folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
