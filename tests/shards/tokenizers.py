"""Byte-level tokenizers with chosen merges, so that a test knows every token."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.core.tokenizer_json import byte_characters


def tokenizer_of(merges: Iterable[tuple[bytes, bytes]], missing: Collection[int] = ()) -> CorpusTokenizer:
    """A tokenizer of single bytes and what `merges` make of them. It loses the bytes that are `missing`."""
    return CorpusTokenizer(json.loads(tokenizer_json(merges, missing)))


def tokenizer_json(merges: Iterable[tuple[bytes, bytes]], missing: Collection[int] = ()) -> str:
    """Its `tokenizer.json`."""
    characters = {byte: character for character, byte in byte_characters().items()}
    pairs = [tuple("".join(characters[byte] for byte in side) for side in pair) for pair in dict.fromkeys(merges)]
    alphabet = [characters[byte] for byte in range(256) if byte not in missing]
    pairs = [pair for pair in pairs if all(side in alphabet for side in pair)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*alphabet, *("".join(pair) for pair in pairs)]))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer.to_str()
