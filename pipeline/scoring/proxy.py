"""The proxy: a `transformers` causal LM whose uncertainty selects the sites.

Shape names: B rows, T tokens, H hidden size, V rows of the output matrix.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.config.errors import UserError
from pipeline.core.hardware import torch_device
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.scoring.entropy import WriteLogits, copy_logits
from pipeline.scoring.head import equal_up_to_rounding, tiled_head
from pipeline.scoring.precision import resolve_dtype

FLASH = ("flash_attention_3", "flash_attention_2")
"""Attention of `transformers` that takes sequences of any lengths end to end; the best first."""

_SPARE_SHARE = 0.1
"""Of the rows of a model whose folder has no tokenizer. Models round their vocabulary up, the most known by 2.3 %
(102,400 rows for 100,015 tokens); more spare rows than this share mean another tokenizer."""


@dataclass
class Proxy:
    """A loaded model."""

    hidden: Callable[..., Tensor]
    """(ids [B, T], lengths) → what `write_logits` makes logits of. With lengths, so many sequences lie end to end in
    the only row, and none sees another."""
    write_logits: WriteLogits
    vocab_size: int
    """Rows of the output matrix V; the tokenizer's ids are fewer."""
    limit: int | None
    """Most tokens the model sees at once (`max_position_embeddings`), BOS included."""
    bos_id: int | None
    device: torch.device
    packs: bool = False
    """Windows are fed end to end in one row; else each in a row of its own, padded."""
    max_batch_tokens: int = sys.maxsize
    """Of a batch. Falls when memory runs out, and stays there for the rest of the process."""


def load_proxy(folder: Path, tokenizer: CorpusTokenizer, dtype: str) -> Proxy:
    """Load a model from a folder: safetensors only, no remote code, on the accelerator if the machine has one.

    Raises:
        UserError: no safetensors, an architecture `transformers` does not know, weights that are missing, a
            vocabulary that is not the tokenizer's, or a model that sees later tokens too.
    """
    if not any(folder.glob("*.safetensors")):
        pickled = "; its pickled weights are not read" if any(folder.glob("*.bin")) else ""
        raise UserError(f"no safetensors weights{pickled}", where=folder, hint="convert with `save_pretrained`")
    import transformers

    try:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, resolve_dtype(dtype)),
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # a damaged folder raises whatever its reader (config, safetensors, torch) raises
        raise UserError(
            "not a causal language model that `transformers` can load", where=folder, hint=_first_line(error)
        ) from error
    model, loading = loaded
    if loading["missing_keys"] or loading["mismatched_keys"]:
        absent = sorted(map(str, loading["missing_keys"] or loading["mismatched_keys"]))
        raise UserError(f"weights are missing or misshapen ({len(absent)}, first {absent[0]})", where=folder)
    proxy = as_proxy(_with_flash_attention(model.to(torch_device()).eval()), tokenizer.bos_id)
    for rows in (model.get_input_embeddings().num_embeddings, proxy.vocab_size):
        _check_vocabulary(folder, rows, tokenizer)
    return proxy


def _with_flash_attention(model: Any) -> Any:
    """The model with it, where it is installed and knows the model; else with PyTorch's own, which is as fast but for
    the padding."""
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

    installed = (is_flash_attn_3_available, is_flash_attn_2_available)
    if model.device.type == "cuda" and model.dtype != torch.float32:
        for name in (name for name, there in zip(FLASH, installed, strict=True) if there()):
            with contextlib.suppress(ValueError, ImportError):
                model.set_attn_implementation(name)
                break
    return model


