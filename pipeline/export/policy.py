"""`policy.json` of an export: what other trainers need of the policy's tokenizer to be judged on bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.core.config import MaterializeConfig
from pipeline.core.errors import UserError
from pipeline.scoring.tokens import TOKENIZER_FILES, CorpusTokenizer, resolve_model

_FILES = (*TOKENIZER_FILES, "generation_config.json")


def policy_json(tokenizer: CorpusTokenizer, config: MaterializeConfig) -> str:
    """`{"end_ids": […], "token_bytes": ["<hex>", …]}`: ids that end a response, and the bytes of every id.

    Raises:
        UserError: neither the tokenizer nor a generation configuration names an end-of-sequence token.
    """
    folder = resolve_model(config.policy_tokenizer, config.policy_tokenizer_revision, files=_FILES)
    ends = end_ids(tokenizer, folder if folder.is_dir() else folder.parent)
    if not ends:
        raise UserError(
            "the policy names no end-of-sequence token", where=folder, mend="set `eos_token` in tokenizer_config.json"
        )
    return json.dumps({"end_ids": ends, "token_bytes": [data.hex() for data in tokenizer.token_bytes]})


def end_ids(tokenizer: CorpusTokenizer, folder: Path) -> list[int]:
    """Ids that end a response: those of `generation_config.json`, and the tokenizer's `eos_token`."""
    named = _read(folder / "generation_config.json").get("eos_token_id")
    token = _read(folder / "tokenizer_config.json").get("eos_token")
    own = tokenizer.id_of(token["content"] if isinstance(token, dict) else token) if token else None
    found = [named] if isinstance(named, int) else list(named or ())
    return sorted({*found, *([] if own is None else [own])})


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
