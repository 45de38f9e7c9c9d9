"""Model folders: find them by path or hub id, and identify them by content."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

from pipeline.config.base import canonical_json
from pipeline.config.errors import UserError
from pipeline.core import adapter
from pipeline.core.artifact import content_hash
from pipeline.core.hub import snapshot

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template*")
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
MODEL_FILES = ("config.json", "generation_config.json", *WEIGHT_FILES, *TOKENIZER_FILES)


def resolve_model(name: str, revision: str | None = None, *, files: Sequence[str] = MODEL_FILES) -> Path:
    """Return the local folder or file `name`, else the Hub's snapshot of it with only `files`.

    For a LoRA adapter and `files` that include weights, it is the folder of the merged model.

    Raises:
        UserError: neither exists (the message tells whether the Hub was reachable), the weights are pickled, or an
            adapter cannot be merged.
    """
    folder, with_weights = _locate(name, revision, files), bool(set(WEIGHT_FILES) & set(files))
    if with_weights:
        _refuse_pickles(folder)
    if not adapter.is_adapter(folder):
        return folder
    if not with_weights and "tokenizer.json" in files and (folder / "tokenizer.json").is_file():
        return folder
    base = resolve_model(*adapter.base_model(folder), files=files)
    return adapter.merge_adapter(folder, base, model_digest(base), TOKENIZER_FILES) if with_weights else base


def _locate(name: str, revision: str | None, files: Sequence[str]) -> Path:
    path = Path(name).expanduser()
    if path.exists():
        return path
    return snapshot(name, "model", revision, [*files, adapter.CONFIG])


def _refuse_pickles(folder: Path) -> None:
    """Refuse weights that are only there as pickles: loading one can run code, and no digest covers them."""
    pickled = sorted(p for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    if pickled and not any(folder.glob("*.safetensors")):
        raise UserError(
            "the model's weights are pickled",
            where=pickled[0],
            hint="a pickle can run code: convert them to safetensors (`save_pretrained` of transformers writes them)",
        )


def model_digest(path: Path) -> str:
    """Return the sha256 over the names and contents of a model folder's configuration and weights.

    For a merged adapter it is over the digests of its inputs.
    """
    if (path / adapter.MADE_FROM).is_file():
        return content_hash(path / adapter.MADE_FROM)
    members = sorted(p for pattern in ("config.json", *WEIGHT_FILES) for p in path.glob(pattern))
    return hashlib.sha256(canonical_json([[p.name, content_hash(p)] for p in members]).encode()).hexdigest()


def count_weights(path: Path) -> int:
    """Return the number of weights in a model folder, from its safetensors headers; tied matrices count once.

    Raises:
        UserError: one of the files is damaged.
    """
    from safetensors import SafetensorError, safe_open

    count = 0
    for file in path.glob("*.safetensors"):
        try:
            with safe_open(file, framework="np") as tensors:
                count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
        except SafetensorError as error:
            raise UserError("not a safetensors file", where=file, hint=str(error)) from error
    return count
