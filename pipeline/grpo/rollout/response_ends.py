"""The tokens that end a response: one rule for sampling, supervised training, evaluation, exports. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.errors import UserError
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.rollout.chat_template import ChatTemplate, read_json

_MARK = "the-answer-0f3c"
"""An answer that occurs in no template."""


@dataclass(frozen=True)
class ResponseEnds:
    """Token ids that end a response, each with the files that name it."""

    named: Mapping[int, tuple[str, ...]]
    """Sources by id: `chat template`, `tokenizer`, `generation configuration`, `model configuration`."""
    of_response: int
    """The id that supervised training teaches: the chat template's end of turn, else the tokenizer's."""
    of_text: int
    """The id that ends a document: the tokenizer's, else that of a response."""

    @property
    def ids(self) -> frozenset[int]:
        """Return all ids that end a response."""
        return frozenset(self.named)

    def described(self, tokens: CorpusTokenizer) -> str:
        """Format as one line: each token and its id; `rpt doctor` says which files name them."""
        return ", ".join(
            f"{tokens.token_bytes[id].decode('utf-8', errors='replace')!r} (token {id})" for id in sorted(self.named)
        )


def response_ends(folder: Path, tokens: CorpusTokenizer) -> ResponseEnds:
    """Return the union of the end tokens that a policy's files name.

    The sources are the end of turn of the chat template, the tokenizer's `eos_token`, and `eos_token_id` of the
    generation configuration and of the model's configuration.

    Args:
        folder: the policy's folder, or that of its tokenizer alone.
        tokens: the policy's tokenizer.

    Raises:
        UserError: no file names an end token, so no response could ever finish.
    """
    found: dict[int, tuple[str, ...]] = {}
    for source, ids in _named(folder, tokens):
        for id in ids:
            if 0 <= id < tokens.vocab_size:
                found[id] = (*found.get(id, ()), source)
    if not found:
        raise UserError(
            "the policy names no token that ends a response",
            where=folder,
            hint="set `eos_token` in its tokenizer_config.json, or `eos_token_id` in its generation_config.json",
        )
    return ResponseEnds(found, of_response=next(iter(found)), of_text=_first(found, "tokenizer"))


def _named(folder: Path, tokens: CorpusTokenizer) -> Iterator[tuple[str, list[int]]]:
    """Yield the sources with their ids; the first id found is the one that training teaches."""
    turn = end_of_turn(ChatTemplate.of(folder), folder, tokens)
    yield "chat template", [] if turn is None else [turn]
    settings = read_json(folder / "special_tokens_map.json") | read_json(folder / "tokenizer_config.json")
    token = settings.get("eos_token")
    own = tokens.id_of(token["content"] if isinstance(token, dict) else token) if token else None
    yield "tokenizer", [] if own is None else [own]
    yield "generation configuration", _ids(read_json(folder / "generation_config.json"))
    config = read_json(folder / "config.json")
    inner = config.get("text_config")
    yield "model configuration", _ids(config) or _ids(inner if isinstance(inner, dict) else {})


def end_of_turn(template: ChatTemplate | None, folder: Path, tokens: CorpusTokenizer) -> int | None:
    """Return the special token that the chat template puts after the policy's answer.

    It is None if there is no template, if it cannot be rendered with an answer, or if no special token follows.
    """
    if template is None:
        return None
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _MARK}]
    try:
        text = template.render(turns, add_generation_prompt=False)
    except UserError:
        return None
    _, mark, after = text.rpartition(_MARK)
    added = read_json(folder / "tokenizer.json").get("added_tokens") or ()
    special = [token["content"] for token in added if token.get("special") and token["content"]]
    follows = [content for content in special if mark and after.lstrip().startswith(content)]
    return tokens.id_of(max(follows, key=len)) if follows else None


def _ids(config: Mapping[str, Any]) -> list[int]:
    named = config.get("eos_token_id")
    return [id for id in (named if isinstance(named, list) else [named]) if type(id) is int]


def _first(found: Mapping[int, tuple[str, ...]], source: str) -> int:
    return next((id for id, sources in found.items() if source in sources), next(iter(found)))
