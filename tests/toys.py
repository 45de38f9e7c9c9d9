"""Toys shared by tests: small real things, made on the spot."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

WORDS = ("red", "blue", "green", "apple", "pear", "stone", "river", "seven", "café", "naïve", "数学", "答案", "🙂")


def problems(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Short problems with solutions: a little structure, a little noise, some multi-byte text."""
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        a, b = rng.randint(0, 9), rng.randint(0, 9)
        name, thing = rng.choice(WORDS), rng.choice(WORDS)
        rows.append(
            {
                "problem": f"No. {index}: {name} has {a} {thing} and finds {b} more. How many {thing} are there?",
                "solution": f"Add {a} and {b}: there are {a + b} {thing}. {rng.choice(WORDS)} {rng.choice(WORDS)}.",
            }
        )
    return rows


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    """One JSON object a line."""
    path.write_bytes(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
    return path


def byte_level_tokenizer(folder: Path, texts: list[str], vocab_size: int = 400, *, marks: bool = True) -> Path:
    """A lossless byte-level BPE as a folder that holds a `tokenizer.json`, by default with `<think>` marks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if marks:
        tokenizer.add_tokens(["<think>", "</think>"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"})
    )
    return folder
