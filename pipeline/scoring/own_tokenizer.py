"""Fits a tokenizer on the corpus itself: a byte-level BPE, lossless on any text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from pipeline.core.tokenizer import CorpusTokenizer

DOCUMENT = "<|document|>"
"""The proxy's only special token: it precedes every document."""

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's split before BPE (single digits). The more boundaries proxy and policy share, the fewer sites are dropped."""


BYTES_A_TOKEN = 1024
"""Bytes of text for every token of the vocabulary."""
FEWEST, MOST = 384, 4096
"""Tokens of the smallest and of the largest vocabulary that is chosen by the size of a text."""


def vocabulary_size(texts: Sequence[str]) -> int:
    """Return how many tokens to fit on some texts.

    A larger vocabulary learns the texts by heart: whole clauses that occur twice become tokens. On documents that the
    tokenizer has not seen, the counts then need more bits per byte (docs/own-corpus.md has the figures).

    Example:
        >>> [vocabulary_size(["x" * size]) for size in (1000, 1_000_000, 5_000_000)]
        [384, 976, 4096]
    """
    return min(MOST, max(FEWEST, sum(len(text.encode()) for text in texts) // BYTES_A_TOKEN))


def fit_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE with all 256 bytes, lossless on any text. The same texts give the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[DOCUMENT],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{DOCUMENT} $A", special_tokens=[(DOCUMENT, tokenizer.token_to_id(DOCUMENT))]
    )
    return tokenizer


def write_tokenizer(texts: Sequence[str], vocab_size: int | None, folder: Path) -> CorpusTokenizer:
    """Fit a tokenizer, save it to a folder that does not exist yet in `transformers` format, and return it.

    Without `vocab_size`, its size is that of `vocabulary_size`.
    """
    folder.mkdir(parents=True)
    fit_tokenizer(texts, vocab_size or vocabulary_size(texts)).save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": DOCUMENT, "eos_token": DOCUMENT}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    return CorpusTokenizer.load(folder)
