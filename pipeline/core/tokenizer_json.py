"""Reading `tokenizer.json`: which added tokens are parsed in text, and the bytes of every token."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_UNMATCHABLE = "\U0010ffff"
"""A noncharacter that replaces pieces which text must not produce."""


def deterministic(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the `tokenizer.json` of an encoder that does not truncate, pad or draw at random."""
    model = dict(tree["model"])
    if "dropout" in model:
        model["dropout"] = None
    return {"version": "1.0"} | tree | {"model": model, "truncation": None, "padding": None}


def text_only(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the `tokenizer.json` of a deterministic encoder that parses no added tokens but white space."""
    parsed = parsed_added_tokens(tree)
    unparsed = {t["content"] for t in tree.get("added_tokens") or ()} - {t["content"] for t in parsed}
    tree = deterministic(tree)
    model = tree["model"]
    if model.get("type") == "Unigram":  # its lattice would match the piece `<s>` in a text
        model["vocab"] = [
            [f"{_UNMATCHABLE}{i}" if piece in unparsed and i != model.get("unk_id") else piece, score]
            for i, (piece, score) in enumerate(model["vocab"])
        ]
    elif model.get("type") != "BPE" or model.get("ignore_merges"):  # whole words are looked up, so `<s>` would be found
        unparsed -= {model.get("unk_token")}
        model["vocab"] = {f"{_UNMATCHABLE}{i}" if t in unparsed else t: i for t, i in model["vocab"].items()}
    return tree | {"added_tokens": parsed, "post_processor": None}


def parsed_added_tokens(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the added tokens that are parsed in text: those that are not special and consist of white space."""
    space = _space_symbol(_text_parts(tree)) or ""
    return [
        token
        for token in tree.get("added_tokens") or ()
        if not token.get("special") and token["content"].replace(space or " ", " ").isspace()
    ]


def vocabulary_of(tree: dict[str, Any]) -> dict[str, int]:
    """Return the ids of the model's own tokens, by their spelling; added tokens are not included."""
    vocab = tree["model"]["vocab"]
    return dict(vocab) if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}


def token_bytes(tree: dict[str, Any], added: dict[str, int]) -> list[bytes]:
    """Return the bytes of every id, from how the decoder turns tokens into text."""
    parts, space = _text_parts(tree), _space_symbol(_text_parts(tree))
    if any(part["type"] == "ByteLevel" for part in parts):
        vocabulary = {i: _byte_level(token) for token, i in vocabulary_of(tree).items()}
    else:
        by_byte = bool(tree["model"].get("byte_fallback")) or any(p["type"] == "ByteFallback" for p in parts)
        vocabulary = {i: _sentencepiece(token, space, by_byte) for token, i in vocabulary_of(tree).items()}
    blank = {token["content"] for token in parsed_added_tokens(tree)}
    for content, i in added.items():
        vocabulary[i] = (content.replace(space, " ") if space and content in blank else content).encode()
    return [vocabulary.get(i, b"") for i in range(max(vocabulary, default=-1) + 1)]


def _text_parts(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the components that define how text and vocabulary correspond."""
    return [part for key in ("normalizer", "pre_tokenizer", "decoder") for part in _parts(tree.get(key))]


def _parts(component: Any) -> Iterator[dict[str, Any]]:
    """Yield the component and everything nested in its sequences."""
    if isinstance(component, dict) and "type" in component:
        yield component
        for key in ("normalizers", "pretokenizers", "decoders", "processors"):
            for inner in component.get(key) or ():
                yield from _parts(inner)


def _space_symbol(parts: Sequence[dict[str, Any]]) -> str | None:
    """Return the character that stands for a space in the vocabulary (▁), or None."""
    for part in parts:
        if part["type"] == "Metaspace":
            return str(part.get("replacement", "▁"))
        if part["type"] == "Replace" and part.get("pattern") == {"String": " "}:
            return str(part["content"])
    return None


@lru_cache(maxsize=1)
def byte_characters() -> dict[str, int]:
    """Return GPT-2's map from the characters of byte-level vocabularies to bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _byte_level(token: str) -> bytes:
    r"""Return the bytes of a token of a byte-level vocabulary.

    Example:
        >>> _byte_level("Ġpara"), _byte_level("ä¸")
        (b' para', b'\xe4\xb8')
    """
    characters = byte_characters()
    try:
        return bytes(map(characters.__getitem__, token))
    except KeyError:
        return token.encode()


def _sentencepiece(token: str, space: str | None, by_byte: bool) -> bytes:
    r"""Return the bytes of a token of a SentencePiece vocabulary.

    Example:
        >>> _sentencepiece("▁para", "▁", True), _sentencepiece("<0x0A>", "▁", True)
        (b' para', b'\n')
    """
    byte = _BYTE_TOKEN.fullmatch(token) if by_byte else None
    if byte:
        return bytes([int(byte[1], 16)])
    return (token.replace(space, " ") if space else token).encode()


def bos_id(tree: dict[str, Any], settings: dict[str, Any], added: dict[str, int]) -> int | None:
    """Return the id of the token that belongs before a text, or None; see `CorpusTokenizer.bos_id` for the rule."""
    for part in _parts(tree.get("post_processor")):
        if part["type"] == "TemplateProcessing" and part["single"] and "SpecialToken" in part["single"][0]:
            return int(part["special_tokens"][part["single"][0]["SpecialToken"]["id"]]["ids"][0])
    token = settings.get("bos_token")
    content = token.get("content") if isinstance(token, dict) else token
    return added.get(content) if content and settings.get("add_bos_token") is True else None
