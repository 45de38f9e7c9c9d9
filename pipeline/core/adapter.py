"""LoRA adapters as models: merged into their base once, so that all readers of models see a plain folder.

An adapter is what `peft` saves: `adapter_config.json`, which names the base, and `adapter_model.safetensors`. The
merged folder is in `$HF_HOME/rpt/merged`; its name is a hash of the contents of both. It is computed in the base's own
number format. Its digest is that of its inputs, not of its bytes, because rounding may differ between machines.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from pipeline.config.base import canonical_json
from pipeline.config.errors import UserError
from pipeline.core.artifact import content_hash

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MADE_FROM = "merged_from.json"
"""File in a merged folder with the digests of the adapter, of its base, and of the tokenizer's files."""


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter, by the same test as `transformers`."""
    return (folder / CONFIG).is_file()


def base_model(adapter: Path) -> tuple[str, str | None]:
    """Return name and revision of the model that an adapter is for.

    Raises:
        UserError: the adapter names none.
    """
    config = _config(adapter)
    if not config.get("base_model_name_or_path"):
        raise UserError("the adapter names no base model", where=adapter / CONFIG, hint="set base_model_name_or_path")
    return str(config["base_model_name_or_path"]), config.get("revision")


def merge_adapter(adapter: Path, base: Path, base_digest: str, tokenizer_files: tuple[str, ...]) -> Path:
    """Return the folder of the merged model, which the first call creates.

    Args:
        adapter: folder of the adapter.
        base: folder of the model it is for.
        base_digest: digest of the base's contents.
        tokenizer_files: patterns of files that are copied from the adapter if it has a tokenizer, else from the base.

    Raises:
        UserError: `peft` is missing, the weights are not in safetensors, they do not fit the base, or cannot be merged.
    """
    if not (adapter / WEIGHTS).is_file():
        raise UserError(f"the adapter has no {WEIGHTS}", where=adapter, hint="save it with `save_pretrained`")
    import huggingface_hub.constants
    from filelock import FileLock

    owner = adapter if (adapter / "tokenizer.json").is_file() else base
    names = sorted(path.name for pattern in tokenizer_files for path in owner.glob(pattern))
    tokenizer = [[name, content_hash(owner / name)] for name in names]
    made_from = {"adapter": _digest(adapter), "base": base_digest, "tokenizer": tokenizer}
    key = hashlib.sha256(canonical_json(made_from).encode()).hexdigest()[:16]
    folder = Path(huggingface_hub.constants.HF_HOME) / "rpt" / "merged" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # all ranks of a run call this at once
        if not folder.is_dir():
            scratch = folder.with_name(f".{key}.{uuid.uuid4().hex[:12]}")
            try:
                _merge(adapter, base, scratch)
                for name in names:
                    shutil.copyfile(owner / name, scratch / name)
                (scratch / MADE_FROM).write_text(canonical_json(made_from), encoding="utf-8")
                os.replace(scratch, folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _merge(adapter: Path, base: Path, out: Path) -> None:
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise UserError("peft is not installed", where=adapter, hint="pip install 'rpt[lora]'") from error
    from transformers import AutoModelForCausalLM

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            base, dtype="auto", use_safetensors=True, local_files_only=True
        )
        model = PeftModel(model, PeftConfig.from_pretrained(str(adapter)))
        loaded = model.load_adapter(str(adapter), "default")
        if loaded.missing_keys or loaded.unexpected_keys:
            one = (loaded.missing_keys or loaded.unexpected_keys)[0]
            raise ValueError(f"their layers differ: {one}")
        model.merge_and_unload(safe_merge=True).save_pretrained(out)
    except Exception as error:  # peft raises KeyError, ValueError, RuntimeError or AttributeError
        reason = " ".join(str(error).split())[:300]
        raise UserError("the adapter does not fit its base model", where=f"{adapter} + {base}", hint=reason) from error


def _digest(adapter: Path) -> str:
    """Return the sha256 of an adapter's weights and settings, without the location of its base."""
    settings = {k: v for k, v in _config(adapter).items() if k not in ("base_model_name_or_path", "revision")}
    return hashlib.sha256(canonical_json([settings, content_hash(adapter / WEIGHTS)]).encode()).hexdigest()


def _config(adapter: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((adapter / CONFIG).read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError("not JSON", where=adapter / CONFIG, hint=str(error)) from error
