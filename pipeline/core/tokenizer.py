"""Tokenizers for corpora: ids, bytes and byte boundaries of tokens, never decoded strings.

Byte-level BPE splits characters and several tokenizers normalise, so boundaries come from the bytes of the tokens
themselves, and a document whose token bytes do not concatenate to its text is not used.

Shape names: T tokens of a text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pipeline.config.base import canonical_json
from pipeline.config.errors import UserError
from pipeline.core.model_files import TOKENIZER_FILES, resolve_model
from pipeline.core.tokenizer_json import (
    bos_id,
    deterministic,
    parsed_added_tokens,
    text_only,
    token_bytes,
    vocabulary_of,
)

_FIRST_PROBES = ("a", "0", "中")
_BLANKS = (" ", "\t", "\n", "\r\n", "\u00a0", "\u3000")
PROBES = (
    *(f"if x:{blank * n}y = 1{blank * n}" for blank in _BLANKS for n in (*range(1, 9), 16, 31, 32, 33, 65)),
    *(f"{blank * n}z" for blank in _BLANKS for n in (1, 2, 3, 8)),
    "def f(n):\n    if n:\n\t\treturn  n \n\n\n  \n\n        # end\r\n \n",
    "0 12 345 6789 1234567890 3.14 1,000,000 ٣٤٥ ½",
    "猫は座った。 苹果和梨，고양이  สวัสดี हिन्दी",
    "🙂🙂 👩‍👩‍👧 🇩🇪 café naïve ﬁ",
    "The cat's \\frac{1}{2} isn't $x_{1}^{2}$; they'll \"go\"...",
)
"""Texts on which an encoder without added tokens is compared with the full tokenizer."""


class CorpusTokenizer:
    """A `tokenizers` tokenizer for corpora: text in, ids and byte boundaries out.

    Added tokens are not parsed in text: a document that contains `<think>` yields ordinary tokens. Only runs of white
    space are parsed where they are added tokens and not special ones (GPT-NeoX), because a model sees them in every
    text. Nothing is added around a text; `bos_id` is the token that the model expects in front of one.

    Attributes:
        token_bytes: bytes of every id, added tokens by their literal content, unused ids as b"".
        vocab_size: number of ids, `max(id) + 1`, added tokens included.
        bos_id: the id that this tokenizer's model expects before a text, or None: the token that the post-processor
            of `tokenizer.json` puts first, else the `bos_token` of `tokenizer_config.json` if `add_bos_token` is true.
            A model's `config.bos_token_id` is ignored: Qwen's names a token that the model never saw at a start.
        text_size: 1 + the largest id that occurs in or before a text; a model has at least this many embeddings.
        prepends_space: the tokenizer puts a dummy space before a text (SentencePiece), which is not a byte of the text.
        digest: sha256 of `tokenizer.json`.
    """

    def __init__(self, tree: dict[str, Any], settings: dict[str, Any] | None = None, digest: str = "") -> None:
        """Build from the trees of `tokenizer.json` and `tokenizer_config.json`, and the digest of the first."""
        whole = Tokenizer.from_str(json.dumps(deterministic(tree)))
        # `tokenizers` numbers added tokens itself; the ids in the file are only what that should give.
        self._added = {token.content: i for i, token in whole.get_added_tokens_decoder().items()}
        parsed = {token["content"] for token in parsed_added_tokens(tree)}
        self._encoder = Tokenizer.from_str(json.dumps(text_only(tree)))
        self._renumbered = _renumbered(self._encoder, {content: self._added[content] for content in parsed})
        self.digest = digest or hashlib.sha256(canonical_json(tree).encode()).hexdigest()
        self.token_bytes = token_bytes(tree, self._added)
        self.vocab_size = len(self.token_bytes)
        self.bos_id = bos_id(tree, settings or {}, self._added)
        vocabulary = vocabulary_of(tree)
        self._ids = {**vocabulary, **self._added}
        in_text = [i for content, i in self._ids.items() if content not in self._added or content in parsed]
        self.text_size = 1 + max(in_text if self.bos_id is None else [*in_text, self.bos_id], default=-1)
        self._lengths = np.array([len(content) for content in self.token_bytes], dtype=np.int64)
        self._literals = _any_of(self._added.keys() - parsed)
        self._is_parsed = np.zeros(self.vocab_size, dtype=bool)
        self._is_parsed[[self._added[content] for content in parsed]] = True
        self._starts_with_space = np.array([content.startswith(b" ") for content in self.token_bytes], dtype=bool)
        # Found by trying, because normaliser, pre-tokenizer and decoder each have their own way to add the space.
        self.prepends_space = any(self._joined(self.encode(p)) == b" " + p.encode() for p in _FIRST_PROBES)
        self._prepends_after_parsed = self.prepends_space and any(
            self._joined(self.encode(f"a{blank}a")).endswith(f"{blank} a".encode()) for blank in parsed
        )
        self._check(whole, parsed)

    @classmethod
    def load(cls, name_or_folder: str | Path, revision: str | None = None) -> CorpusTokenizer:
        """Load a tokenizer from a folder, a `tokenizer.json` or a Hub id; no remote code is run.

        Raises:
            UserError: not found, no network, or no readable `tokenizer.json`.
        """
        path = resolve_model(str(name_or_folder), revision, files=TOKENIZER_FILES)
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise UserError(
                "no tokenizer.json", where=path, hint="save the tokenizer with `AutoTokenizer(...).save_pretrained`"
            )
        settings = file.with_name("tokenizer_config.json")
        try:
            text = file.read_text(encoding="utf-8")
            return _parsed(text, settings.read_text(encoding="utf-8") if settings.is_file() else "{}")
        except UserError:
            raise
        except Exception as error:  # `tokenizers` raises bare Exception on a file it cannot read
            raise UserError("not a tokenizer that `tokenizers` can read", where=file, hint=str(error)) from error

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return the ids [T] of a text, with nothing added."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Return the ids [T] of every text."""
        encodings = self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._renumbered[np.array(encoding.ids, dtype=np.int32)] for encoding in encodings]

    def holds_added_token(self, text: str) -> bool:
        """Return whether a text holds the literal content of an added token, which is ordinary text here."""
        return self._literals is not None and self._literals.search(text) is not None

    def ends(self, ids: NDArray[np.integer] | Sequence[int]) -> NDArray[np.int64]:
        """Return the cumulative byte lengths [T] of a whole text's ids: token t covers bytes ends[t-1]:ends[t].

        Example:
            >>> tokenizer = CorpusTokenizer({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2},
            ...                              "merges": [["a", "b"]]}})
            >>> tokenizer.ends(tokenizer.encode("aba")).tolist()
            [2, 3]
        """
        return self.ends_of_each([np.asarray(ids)])[0]

    def ends_of_each(self, ids: Sequence[NDArray[np.integer]]) -> list[NDArray[np.int64]]:
        """Return `ends` of every text's ids; many short texts take a fraction of the time of one after the other."""
        size_D = np.array([len(each) for each in ids], dtype=np.int64)
        stop_D = np.cumsum(size_D)
        ids_T = np.concatenate([_NO_IDS, *ids]).astype(np.int64)
        end_T = np.cumsum(self._lengths[ids_T] - self._dummy_spaces(ids_T, (stop_D - size_D)[size_D > 0]))
        end_T -= np.repeat(np.append(0, end_T)[stop_D - size_D], size_D)
        return [end_T[stop - size : stop] for stop, size in zip(stop_D.tolist(), size_D.tolist(), strict=True)]

    def decode_bytes(self, ids: NDArray[np.integer] | Sequence[int], *, continues: bool = False) -> bytes:
        """Return the bytes of ids; with `continues` they follow other tokens and keep a space at their start."""
        ids = np.asarray(ids, dtype=np.int64)
        dummies = self._dummy_spaces(ids, slice(0, 1))
        if continues:
            dummies[:1] = 0
        return b"".join([self.token_bytes[i][dummy:] for i, dummy in zip(ids.tolist(), dummies.tolist(), strict=True)])

    def is_lossless(self, text: str, ids: NDArray[np.integer] | Sequence[int]) -> bool:
        """Return whether the token bytes concatenate to the text's UTF-8 bytes."""
        return self.decode_bytes(ids) == text.encode()

    def are_lossless(self, texts: Sequence[str], ids: Sequence[NDArray[np.integer]]) -> list[bool]:
        """Return `is_lossless` of every text; where all are, which is usual, they are compared at once."""
        encoded = [text.encode() for text in texts]
        size_D = [int(ends[-1]) if len(ends) else 0 for ends in self.ends_of_each(ids)]
        if not self.prepends_space and size_D == [len(data) for data in encoded]:
            flat = np.concatenate([_NO_IDS, *ids]).tolist()
            if b"".join([self.token_bytes[i] for i in flat]) == b"".join(encoded):
                return [True] * len(encoded)
        return [self.decode_bytes(each) == data for each, data in zip(ids, encoded, strict=True)]

    def id_of(self, content: str) -> int | None:
        """Return the id of a token by its literal content (`</think>`), added tokens first; None if there is none."""
        return self._ids.get(content)

    def _joined(self, ids: NDArray[np.integer]) -> bytes:
        return b"".join([self.token_bytes[i] for i in ids.tolist()])

    def _dummy_spaces(self, ids: NDArray[np.integer], first: NDArray[np.integer] | slice) -> NDArray[np.int64]:
        """Return [T], 1 where a token of a whole text begins with a space that is not a byte of the text, else 0.

        Texts lie end to end; `first` are the places of their first tokens.
        """
        dummies = np.zeros(len(ids), dtype=np.int64)
        if self.prepends_space:
            if self._prepends_after_parsed:
                dummies[1:] = self._is_parsed[ids[:-1]]
            dummies[first] = 1
            dummies *= self._starts_with_space[ids] & ~self._is_parsed[ids]
        return dummies

    def _check(self, whole: Tokenizer, parsed: Iterable[str]) -> None:
        """Compare this encoder with the full tokenizer, on texts without the added tokens that it does not parse.

        Raises:
            UserError: they give a probe different ids, so that a model would get tokens that it never saw.
        """
        own = [f"a{content * n}b {content}" for content in parsed for n in (1, 2)]
        for probe in (*PROBES, *own):
            if self.holds_added_token(probe):
                continue
            ids, expected = self.encode(probe).tolist(), whole.encode(probe, add_special_tokens=False).ids
            if ids != expected:
                raise UserError(
                    f"without its added tokens this tokenizer reads {probe!r:.60} as {ids} instead of {expected}",
                    hint="choose another tokenizer; added tokens other than white space are not parsed in text",
                )


_NO_IDS = np.empty(0, dtype=np.int32)


@lru_cache(maxsize=2)
def _parsed(text: str, settings: str) -> CorpusTokenizer:
    """Return the tokenizer of the two files' contents; cached, because a large vocabulary takes seconds to load."""
    return CorpusTokenizer(json.loads(text), json.loads(settings), hashlib.sha256(text.encode()).hexdigest())


def _renumbered(encoder: Tokenizer, ids: Mapping[str, int]) -> NDArray[np.int32]:
    """Return the true id of every id of an encoder that numbers the added tokens `ids` differently."""
    own = encoder.get_vocab(with_added_tokens=True)
    renumbered = np.arange(1 + max(own.values(), default=-1), dtype=np.int32)
    for content, i in ids.items():
        renumbered[own[content]] = i
    return renumbered


def _any_of(contents: Iterable[str]) -> re.Pattern[str] | None:
    """Return a pattern that finds any of some literal texts, or None if there are none."""
    literals = [re.escape(content) for content in sorted(contents) if content]
    return re.compile("|".join(literals)) if literals else None
