"""Makes the `policy.json` of an export: token bytes and end tokens, so that other trainers reward on bytes."""

from __future__ import annotations

import json

from pipeline.config.manifest import MaterializeConfig
from pipeline.core.model_files import TOKENIZER_FILES, resolve_model
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.rollout.response_ends import response_ends

_FILES = (*TOKENIZER_FILES, "generation_config.json", "config.json")


def policy_json(tokenizer: CorpusTokenizer, config: MaterializeConfig) -> str:
    """Return `{"end_ids": […], "token_bytes": ["<hex>", …]}`: ids that end a response, and the bytes of every id.

    Raises:
        UserError: the policy has no token that ends a response.
    """
    folder = resolve_model(config.policy_tokenizer, config.policy_tokenizer_revision, files=_FILES)
    ends = sorted(response_ends(folder if folder.is_dir() else folder.parent, tokenizer).ids)
    return json.dumps({"end_ids": ends, "token_bytes": [data.hex() for data in tokenizer.token_bytes]})