@torch.inference_mode()
def as_proxy(model: Any, bos_id: int | None) -> Proxy:
    """A `transformers` causal LM as a proxy.

    The output matrix is applied to tiles of the vocabulary where that gives the model's own logits, and windows are
    packed where its attention takes them so; a short input shows both. Elsewhere its full logits are used, or padding.

    Raises:
        UserError: the model sees later tokens too.
    """
    body = model.base_model

    def hidden(ids_BT: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        return body(input_ids=ids_BT, use_cache=False, **_packing(lengths, ids_BT.device)).last_hidden_state

    def logits(ids_BT: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        return model(input_ids=ids_BT, use_cache=False, **_packing(lengths, ids_BT.device)).logits

    limit, rows = _limit(model.config.get_text_config()), model.get_input_embeddings().num_embeddings
    probe_BT = torch.arange(min(8, limit or 8), device=model.device)[None] % rows
    write = None if body is model else tiled_head(model, hidden, probe_BT)
    proxy = Proxy(
        hidden=hidden if write else logits,
        write_logits=write or copy_logits,
        vocab_size=model.get_output_embeddings().out_features if write else logits(probe_BT).shape[-1],
        limit=limit,
        bos_id=bos_id,
        device=model.device,
    )
    other_BT = probe_BT.clone()
    other_BT[:, -1] = (other_BT[:, -1] + 1) % rows
    if not equal_up_to_rounding(proxy.hidden(probe_BT)[:, :-1], proxy.hidden(other_BT)[:, :-1]):
        raise UserError(
            "the model sees later tokens too", where=model.config.name_or_path, hint="choose a causal language model"
        )
    proxy.packs = model.config._attn_implementation in FLASH and packs_exactly(proxy, probe_BT)
    return proxy


def packs_exactly(proxy: Proxy, probe_BT: Tensor) -> bool:
    """Whether the model gives two sequences end to end what it gives each alone. (Recurrent layers do not.)"""
    sizes = [probe_BT.shape[1] // 2, probe_BT.shape[1] - probe_BT.shape[1] // 2]
    alone = torch.cat([proxy.hidden(ids_BT) for ids_BT in probe_BT.split(sizes, 1)], 1)
    return equal_up_to_rounding(alone, proxy.hidden(probe_BT, sizes), rounding=0.05)


def _packing(lengths: Sequence[int] | None, device: torch.device) -> dict[str, Any]:
    """What `transformers` asks for where sequences lie end to end: positions, and for flash attention, the ends."""
    if lengths is None:
        return {}
    positions_1T = torch.cat([torch.arange(n) for n in lengths])[None]
    ends = on_device(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32), device)
    most = max(lengths)
    return {
        "position_ids": on_device(positions_1T, device),
        "cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": most, "max_length_k": most,
    }  # fmt: skip


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device. From pinned memory, so that it does not wait for what the device is at."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _limit(config: Any) -> int | None:
    """`max_position_embeddings`. LongRoPE turns positions otherwise as soon as a batch has a row of more than those it
    was first trained with, so that no more are fed."""
    rope = getattr(config, "rope_parameters", None) or {}
    own = [rope, *(part for part in rope.values() if isinstance(part, dict))]  # of all layers, or by type of layers
    limits = [part["original_max_position_embeddings"] for part in own if part.get("rope_type") == "longrope"]
    return min(limits, default=getattr(config, "max_position_embeddings", None))


def _check_vocabulary(folder: Path, rows: int, tokenizer: CorpusTokenizer) -> None:
    """Refuse a tokenizer whose tokens are not the model's.

    Spare rows say little: models round their vocabulary up. What does is the tokenizer in the model's folder.
    """
    counts = f"the model has {rows:,} token embeddings, the tokenizer {tokenizer.vocab_size:,} tokens"
    if tokenizer.text_size > rows:
        raise UserError(counts, where=folder, hint=_TRAINED_WITH)
    if not (folder / "tokenizer.json").is_file():
        if rows - tokenizer.vocab_size > _SPARE_SHARE * rows:
            mend = f"{_TRAINED_WITH}, or put that one's tokenizer.json into the model's folder"
            raise UserError(counts, where=folder, hint=mend)
        return
    own = CorpusTokenizer.load(folder)
    if own.digest == tokenizer.digest:
        return
    for token, (a, b) in enumerate(zip(own.token_bytes, tokenizer.token_bytes, strict=False)):
        if a != b and a and b:
            raise UserError(
                f"token {token} is {b!r:.40} of the tokenizer, and {a!r:.40} of the one in the model's folder",
                where=folder, hint=f"{_TRAINED_WITH}; if the one in the folder is wrong, remove it",
            )  # fmt: skip


_TRAINED_WITH = "give the tokenizer this model was trained with (`proxy.tokenizer`)"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
